import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from p4lm.data.features import CFFeatures, PointwiseConverter
from p4lm.data.prompts import SOFT, Prompt
from p4lm.errors import UserError
from p4lm.models.adapter import AdapterConfig
from p4lm.models.reward_model import RewardModel, RewardModelConfig
from p4lm.models.t5_config import T5Config
from p4lm.rewards.kinds import REWARD_KINDS, prompt_builder
from p4lm.rewards.learned import (
  LearnedTerm,
  LearnedTermConfig,
  check_same_sources,
)
from p4lm.rewards.terms import RewardRequest, evaluate_term
from p4lm.rewards.text_encoding import CachingEncoder

ITEM = {'title': 'Quiet Town, The (1999)', 'plot': 'a quiet town hides a map'}
WIDTH = 4


def _request(text, item=ITEM, number=0):
  return RewardRequest(text, f'i{number}', f'u{number}', item)


def _lookup(kind, id_):
  return np.full(WIDTH, int(id_[1:]) + (0.5 if kind == 'item' else 0.0))


def _weighted_sum(params, tokens, cf_embeddings, cf_kind_ids):
  """A model whose score is easy to redo: depends on order, CF and kinds."""
  position = jnp.arange(1, tokens.shape[1] + 1)[None, :]
  kinds = jnp.sum(cf_embeddings.sum(-1) * (cf_kind_ids + 1), axis=1)
  return jnp.sum(tokens * position, axis=1) * params + kinds


def _term(vocabulary, kind='personalization', apply_fn=_weighted_sum, **config):
  config = {'prompt_length': 48, 'batch_size': 4} | config
  return LearnedTerm(
    kind,
    apply_fn,
    jnp.float32(1e-3),
    LearnedTermConfig(**config),
    vocabulary=vocabulary,
    build_prompt=prompt_builder(kind),
    cf_lookup=_lookup,
  )


@pytest.mark.parametrize('kind', REWARD_KINDS)
def test_inputs_are_those_of_training(vocabulary, kind):
  """Tokens and CF vectors equal what the training converter makes."""
  seen = []

  def spy(params, *inputs):
    jax.debug.callback(lambda *a: seen.append(a), *inputs, ordered=True)
    return jnp.zeros(inputs[0].shape[0])

  requests = [
    _request('you will love this  warm <b>comedy</b>', number=3),
    _request('slow films', number=7),
  ]
  _term(vocabulary, kind, spy, batch_size=2)(requests)
  jax.effects_barrier()
  build = prompt_builder(kind)
  vectors = build(requests[0]).cf_kinds
  cf = CFFeatures(_lookup, WIDTH) if vectors else CFFeatures()
  converter = PointwiseConverter(48, cf)
  for row, request in enumerate(requests):
    prompt = build(request)
    example = {
      'inputs': np.array(vocabulary.encode(prompt.text), np.int32),
      'label': 0.0,
      'user_id': request.user_id,
      'item_id': request.item_id,
    }
    expected = converter(example, prompt.cf_kinds)
    for name, found in zip(('tokens', 'cf_embeddings', 'cf_kind_ids'), seen[0]):
      np.testing.assert_array_equal(found[row], expected[name])


def test_one_program_serves_batches_of_every_size(vocabulary):
  term = _term(vocabulary)
  texts = [f'{"slow " * (k % 5)}films {k}' for k in range(11)]
  requests = [_request(text, number=k) for k, text in enumerate(texts)]
  together = term(requests).values
  assert term.num_compilations == 1
  for size in (1, 3, 4, 7):
    np.testing.assert_allclose(
      term(requests[:size]).values, together[:size], rtol=1e-6
    )
  assert term.num_compilations == 1


def test_length_buckets_change_no_value_and_compile_once_each(vocabulary):
  short, long = _request('slow'), _request('slow films ' * 6)
  whole = _term(vocabulary)
  bucketed = _term(vocabulary, length_buckets=(24, 32))
  bucketed.compile(short)
  assert bucketed.num_compilations == 3
  for requests in ([short], [long], [short, long]):
    np.testing.assert_allclose(
      bucketed(requests).values, whole(requests).values, rtol=1e-6
    )
  assert bucketed.num_compilations == 3


@pytest.mark.parametrize(
  'output,read',
  [
    ('score', lambda s: s),
    ('logit', lambda s: s / 2),
    ('probability', lambda s: special.expit(s / 2)),
    ('log_probability', lambda s: special.log_expit(s / 2)),
  ],
)
def test_outputs(vocabulary, output, read):
  scores = np.array([-200.0, -1.0, 0.0, 3.0, 200.0], np.float32)
  term = _term(
    vocabulary,
    apply_fn=lambda params, tokens, *_: jnp.asarray(scores),
    batch_size=5,
    output=output,
    temperature=2.0,
  )
  values = term([_request('slow', number=k) for k in range(5)]).values
  np.testing.assert_allclose(values, read(scores), rtol=1e-6, atol=1e-40)
  assert values.dtype == np.float32


def test_truncated_inputs_are_counted_and_unread_ones_masked(vocabulary):
  long_plot = ITEM | {'plot': 'a quiet town ' * 60}
  requests = [
    _request('slow films'),
    _request('slow films ' * 30),
    _request('slow films', item=long_plot),
  ]
  answer = _term(vocabulary, 'nli')(requests)
  assert answer.counts['truncated'] == 2
  assert answer.counts['unread'] == 1
  np.testing.assert_array_equal(answer.valid, [True, True, False])
  answer = _term(vocabulary, 'nli', overlong='invalid')(requests)
  np.testing.assert_array_equal(answer.valid, [True, False, False])


def test_an_item_without_a_plot_has_no_entailment(vocabulary):
  without = ITEM | {'plot': ''}
  answer = _term(vocabulary, 'nli')(
    [_request('slow', item=without), _request('slow')]
  )
  np.testing.assert_array_equal(answer.valid, [False, True])
  assert answer.counts['without_prompt'] == 1
  nobody = _term(vocabulary, 'nli')([_request('slow', item=without)])
  assert not nobody.valid.any()


def test_a_response_cannot_bring_placeholders(vocabulary):
  answer = _term(vocabulary)([_request(f'slow {SOFT} films')])
  plain = _term(vocabulary)([_request('slow films')])
  np.testing.assert_array_equal(answer.values, plain.values)


def test_empty_texts_and_no_texts(vocabulary):
  answer = _term(vocabulary)([_request('')])
  assert np.isfinite(answer.values).all()
  assert _term(vocabulary)([]).values.shape == (0,)


def test_scores_that_are_not_finite_are_masked(vocabulary):
  term = _term(
    vocabulary,
    apply_fn=lambda params, tokens, *_: jnp.array([1.0, jnp.nan, 2.0, 3.0]),
  )
  answer = evaluate_term(term, [_request('a'), _request('b')])
  np.testing.assert_array_equal(answer.valid, [True, False])


def test_a_missing_item_or_table_is_named(vocabulary):
  with pytest.raises(UserError, match="needs the item 'i0'"):
    _term(vocabulary)([_request('slow', item=None)])
  term = _term(vocabulary)
  term._cf_lookup = None
  with pytest.raises(UserError, match='CF tables'):
    term([_request('slow')])


def test_a_prompt_with_too_few_placeholders_is_refused(vocabulary):
  term = LearnedTerm(
    'odd',
    _weighted_sum,
    1.0,
    LearnedTermConfig(prompt_length=8),
    vocabulary=vocabulary,
    build_prompt=lambda r: Prompt(f'user: {SOFT}', ('user', 'item')),
    cf_lookup=_lookup,
  )
  with pytest.raises(UserError, match='placeholders'):
    term([_request('slow')])


def test_mixed_kinds_of_vectors_are_refused(vocabulary):
  kinds = iter([('user',), ()])
  term = LearnedTerm(
    'mixed',
    _weighted_sum,
    1.0,
    LearnedTermConfig(prompt_length=8),
    vocabulary=vocabulary,
    build_prompt=lambda r: Prompt('user:', next(kinds)),
    cf_lookup=_lookup,
  )
  with pytest.raises(UserError, match="'mixed'.*same CF vectors"):
    term([_request('a'), _request('b')])


def test_a_reward_model_scores_as_when_called_alone(vocabulary):
  encoder = T5Config(
    vocab_size=vocabulary.size,
    d_model=16,
    d_ff=32,
    num_heads=2,
    d_kv=8,
    num_encoder_layers=1,
    num_decoder_layers=1,
  )
  config = RewardModelConfig(
    encoder=encoder,
    adapter=AdapterConfig(cf_width=WIDTH, hidden_width=8),
    soft_token_id=vocabulary.soft_token_id,
    kind='personalization',
  )
  model = RewardModel(config, rngs=nnx.Rngs(0))
  build = prompt_builder('personalization')
  term = LearnedTerm.from_model(
    'personalization',
    model,
    LearnedTermConfig(prompt_length=48, batch_size=4),
    vocabulary=vocabulary,
    build_prompt=build,
    cf_lookup=_lookup,
  )
  requests = [_request('slow films', number=2), _request('warm', number=5)]
  values = term(requests).values
  # One row, its own length: neither padding nor neighbours matter.
  tokens = vocabulary.encode(build(requests[0]).text)
  vectors = [[_lookup('user', 'u2'), _lookup('item', 'i2')]]
  graphdef, state = nnx.split(model)
  alone = jax.jit(lambda s, *inputs: nnx.merge(graphdef, s)(*inputs))(
    state,
    jnp.array([tokens]),
    jnp.array(vectors, jnp.float32),
    jnp.array([[0, 1]]),
  )
  np.testing.assert_allclose(values[0], alone[0], rtol=1e-4, atol=1e-6)
  assert abs(values[0] - values[1]) > 1e-6


@settings(deadline=None, max_examples=200)
@given(
  head=st.text(max_size=20).map(lambda t: f'premise: {" ".join(t.split())}'),
  response=st.text(max_size=20).map(lambda t: ' '.join(t.split())),
)
def test_halves_encode_as_the_whole(vocabulary, head, response):
  prompt = f'{head.rstrip()} {response}'
  encoded = CachingEncoder(vocabulary).encode(prompt, response)
  assert list(encoded.tokens) == vocabulary.encode(prompt)


def test_texts_are_tokenized_once(vocabulary):
  texts = []

  class Counting:
    def encode(self, text):
      texts.append(text)
      return vocabulary.encode(text)

  encoder = CachingEncoder(Counting())
  for k in range(100):
    encoder.encode(
      f'premise: a quiet town hypothesis: film {k % 50}', f'film {k % 50}'
    )
  # The shared head, each response, and the first 16 prompts as a check.
  assert len(texts) == 1 + 50 + 16


def test_a_vocabulary_that_joins_across_spaces_is_found_out():
  class Letters:
    """Ids depend on the whole text."""

    def encode(self, text):
      return [len(text), *map(ord, text)]

  encoder = CachingEncoder(Letters())
  for _ in range(2):
    encoded = encoder.encode('a b c', 'c')
    assert list(encoded.tokens) == Letters().encode('a b c')
    assert encoded.response_start is None


@pytest.mark.parametrize(
  'options,named',
  [
    ({'output': 'odds'}, 'output'),
    ({'overlong': 'drop'}, 'overlong'),
    ({'prompt_length': 0}, 'prompt_length'),
    ({'temperature': 0.0}, 'temperature'),
    ({'length_buckets': (64,)}, 'length_buckets'),
  ],
)
def test_bad_choices_are_named(options, named):
  with pytest.raises(UserError, match=named):
    LearnedTermConfig(**({'prompt_length': 48} | options))


def test_checkpoints_of_other_sources_are_refused():
  trained = {'vocabulary': 'abc', 'cf_tables': 'def'}
  check_same_sources('nli', trained, trained | {'more': 'x'})
  with pytest.raises(UserError, match="'nli'.*another cf_tables.*given none"):
    check_same_sources('nli', trained, {'vocabulary': 'abc'})
