"""The compiled sampling loop against teacher forcing and enumeration."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_models import make_batch, make_responses, tiny

from p4lm.decoding.behavior import SamplerConfig
from p4lm.decoding.sampler import sample, sample_encoded
from p4lm.decoding.scoring import score
from p4lm.models.recommender import Recommender, RecommenderConfig
from p4lm.models.t5 import Encoded, T5Config
from p4lm.partitioning.build import build_model

EOS = 7
KEY = jax.random.key(4)


def draw(batch, key=KEY, **settings):
  config = SamplerConfig(**{'max_length': 8, **settings})
  return sample(tiny().graphdef, tiny().state, batch, key, config, EOS)


def replay(batch, drawn, config=None):
  return score(
    tiny().graphdef,
    tiny().state,
    batch,
    drawn.response_tokens,
    drawn.response_mask,
    config,
    EOS,
  )


def test_cached_steps_equal_teacher_forcing():
  batch, responses = make_batch(), make_responses(rows=6)

  @jax.jit
  def stepwise(state):
    model = nnx.merge(tiny().graphdef, state)
    cache = model.start_cache(model.encode(**batch), 7, num_samples=2)
    previous = jnp.zeros(6, jnp.int32)
    outputs = []
    for position in range(7):
      logits, cache = model.decode_step(cache, previous)
      outputs.append(logits)
      previous = responses[:, position]
    return jnp.stack(outputs, axis=1)

  np.testing.assert_allclose(
    stepwise(tiny().state), tiny().logits(batch, responses), atol=1e-5
  )


def test_greedy_takes_the_likeliest_token_each_time():
  batch = make_batch()
  drawn = draw(batch, greedy=True)
  logits = np.asarray(tiny().logits(batch, drawn.response_tokens))
  mask = np.asarray(drawn.response_mask)
  np.testing.assert_array_equal(
    logits.argmax(-1)[mask], np.asarray(drawn.response_tokens)[mask]
  )
  np.testing.assert_allclose(drawn.logps, replay(batch, drawn), atol=1e-5)


@pytest.mark.parametrize(
  'settings',
  [
    {},
    {'temperature': 0.7, 'num_samples': 3},
    {'top_k': 5},
    {'top_p': 0.8, 'temperature': 1.3, 'min_length': 3, 'num_tokens': 60},
  ],
)
def test_replaying_a_sample_gives_its_log_probabilities(settings):
  batch = make_batch(batch=4)
  config = SamplerConfig(8, **settings)
  drawn = draw(batch, **settings)
  assert drawn.response_tokens.shape == (4 * config.num_samples, 8)
  replayed = replay(batch, drawn, config)
  ratio = np.exp(np.asarray(replayed - drawn.logps))
  np.testing.assert_allclose(ratio, 1.0, atol=1e-5)
  assert np.asarray(drawn.response_tokens).max() < (config.num_tokens or 64)


def test_a_row_does_not_depend_on_its_neighbours_or_on_padding():
  batch = make_batch(batch=4)
  drawn = draw(batch)
  first = draw(jax.tree.map(lambda x: x[:2], batch))
  padded = draw(
    {
      **batch,
      'prompt_tokens': jnp.pad(batch['prompt_tokens'], ((0, 0), (0, 4))),
    }
  )
  np.testing.assert_array_equal(
    first.response_tokens, drawn.response_tokens[:2]
  )
  np.testing.assert_allclose(first.logps, drawn.logps[:2], atol=1e-5)
  np.testing.assert_array_equal(padded.response_tokens, drawn.response_tokens)
  np.testing.assert_allclose(padded.logps, drawn.logps, atol=1e-5)


def test_a_tokenizer_may_end_responses_with_what_it_pads_with():
  """EOS is pad: what the sampler drew counts, what fills up does not."""
  batch, pad = make_batch(batch=4), 0
  config = SamplerConfig(8, num_samples=4, num_tokens=4)
  drawn = sample(tiny().graphdef, tiny().state, batch, KEY, config, pad)
  tokens, mask = map(np.asarray, (drawn.response_tokens, drawn.response_mask))
  lengths = mask.sum(axis=1)
  # The first of them is EOS and counts.
  ended = [int(np.flatnonzero(row == pad)[0]) for row in tokens if pad in row]
  assert 8 < len(ended) and set(ended) != {0}
  np.testing.assert_array_equal(
    lengths[(tokens == pad).any(axis=1)], np.array(ended) + 1
  )
  assert (lengths[(tokens != pad).all(axis=1)] == 8).all()

  def replayed(wider):
    widen = lambda x: jnp.pad(x, ((0, 0), (0, wider)))
    return score(
      tiny().graphdef,
      tiny().state,
      batch,
      widen(drawn.response_tokens),
      widen(drawn.response_mask),
      config,
      pad,
    )

  np.testing.assert_allclose(drawn.logps, replayed(0), atol=1e-5)
  np.testing.assert_allclose(drawn.logps, replayed(3)[:, :8], atol=1e-5)
  assert not np.any(replayed(3)[:, 8:])


def test_keys_and_samples_differ_and_repeat():
  batch = make_batch()
  drawn = draw(batch, num_samples=2)
  again = draw(batch, num_samples=2)
  other = draw(batch, key=jax.random.key(5), num_samples=2)
  tokens = np.asarray(drawn.response_tokens)
  np.testing.assert_array_equal(again.response_tokens, tokens)
  assert (np.asarray(other.response_tokens) != tokens).any()
  assert (tokens[0::2] != tokens[1::2]).any(axis=1).all()


def test_a_longer_limit_extends_the_same_response():
  batch = make_batch()
  short, long = draw(batch), draw(batch, max_length=11)
  np.testing.assert_array_equal(
    long.response_tokens[:, :8], short.response_tokens
  )


def test_parameters_may_come_in_parts():
  graphdef, adapters, rest = nnx.split(
    tiny().model, nnx.PathContains('adapters'), ...
  )
  config = SamplerConfig(8)
  parts = sample(graphdef, (adapters, rest), make_batch(), KEY, config, EOS)
  np.testing.assert_array_equal(
    parts.response_tokens, draw(make_batch()).response_tokens
  )


class Script:
  """Stands in for a model: says given logits, counts its steps."""

  def __init__(self, logits):
    self.logits = jnp.asarray(logits)
    self.steps = []

  def start_cache(self, encoded, length, num_samples):
    return jnp.int32(0)

  def decode_step(self, cache, tokens):
    jax.debug.callback(lambda step: self.steps.append(int(step)), cache)
    rows = jnp.broadcast_to(
      self.logits[cache], (tokens.shape[0], self.logits.shape[-1])
    )
    return rows, cache + 1


def run_script(logits, rows=2, **settings):
  script = Script(logits)
  encoded = Encoded(jnp.zeros((rows, 1, 1)), jnp.ones((rows, 1), bool))
  config = SamplerConfig(**{'max_length': len(logits), **settings})
  drawn = jax.jit(lambda: sample_encoded(script, encoded, KEY, config, EOS))()
  jax.block_until_ready(drawn)
  jax.effects_barrier()
  return drawn, len(script.steps)


def says(*tokens, vocab=9):
  return np.log(np.eye(vocab)[list(tokens)] * 0.98 + 0.01)


def test_the_loop_ends_with_the_last_response():
  drawn, steps = run_script(says(3, 4, EOS, 5, 6, 8), greedy=True)
  assert steps == 3
  assert drawn.response_tokens.tolist() == [[3, 4, EOS, 0, 0, 0]] * 2
  assert drawn.response_mask.tolist() == [[True] * 3 + [False] * 3] * 2
  assert np.all(np.asarray(drawn.logps)[:, 3:] == 0)


def test_a_response_without_eos_counts_in_full():
  drawn, steps = run_script(says(3, 0, 4), greedy=True)
  assert steps == 3
  assert drawn.response_tokens.tolist() == [[3, 0, 4]] * 2
  assert bool(drawn.response_mask.all())


def test_eos_waits_for_the_minimum_length():
  logits = says(EOS, EOS, EOS, EOS)
  drawn, steps = run_script(logits, greedy=True, min_length=2)
  assert steps == 3
  tokens = np.asarray(drawn.response_tokens)
  assert (tokens[:, :2] != EOS).all() and (tokens[:, 2] == EOS).all()
  # Eight tokens of 1% each remain of the first position.
  np.testing.assert_allclose(drawn.logps[:, 0], np.log(1 / 8), atol=1e-5)


def test_a_stop_id_ends_a_response_as_eos_does():
  drawn, steps = run_script(says(3, 4, 5, 6), greedy=True, stop_ids=(2, 5))
  assert steps == 3
  assert drawn.response_tokens.tolist() == [[3, 4, 5, 0]] * 2
  assert drawn.response_mask.tolist() == [[True] * 3 + [False]] * 2
  waited, steps = run_script(
    says(5, 5, 5), greedy=True, stop_ids=(5,), min_length=1
  )
  assert steps == 2
  assert (np.asarray(waited.response_tokens)[:, 0] != 5).all()


@pytest.fixture(scope='module')
def small():
  """A model of six tokens; every response of up to three can be listed."""
  lm = T5Config(
    vocab_size=6,
    d_model=8,
    d_ff=8,
    num_heads=2,
    d_kv=4,
    num_encoder_layers=1,
    num_decoder_layers=1,
    scan_unroll=0,
  )
  config = RecommenderConfig(lm=lm, adapter=None, soft_token_id=5)
  make = lambda: Recommender(config, rngs=nnx.Rngs(0))
  return build_model(make, seed=2)


@pytest.mark.parametrize('settings', [{}, {'temperature': 0.6, 'top_k': 4}])
def test_samples_follow_the_exact_distribution(small, settings):
  eos, length, count = 1, 3, 20_000
  config = SamplerConfig(length, **settings)
  batch = {
    'prompt_tokens': jnp.array([[3, 4, 2, 0]]),
    'cf_embeddings': jnp.zeros((1, 0, 1)),
    'cf_kind_ids': jnp.zeros((1, 0), jnp.int32),
  }
  outcomes = []
  for tokens in itertools.product(range(6), repeat=length):
    ended = tokens.index(eos) + 1 if eos in tokens else length
    outcomes.append(tokens[:ended] + (0,) * (length - ended))
  outcomes = sorted(set(outcomes))
  tokens = jnp.array(outcomes, jnp.int32)
  ends = [o.index(eos) + 1 if eos in o else length for o in outcomes]
  mask = jnp.arange(length)[None] < jnp.array(ends)[:, None]
  logps = score(*small, batch, tokens, mask, config, eos)
  probabilities = np.exp(np.asarray(logps, 'float64').sum(-1))
  np.testing.assert_allclose(probabilities.sum(), 1.0, atol=1e-5)

  config = dataclasses.replace(config, num_samples=count)
  drawn = sample(*small, batch, jax.random.key(0), config, eos)
  index = {outcome: i for i, outcome in enumerate(outcomes)}
  counts = np.zeros(len(outcomes))
  for row in np.asarray(drawn.response_tokens).tolist():
    counts[index[tuple(row)]] += 1
  assert counts[probabilities == 0].sum() == 0
  expected = count * probabilities
  often = expected >= 5
  rest = np.array([counts[~often].sum(), expected[~often].sum()])
  chi_square = ((counts - expected)[often] ** 2 / expected[often]).sum()
  degrees = often.sum() - 1
  if rest[1] > 5:
    chi_square += (rest[0] - rest[1]) ** 2 / rest[1]
    degrees += 1
  # A chi-square variable has mean `degrees` and variance twice that.
  assert abs(chi_square - degrees) < 4 * np.sqrt(2 * degrees)
