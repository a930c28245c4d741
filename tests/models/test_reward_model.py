"""Reward models: what a score depends on, starting from a recommender."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_models import CONFIG, LM, SOFT, make_batch, make_responses, tiny

from p4lm.errors import UserError
from p4lm.models.lora import apply_lora
from p4lm.models.reward_model import (
  RewardModel,
  RewardModelConfig,
  init_from_recommender,
)
from p4lm.partitioning.build import build_model
from p4lm.partitioning.rules import STANDARD_RULES
from p4lm.partitioning.shardings import logical_axes

REWARD = RewardModelConfig(
  lm=LM,
  adapter=CONFIG.adapter,
  soft_token_id=SOFT,
  kind='personalization',
)


def build(**changes):
  config = dataclasses.replace(REWARD, **changes)
  make = lambda: RewardModel(config, rngs=nnx.Rngs(0))
  return build_model(make, seed=1)


@jax.jit(static_argnums=0)
def head_scores(graphdef, state, batch, responses):
  return nnx.merge(graphdef, state).head_scores(
    batch['prompt_tokens'],
    responses,
    batch['cf_embeddings'],
    batch['cf_kind_ids'],
  )


def scores(model, batch, responses):
  return head_scores(*model, batch, responses)[:, 0]


# With and without the second reading that is for nobody.
@pytest.fixture(
  scope='module', name='model', params=['relevance', 'personalization']
)
def _model(request):
  return build(kind=request.param)


def ragged(rows=4, length=7):
  """Responses of lengths 7, 6, 5, 4, ..."""
  responses = np.array(make_responses(rows, length))
  for row in range(rows):
    responses[row, length - row % 4 :] = 0
  return jnp.asarray(responses)


def test_scores_do_not_see_padding_or_neighbours(model):
  batch, responses = make_batch(batch=4), ragged()
  expected = scores(model, batch, responses)
  assert expected.shape == (4,) and expected.dtype == jnp.float32
  assert float(expected.std()) > 1e-4
  wider = lambda x, more: jnp.pad(x, ((0, 0), (0, more)))
  padded = {**batch, 'prompt_tokens': wider(batch['prompt_tokens'], 5)}
  for found in (
    scores(model, padded, responses),
    scores(model, batch, wider(responses, 3)),
    scores(model, padded, wider(responses, 3)),
  ):
    np.testing.assert_allclose(found, expected, atol=2e-6)
  backwards = jax.tree.map(lambda x: x[::-1], (batch, responses))
  np.testing.assert_allclose(
    scores(model, *backwards)[::-1], expected, atol=2e-6
  )
  alone = jax.tree.map(lambda x: x[1:2], (batch, responses))
  np.testing.assert_allclose(scores(model, *alone), expected[1:2], atol=2e-6)


def test_every_token_the_last_one_too_changes_the_score(model):
  batch, responses = make_batch(batch=1), make_responses(1)
  found = [float(scores(model, batch, responses)[0])]
  for position in range(responses.shape[1]):
    token = 2 + (responses[0, position] - 1) % 58
    changed = responses.at[0, position].set(token)
    found.append(float(scores(model, batch, changed)[0]))
  assert np.abs(np.subtract.outer(found, found) + np.eye(8)).min() > 1e-6


def test_the_head_reads_the_state_after_a_token_not_before(model):
  """Without log-probabilities, the last token still changes the score."""
  graphdef, state = model
  module = nnx.merge(graphdef, state, copy=True)
  module.surprise_hidden.kernel[...] *= 0
  if module.gain_weight is not None:
    module.gain_weight[...] *= 0
  deaf = nnx.split(module)
  batch, responses = make_batch(batch=1), make_responses(1)
  changed = responses.at[0, -1].set(2 + (responses[0, -1] - 1) % 58)
  difference = scores(deaf, batch, changed) - scores(deaf, batch, responses)
  assert abs(float(difference[0])) > 1e-6


def test_scores_by_hand(model):
  """Each prefix decoded by itself; the head in NumPy."""
  module = nnx.merge(*model)
  batch, responses = make_batch(batch=1), make_responses(1, length=3)
  lm = module.recommender
  encode = lambda vectors: lm.encode(
    batch['prompt_tokens'], vectors, batch['cf_kind_ids']
  )
  encoded = encode(batch['cf_embeddings'])
  is_user = np.array(batch['cf_kind_ids'])[..., None] == 0
  assert is_user.any() and not is_user.all()
  nobody = encode(jnp.where(is_user, 0.0, batch['cf_embeddings']))
  contrasts = module.config.kind == 'personalization'

  def logp_of(encoded, t):
    logits = np.array(lm.decode(encoded, responses[:, : t + 1])[0, t])
    return logits[responses[0, t]] - np.log(np.exp(logits).sum())

  by_token, gains = [], []
  for t in range(3):
    # The last state of a longer response, whose own last token is unread.
    longer = jnp.concatenate([responses[:, : t + 1], jnp.ones((1, 1), int)], 1)
    state = np.array(lm.decode_hidden(encoded, longer)[0, -1])
    logp = logp_of(encoded, t)
    gains.append(logp - logp_of(nobody, t))
    hidden = state @ np.array(module.state_hidden.kernel[...])
    hidden += np.array(module.state_hidden.bias[...])
    hidden += logp * np.array(module.surprise_hidden.kernel[0])
    if contrasts:
      hidden += gains[t] * np.array(module.surprise_hidden.kernel[1])
    hidden = np.array(jax.nn.gelu(jnp.asarray(hidden)))
    score = hidden @ np.array(module.head_output.kernel[...])
    by_token.append(score + np.array(module.head_output.bias[...]))
  expected = np.mean(by_token, axis=0)
  if contrasts:
    assert abs(sum(gains)) > 1e-3
    expected = expected + sum(gains)  # The gain's weight is 1 at first.
  np.testing.assert_allclose(
    scores(model, batch, responses), expected, atol=1e-5
  )


def test_both_readings_are_trained():
  """With the head silent, the slope is that of the gain."""
  graphdef, state = build(kind='personalization')
  module = nnx.merge(graphdef, state, copy=True)
  for layer in (module.state_hidden, module.surprise_hidden):
    layer.kernel[...] *= 0
  graphdef, state = nnx.split(module)
  batch, responses = make_batch(batch=2), make_responses(2)
  is_user = np.array(batch['cf_kind_ids'])[..., None] == 0
  nobody = jnp.where(is_user, 0.0, batch['cf_embeddings'])

  def likelihood(lm, vectors):
    logits = lm(
      batch['prompt_tokens'], responses, vectors, batch['cf_kind_ids']
    )
    logps = jax.nn.log_softmax(logits)
    return jnp.take_along_axis(logps, responses[..., None], -1).sum()

  def gain(state):
    lm = nnx.merge(graphdef, state).recommender
    return likelihood(lm, batch['cf_embeddings']) - likelihood(lm, nobody)

  score = lambda s: head_scores(graphdef, s, batch, responses).sum()
  expected = jax.jit(jax.grad(gain))(state)['recommender']
  found = jax.jit(jax.grad(score))(state)['recommender']
  for one, other in zip(
    jax.tree.leaves(expected), jax.tree.leaves(found), strict=True
  ):
    np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5)


def test_responses_in_a_row_share_their_prompt(model):
  batch, responses = make_batch(batch=2), ragged(rows=6)
  repeated = jax.tree.map(lambda x: jnp.repeat(x, 3, axis=0), batch)
  # Personal fit is a difference of two sums of 7 log-probabilities of about
  # log 64 each, and float32 knows such a sum to within this.
  rounding = 7 * np.log(64) * np.finfo(np.float32).eps
  np.testing.assert_allclose(
    scores(model, batch, responses),
    scores(model, repeated, responses),
    rtol=0,
    atol=rounding,
  )


def test_a_response_without_tokens_has_a_finite_score_and_gradient(model):
  graphdef, state = model
  batch, responses = make_batch(batch=2), ragged(rows=2).at[1].set(0)
  total = lambda s: head_scores(graphdef, s, batch, responses).sum()
  value, slope = jax.jit(jax.value_and_grad(total))(state)
  assert scores(model, batch, responses)[1] == 0
  assert all(np.isfinite(x).all() for x in jax.tree.leaves((value, slope)))


def test_heads_average_to_the_score():
  graphdef, state = build(num_heads=3)
  batch, responses = make_batch(), make_responses()
  heads = head_scores(graphdef, state, batch, responses)
  assert heads.shape == (3, 3)
  assert float(heads.std(axis=1).min()) > 1e-4
  mean = nnx.merge(graphdef, state)(
    batch['prompt_tokens'],
    responses,
    batch['cf_embeddings'],
    batch['cf_kind_ids'],
  )
  np.testing.assert_allclose(mean, heads.mean(-1), atol=1e-5)


def assert_same_state(one, other):
  jax.tree.map(np.testing.assert_array_equal, nnx.state(one), nnx.state(other))


def test_a_reward_model_starts_from_a_recommender(model):
  module = nnx.merge(*model, copy=True)
  head = np.array(module.head_output.kernel[...])
  init_from_recommender(module, tiny().model)
  assert_same_state(module.recommender.lm, tiny().model.lm)
  assert_same_state(module.recommender.adapters, tiny().model.adapters)
  np.testing.assert_array_equal(module.head_output.kernel[...], head)
  # What it makes of a prompt and a response is the recommender's.
  batch, responses = make_batch(), make_responses()
  logits = module.recommender(
    batch['prompt_tokens'],
    responses,
    batch['cf_embeddings'],
    batch['cf_kind_ids'],
  )
  np.testing.assert_allclose(
    logits, tiny().logits(batch, responses), rtol=1e-4, atol=1e-4
  )


def test_a_text_only_reward_takes_the_language_model_alone():
  module = nnx.merge(*build(adapter=None, kind='nli'))
  init_from_recommender(module, tiny().model)
  assert module.recommender.adapters is None
  assert_same_state(module.recommender.lm, tiny().model.lm)


def test_another_shape_is_refused_by_name(model):
  wider = dataclasses.replace(LM, d_ff=30)
  with pytest.raises(UserError, match=r'ffn/wi_0/kernel is \(2, 16, 24\)'):
    init_from_recommender(nnx.merge(*build(lm=wider)), tiny().model)
  adapter = dataclasses.replace(CONFIG.adapter, cf_width=6)
  with pytest.raises(UserError, match=r'adapters/.* is \(5, .* \(6, '):
    init_from_recommender(nnx.merge(*build(adapter=adapter)), tiny().model)
  adapted = tiny().model
  apply_lora(adapted, 2, 4.0, rngs=nnx.Rngs(0))
  with pytest.raises(UserError, match='lora_a is .* absent here'):
    init_from_recommender(nnx.merge(*model, copy=True), adapted)


def test_every_axis_of_a_parameter_has_a_rule(model):
  for path, variable in nnx.to_flat_state(model[1]):
    names = logical_axes(variable)
    assert len(names) == variable.ndim, path
    assert set(names) <= STANDARD_RULES.keys(), path


def test_configuration_is_checked_and_survives_json():
  assert RewardModelConfig.from_json(REWARD.to_json()) == REWARD
  assert REWARD.recommender == CONFIG
  with pytest.raises(UserError, match="kind is 'fun'.*nli, appeal"):
    dataclasses.replace(REWARD, kind='fun')
  with pytest.raises(UserError, match='num_heads is 0'):
    dataclasses.replace(REWARD, num_heads=0)


@pytest.mark.parametrize(
  ('options', 'named'),
  [
    ({'preference': 'particular'}, "preference is 'particular'"),
    ({'preference': 'general'}, "even num_heads, got 'appeal' and 1"),
    (
      {'preference': 'general', 'kind': 'nli', 'num_heads': 2},
      "got 'nli' and 2",
    ),
  ],
)
def test_preferences_that_cannot_be_are_named(options, named):
  with pytest.raises(UserError, match=named):
    RewardModelConfig(LM, None, SOFT, **({'kind': 'appeal'} | options))


def test_coordinates_are_no_scores():
  config = RewardModelConfig(
    LM, None, SOFT, 'appeal', num_heads=2, preference='general'
  )
  assert RewardModelConfig.from_json(config.to_json()) == config
  make = lambda: RewardModel(config, rngs=nnx.Rngs(0))
  model = nnx.merge(*build_model(make, seed=1))
  batch = make_batch(vectors=0)
  with pytest.raises(UserError, match='read them with head_scores'):
    model(
      batch['prompt_tokens'],
      make_responses(),
      batch['cf_embeddings'],
      batch['cf_kind_ids'],
    )
