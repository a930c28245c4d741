"""Losses of the reward kinds, with a model whose scores are its inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p4lm.errors import UserError
from p4lm.ops import preference, supervised
from p4lm.rewards.losses import RewardLossConfig, make_reward_loss

SCORES = {1: 0.5, 2: -1.0, 3: 2.0}


def _apply_fn(params, frozen, prompts, responses, cf_embeddings, cf_kind_ids):
  """Score of a response: a table entry of its token, plus what its prompt is.

  A prompt adds its CF vector and a tenth of its token; G responses in a row
  share it.
  """
  table = params + frozen
  prompt = cf_embeddings.sum((1, 2)) * (1 + cf_kind_ids[0, 0])
  prompt += prompts[:, 0] / 10
  repeats = responses.shape[0] // prompts.shape[0]
  return table[responses[:, 0]] + jnp.repeat(prompt, repeats)


PARAMS = jnp.array([0.0, 0.5, -1.0, 2.0])
FROZEN = jnp.zeros(4)
CF = jnp.array([[[0.5]], [[-1.0]], [[0.5]]])
PROMPTS = jnp.array([[5], [10], [15]])  # Prompts add 1, 0 and 2 in all.
KINDS = jnp.zeros((3, 1), jnp.int32)


def _pointwise(labels, **extra):
  return {
    'prompt_tokens': PROMPTS,
    'response_tokens': jnp.array([[1], [2], [3]]),
    'labels': jnp.array(labels),
    'cf_embeddings': CF,
    'cf_kind_ids': KINDS,
  } | extra


def _pairwise(**extra):
  return {
    'prompt_tokens': PROMPTS,
    'chosen_tokens': jnp.array([[1], [2], [3]]),
    'rejected_tokens': jnp.array([[2], [3], [1]]),
    'cf_embeddings': CF,
    'cf_kind_ids': KINDS,
  } | extra


def _run(kind, batch, config=None):
  loss_fn = make_reward_loss(kind, _apply_fn, config)
  (loss, metrics), slope = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(
    PARAMS, FROZEN, batch, None
  )
  return float(loss), {k: float(v) for k, v in metrics.items()}, slope


def test_nli_is_binary_cross_entropy():
  loss, metrics, slope = _run('nli', _pointwise([1.0, 1.0, 0.0]))
  logits = np.array([1.5, -1.0, 4.0])
  expected = np.mean(np.log1p(np.exp([-1.5, 1.0, 4.0])))
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  np.testing.assert_allclose(metrics['nll'], expected, rtol=1e-6)
  np.testing.assert_allclose(metrics['accuracy'], 1 / 3, rtol=1e-6)
  p = 1 / (1 + np.exp(-logits))
  np.testing.assert_allclose(slope[1:], (p - [1, 1, 0]) / 3, rtol=1e-5)


@pytest.mark.parametrize('kind', ['appeal', 'personalization'])
def test_pairwise_kinds_are_bradley_terry(kind):
  config = RewardLossConfig(margin=0.2, centring=0.1)
  loss, metrics, _ = _run(kind, _pairwise(), config)
  chosen = jnp.array([1.5, -1.0, 4.0])
  rejected = jnp.array([0.0, 2.0, 2.5])
  everything = jnp.ones(3, bool)
  expected = preference.bradley_terry_loss(
    chosen, rejected, pair_mask=everything, margin=0.2, centring=0.1
  )
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  plain = preference.bradley_terry_loss(chosen, rejected, pair_mask=everything)
  np.testing.assert_allclose(metrics['nll'], plain, rtol=1e-6)
  np.testing.assert_allclose(metrics['accuracy'], 2 / 3, rtol=1e-6)
  np.testing.assert_allclose(metrics['mean_score'], 1.5, rtol=1e-6)


def test_relevance_is_squared_or_huber_error():
  targets = [1.0, -1.0, 1.0]
  loss, metrics, _ = _run('relevance', _pointwise(targets))
  np.testing.assert_allclose(loss, (0.25 + 0 + 9) / 3, rtol=1e-6)
  scores = np.array([1.5, -1.0, 4.0])
  np.testing.assert_allclose(
    metrics['correlation'], np.corrcoef(scores, targets)[0, 1], rtol=1e-5
  )
  config = RewardLossConfig(huber_delta=1.0)
  loss, metrics, _ = _run('relevance', _pointwise(targets), config)
  np.testing.assert_allclose(loss, (0.125 + 0 + 2.5) / 3, rtol=1e-6)
  np.testing.assert_allclose(metrics['squared_error'], 9.25 / 3, rtol=1e-6)


@pytest.mark.parametrize('kind', ['nli', 'appeal', 'relevance'])
def test_padded_examples_count_for_nothing(kind):
  mask = jnp.array([True, True, False])
  cf = CF.at[2].set(jnp.nan)
  batch = _pairwise() if kind == 'appeal' else _pointwise([1.0, 0.0, jnp.nan])
  batch |= {'example_mask': mask, 'cf_embeddings': cf}
  short = {k: v[:2] for k, v in batch.items() if k != 'example_mask'}
  padded, alone = _run(kind, batch), _run(kind, short)
  np.testing.assert_allclose(padded[0], alone[0], rtol=1e-6)
  np.testing.assert_allclose(padded[2], alone[2], rtol=1e-6)
  assert padded[1] == pytest.approx(alone[1], rel=1e-5)


def test_each_kind_learns_what_it_is_shown():
  """A few steps of gradient descent lower each loss."""
  for kind, batch in (
    ('nli', _pointwise([1.0, 1.0, 0.0])),
    ('appeal', _pairwise()),
    ('relevance', _pointwise([0.2, -0.3, 0.1])),
  ):
    loss_fn = make_reward_loss(kind, _apply_fn)
    step = jax.jit(jax.grad(lambda p, b, f=loss_fn: f(p, FROZEN, b, None)[0]))
    params = PARAMS
    for _ in range(20):
      params = params - 0.1 * step(params, batch)
    after, _ = loss_fn(params, FROZEN, batch, None)
    assert after < 0.9 * loss_fn(PARAMS, FROZEN, batch, None)[0]


def test_metrics_agree_with_ops_on_the_same_scores():
  _, metrics, _ = _run('relevance', _pointwise([1.0, 0.0, 2.0]))
  expected = supervised.pearson_correlation(
    jnp.array([1.5, -1.0, 4.0]),
    jnp.array([1.0, 0.0, 2.0]),
    example_mask=jnp.ones(3, bool),
  )
  np.testing.assert_allclose(metrics['correlation'], expected, rtol=1e-5)


def test_an_unknown_kind_is_named():
  with pytest.raises(UserError, match="relevance, got 'ndcg'"):
    make_reward_loss('ndcg', _apply_fn)


@pytest.mark.parametrize('kind', ['nli', 'appeal', 'relevance'])
def test_dropout_reads_the_key_of_the_step(kind):
  def dropped(*inputs, dropout_key):
    scores = _apply_fn(*inputs)
    return jnp.where(
      jax.random.bernoulli(dropout_key, 0.5, scores.shape), scores, 0.0
    )

  batch = _pairwise() if kind == 'appeal' else _pointwise([1.0, 0.0, 1.0])
  loss_fn = make_reward_loss(kind, dropped, with_dropout=True)
  losses = [
    float(loss_fn(PARAMS, FROZEN, batch, jax.random.key(seed))[0])
    for seed in (0, 0, 1, 2, 3)
  ]
  assert losses[0] == losses[1]
  assert len(set(losses)) > 1


def _two_heads(params, frozen, *inputs):
  scores = _apply_fn(params[0], frozen, *inputs)
  return jnp.stack([scores, _apply_fn(params[1], frozen, *inputs)], axis=1)


@pytest.mark.parametrize('kind', ['nli', 'appeal', 'relevance'])
def test_each_head_has_a_loss_of_its_own(kind):
  batch = _pairwise() if kind == 'appeal' else _pointwise([1.0, 0.0, 1.0])
  tables = jnp.stack([PARAMS, jnp.array([0.0, -2.0, 1.0, 0.25])])
  loss_fn = make_reward_loss(kind, _two_heads)
  loss, slope = jax.value_and_grad(loss_fn, has_aux=True)(
    tables, FROZEN, batch, None
  )
  single = make_reward_loss(kind, _apply_fn)
  each = [
    jax.value_and_grad(single, has_aux=True)(table, FROZEN, batch, None)
    for table in tables
  ]
  np.testing.assert_allclose(
    loss[0], np.mean([found[0][0] for found in each]), rtol=1e-6
  )
  for head, found in enumerate(each):
    np.testing.assert_allclose(slope[head], found[1] / 2, rtol=1e-5)


def test_a_tie_is_told_by_its_label():
  config = RewardLossConfig(tie_odds=0.5)
  ties = _pairwise(labels=jnp.array([1.0, 0.5, 1.0]))
  loss, metrics, _ = _run('appeal', ties, config)
  chosen, rejected = jnp.array([0.5, -1.0, 2.0]), jnp.array([-1.0, 2.0, 0.5])
  expected = preference.bradley_terry_loss(
    chosen,
    rejected,
    pair_mask=jnp.ones(3, bool),
    tie_mask=jnp.array([False, True, False]),
    tie_odds=0.5,
  )
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  # Of the pairs with a winner both are right.
  assert metrics['accuracy'] == 1.0


def _points(params, frozen, prompts, responses, cf_embeddings, cf_kind_ids):
  """The point of a response is the row of its token."""
  return (params + frozen)[responses[:, 0]]


def test_general_preferences_learn_a_cycle_of_texts():
  """1 beats 2, 2 beats 3, 3 beats 1, as no scores on a line can have it."""
  loss_fn = make_reward_loss('appeal', _points, preference_model='general')
  batch = _pairwise()
  update = jax.jit(
    lambda p: p - 2.0 * jax.grad(lambda p: loss_fn(p, 0.0, batch, None)[0])(p)
  )
  points = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)))
  for _ in range(200):
    points = update(points)
  _, metrics = loss_fn(points, 0.0, batch, None)
  assert metrics['accuracy'] == 1.0 and metrics['nll'] < 0.1
  line = jnp.asarray(np.random.default_rng(0).normal(size=4))
  scores = make_reward_loss('appeal', _points)
  update = jax.jit(
    lambda p: p - 2.0 * jax.grad(lambda p: scores(p, 0.0, batch, None)[0])(p)
  )
  for _ in range(200):
    line = update(line)
  np.testing.assert_allclose(line[1:] - line[1], 0, atol=1e-3)


def test_general_preferences_have_no_shift_to_settle():
  with pytest.raises(UserError, match='set it to 0, not 0.1'):
    make_reward_loss(
      'appeal',
      _points,
      RewardLossConfig(centring=0.1),
      preference_model='general',
    )
