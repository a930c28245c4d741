import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from p4lm.data.features import CFFeatures, PointwiseConverter
from p4lm.data.prompts import SOFT, Prompt, clean_text
from p4lm.errors import UserError
from p4lm.models.adapter import AdapterConfig
from p4lm.models.reward_model import RewardModel, RewardModelConfig
from p4lm.models.t5_config import T5Config
from p4lm.rewards.kinds import REWARD_KINDS, prompt_builder
from p4lm.rewards.learned import (
  LearnedTerm,
  LearnedTermConfig,
)
from p4lm.rewards.terms import RewardRequest, evaluate_term
from p4lm.rewards.text_encoding import CachingEncoder, repeats_of_each

ITEM = {'title': 'Quiet Town, The (1999)', 'plot': 'a quiet town hides a map'}
WIDTH = 4
LENGTHS = {'prompt_length': 48, 'response_length': 16}


def _request(text, item=ITEM, number=0):
  return RewardRequest(text, f'i{number}', f'u{number}', item)


def _lookup(kind, id_):
  return np.full(WIDTH, int(id_[1:]) + (0.5 if kind == 'item' else 0.0))


def _weighted_sum(params, prompts, responses, cf_embeddings, cf_kind_ids):
  """A model whose score is easy to redo: depends on order, CF and kinds."""
  weigh = lambda tokens: tokens @ jnp.arange(1, tokens.shape[1] + 1)
  kinds = jnp.sum(cf_embeddings.sum(-1) * (cf_kind_ids + 1), axis=1)
  prompt = 0.1 * weigh(prompts) * params + kinds
  repeats = responses.shape[0] // prompts.shape[0]
  return weigh(responses) * params + jnp.repeat(prompt, repeats)


def _term(vocabulary, kind='personalization', apply_fn=_weighted_sum, **config):
  config = LENGTHS | {'batch_size': 4} | config
  return LearnedTerm(
    kind,
    apply_fn,
    jnp.float32(1e-3),
    LearnedTermConfig(**config),
    vocabulary=vocabulary,
    build_prompt=prompt_builder(kind),
    cf_lookup=_lookup,
  )


NAMES = ('prompt_tokens', 'response_tokens', 'cf_embeddings', 'cf_kind_ids')


@pytest.mark.parametrize('kind', REWARD_KINDS)
def test_inputs_are_those_of_training(vocabulary, kind):
  """Tokens and CF vectors equal what the training converter makes."""
  seen = []

  def spy(params, *inputs):
    jax.debug.callback(lambda *a: seen.append(a), *inputs, ordered=True)
    return jnp.zeros(inputs[1].shape[0])

  requests = [
    _request('you will love this  warm <b>comedy</b>', number=3),
    _request('slow films', number=7),
    _request('slow films ' * 20, number=9),
  ]
  _term(vocabulary, kind, spy, batch_size=3)(requests)
  jax.effects_barrier()
  build = prompt_builder(kind)
  vectors = build(requests[0]).cf_kinds
  cf = CFFeatures(_lookup, WIDTH) if vectors else CFFeatures()
  converter = PointwiseConverter(48, 16, vocabulary.eos_id, cf)
  for row, request in enumerate(requests):
    prompt = build(request)
    example = {
      'inputs': np.array(vocabulary.encode(prompt.text), np.int32),
      'targets': np.array(
        vocabulary.encode(clean_text(request.text)), np.int32
      ),
      'label': 0.0,
      'user_id': request.user_id,
      'item_id': request.item_id,
    }
    expected = converter(example, prompt.cf_kinds)
    for name, found in zip(NAMES, seen[0], strict=True):
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
  long_title = ITEM | {'title': 'a young sheriff finds the desert (1999)'}
  short, long = _request('slow'), _request('slow', long_title, number=1)
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
    apply_fn=lambda *_: jnp.asarray(scores),
    batch_size=5,
    output=output,
    temperature=2.0,
  )
  values = term([_request('slow', number=k) for k in range(5)]).values
  np.testing.assert_allclose(values, read(scores), rtol=1e-6, atol=1e-40)
  assert values.dtype == np.float32


def test_what_is_cut_is_counted_and_masked_if_asked(vocabulary):
  long_plot = ITEM | {'plot': 'a quiet town ' * 60}
  requests = [
    _request('slow films'),
    _request('slow films ' * 30),
    _request('slow films', item=long_plot),
  ]
  answer = _term(vocabulary, 'nli')(requests)
  assert answer.counts['truncated'] == answer.counts['truncated_prompts'] == 1
  assert answer.valid.all()
  answer = _term(vocabulary, 'nli', overlong='invalid')(requests)
  np.testing.assert_array_equal(answer.valid, [True, False, True])
  # Every response to a prompt that is cut counts, as if it came alone.
  answer = _term(vocabulary, 'nli')([requests[2]] * 4 + [requests[0]] * 4)
  assert answer.counts['truncated_prompts'] == 4
  assert answer.counts['truncated'] == 0


def test_a_response_that_fits_with_its_end_is_not_cut(vocabulary):
  ids = vocabulary.encode('slow films')
  fits = {'response_length': len(ids) + 1}
  tight = {'response_length': len(ids)}
  for config, cut in ((fits, 0), (tight, 1)):
    answer = _term(vocabulary, **config)([_request('slow films')])
    assert answer.counts['truncated'] == cut


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
    apply_fn=lambda *_: jnp.array([1.0, jnp.nan, 2.0, 3.0]),
  )
  answer = evaluate_term(term, [_request('a'), _request('b', number=1)])
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
    LearnedTermConfig(prompt_length=8, response_length=8),
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
    LearnedTermConfig(prompt_length=8, response_length=8),
    vocabulary=vocabulary,
    build_prompt=lambda r: Prompt('user:', next(kinds)),
    cf_lookup=_lookup,
  )
  with pytest.raises(UserError, match="'mixed'.*same CF vectors"):
    term([_request('a'), _request('b')])


@pytest.fixture(scope='module', name='reward_model')
def _reward_model(vocabulary):
  lm = T5Config(
    vocab_size=vocabulary.size,
    d_model=16,
    d_ff=32,
    num_heads=2,
    d_kv=8,
    num_encoder_layers=1,
    num_decoder_layers=1,
  )
  config = RewardModelConfig(
    lm=lm,
    adapter=AdapterConfig(cf_width=WIDTH, hidden_width=8),
    soft_token_id=vocabulary.soft_token_id,
    kind='personalization',
  )
  return RewardModel(config, rngs=nnx.Rngs(0))


def test_a_reward_model_scores_as_when_called_alone(vocabulary, reward_model):
  build = prompt_builder('personalization')
  term = LearnedTerm.from_model(
    'personalization',
    reward_model,
    LearnedTermConfig(**LENGTHS | {'prompt_length': 96}, batch_size=4),
    vocabulary=vocabulary,
    build_prompt=build,
    cf_lookup=_lookup,
  )
  requests = [_request('slow films', number=2), _request('warm', number=5)]
  values = term(requests).values
  # One row, its own lengths: neither padding nor neighbours matter.
  tokens = vocabulary.encode(build(requests[0]).text)
  response = [*vocabulary.encode('slow films'), vocabulary.eos_id]
  vectors = [[_lookup('user', 'u2'), _lookup('item', 'i2')]]
  graphdef, state = nnx.split(reward_model)
  alone = jax.jit(lambda s, *inputs: nnx.merge(graphdef, s)(*inputs))(
    state,
    jnp.array([tokens]),
    jnp.array([response]),
    jnp.array(vectors, jnp.float32),
    jnp.array([[0, 1]]),
  )
  np.testing.assert_allclose(values[0], alone[0], rtol=1e-4, atol=1e-6)
  assert abs(values[0] - values[1]) > 1e-6
  # Two responses to each prompt, whose prompts the model then reads once.
  more = [_request('a warm boat', number=k) for k in (2, 5)]
  grouped = term([requests[0], more[0], requests[1], more[1]]).values
  np.testing.assert_allclose(grouped[::2], values, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(
    grouped[1::2], term(more).values, rtol=1e-4, atol=1e-6
  )


def _grouped(prompts, responses):
  return [
    _request(f'{"slow " * (g % 3)}films {g} of {b}', number=b)
    for b in range(prompts)
    for g in range(responses)
  ]


@pytest.mark.parametrize('prompts', [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize('responses', [2, 3, 4, 8, 12])
def test_repeated_prompts_change_no_value(vocabulary, prompts, responses):
  """Also where a chunk is not filled, or G does not divide the batch."""
  term = _term(vocabulary, batch_size=8)
  requests = _grouped(prompts, responses)
  one_by_one = [term([request]).values[0] for request in requests]
  found = term(requests)
  np.testing.assert_allclose(found.values, one_by_one, rtol=1e-6)
  assert found.valid.all()


def test_a_prompt_is_read_once_for_all_its_responses(vocabulary):
  shapes = []

  def spy(params, prompts, responses, *cf):
    shapes.append((prompts.shape[0], responses.shape[0]))
    return _weighted_sum(params, prompts, responses, *cf)

  term = _term(vocabulary, apply_fn=spy, batch_size=8)
  # Chunks are of two prompts, so these have 1, 1, 2 and 4 of them.
  for prompts in (1, 2, 3, 7):
    term(_grouped(prompts, 4))
  assert shapes == [(2, 8)] and term.num_compilations == 1
  # A prompt of one response after prompts of four: rows of their own.
  mixed = [*_grouped(2, 4), _request('slow', number=9)]
  term(mixed)
  assert shapes[1:] == [(8, 8)]
  compiled = _term(vocabulary, batch_size=8)
  compiled.compile(mixed[0], repeats=4)
  compiled(_grouped(3, 4))
  assert compiled.num_compilations == 1


def test_the_same_prompt_for_another_user_is_another(vocabulary):
  """The text of a prompt does not tell whose CF vectors fill it."""
  requests = [_request('slow', number=k) for k in (1, 2)]
  values = _term(vocabulary)(requests).values
  assert values[0] != values[1]


@given(
  counts=st.lists(st.integers(1, 6), min_size=1, max_size=5),
  batch_size=st.sampled_from([1, 4, 6, 12]),
)
def test_repeats_are_the_most_that_divide_everything(counts, batch_size):
  keys = [k for k, count in enumerate(counts) for _ in range(count)]
  found = repeats_of_each(keys, batch_size)
  divides = [
    g
    for g in range(1, batch_size + 1)
    if batch_size % g == 0 and all(count % g == 0 for count in counts)
  ]
  assert found == max(divides)


def test_texts_are_tokenized_once(vocabulary):
  texts = []

  class Counting:
    def encode(self, text):
      texts.append(text)
      return vocabulary.encode(text)

  encoder = CachingEncoder(Counting())
  for k in range(100):
    text = f'film {k % 50}'
    assert encoder.encode(text) == tuple(vocabulary.encode(text))
  assert len(texts) == 50


def test_the_mean_of_a_population_is_taken_off_before_a_score_is_read(
  vocabulary,
):
  requests = [_request('slow films'), _request('a warm comedy')]
  scores = _term(vocabulary)(requests).values.astype(np.float64)
  centred = _term(vocabulary, population_mean=0.75)(requests).values
  np.testing.assert_allclose(centred, scores - 0.75, rtol=1e-6)
  read = _term(
    vocabulary, population_mean=0.75, output='probability', temperature=2.0
  )
  expected = special.expit((scores - 0.75) / 2.0)
  np.testing.assert_allclose(read(requests).values, expected, rtol=1e-5)


@pytest.mark.parametrize(
  'options,named',
  [
    ({'output': 'odds'}, 'output'),
    ({'overlong': 'drop'}, 'overlong'),
    ({'prompt_length': 0}, 'prompt_length'),
    ({'response_length': 0}, 'response_length'),
    ({'temperature': 0.0}, 'temperature'),
    ({'population_mean': float('nan')}, 'population_mean'),
    ({'length_buckets': (64,)}, 'length_buckets'),
  ],
)
def test_bad_choices_are_named(options, named):
  with pytest.raises(UserError, match=named):
    LearnedTermConfig(**(LENGTHS | options))
