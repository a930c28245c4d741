"""Sampler, scorer and REINFORCE on a real, tiny recommender."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from p4lm.decoding.sampler import SamplerConfig, sample
from p4lm.errors import UserError
from p4lm.models.adapter import AdapterConfig
from p4lm.models.recommender import Recommender, RecommenderConfig
from p4lm.models.selection import split_trainable
from p4lm.models.t5_config import T5Config
from p4lm.rewards.joint import JointReward, JointRewardConfig
from p4lm.rewards.terms import CallableTerm, RewardRequest
from p4lm.rl.eos import EosContract
from p4lm.rl.reinforce import ReinforceConfig, make_reinforce_loss
from p4lm.rl.rollouts import collect_rollout
from p4lm.rl.scoring import policy_score_fn, reference_fn

VOCABULARY, EOS_ID, SOFT_ID, WANTED = 24, 1, 23, 7
SAMPLING = SamplerConfig(
  max_length=6, temperature=0.8, num_samples=8, min_length=1
)


@pytest.fixture(name='model', scope='module')
def _model():
  lm = T5Config(
    vocab_size=VOCABULARY,
    d_model=16,
    d_ff=32,
    num_heads=2,
    d_kv=8,
    num_encoder_layers=1,
    num_decoder_layers=1,
  )
  config = RecommenderConfig(
    lm, AdapterConfig(cf_width=3, hidden_width=8), SOFT_ID
  )
  return split_trainable(Recommender(config, rngs=nnx.Rngs(0)), 'full')


PROMPTS = {
  'prompt_tokens': jnp.array([[5, SOFT_ID, 6, 0], [SOFT_ID, 8, 9, 10]]),
  'cf_embeddings': jnp.asarray(
    np.random.default_rng(0).normal(size=(2, 1, 3)), jnp.float32
  ),
  'cf_kind_ids': jnp.array([[0], [1]]),
}
SUBJECTS = [RewardRequest('', f'i{k}', f'u{k}') for k in range(2)]


def _share_wanted(request):
  words = request.text.split()
  return sum(w == str(WANTED) for w in words) / max(len(words), 1)


def _collect(model, params, key, config=SAMPLING):
  graphdef, start, frozen = model
  joint = JointReward(
    [CallableTerm('wanted', _share_wanted)],
    JointRewardConfig(weights={'wanted': 1.0}),
  )
  return collect_rollout(
    PROMPTS,
    SUBJECTS,
    key,
    sample_fn=lambda prompts, key: sample(
      graphdef, (params, frozen), prompts, key, config, EOS_ID
    ),
    reference_fn=reference_fn(graphdef, (start, frozen), config, EOS_ID),
    decode_fn=lambda row: ' '.join(str(t) for t in row if t > 1),
    reward_fn=joint,
    eos_id=EOS_ID,
    eos_contract=EosContract('score_anyway'),
  )


@pytest.mark.parametrize(
  'options', [{}, {'top_p': 0.7}, {'top_k': 5, 'num_tokens': 20}]
)
def test_the_learner_replays_the_samplers_log_probabilities(model, options):
  graphdef, params, frozen = model
  config = dataclasses.replace(SAMPLING, **options)
  rollout = _collect(model, params, jax.random.key(1), config).rollout
  score_fn = policy_score_fn(graphdef, config, EOS_ID)
  loss_fn = make_reinforce_loss(score_fn)
  _, metrics = loss_fn(params, frozen, rollout, None)
  assert metrics['share_valid'] == 1
  assert metrics['drift_max'] < 1e-5
  if not options:
    # The anchor is the policy itself.
    assert abs(metrics['kl']) < 1e-5
    assert metrics['kl_k3'] < 1e-5
  if 'top_p' in options:
    # Replaying the untruncated policy would not match.
    plain = policy_score_fn(graphdef, SAMPLING, EOS_ID)
    _, metrics = make_reinforce_loss(plain)(params, frozen, rollout, None)
    assert metrics['drift_max'] > 0.01


def test_reinforce_raises_its_reward_and_stays_near_the_anchor(model):
  graphdef, params, frozen = model
  loss_fn = make_reinforce_loss(
    policy_score_fn(graphdef, SAMPLING, EOS_ID),
    ReinforceConfig(kl_coefficient=0.01),
  )

  @functools.partial(jax.jit, donate_argnums=1)
  def update(params, momentum, rollout):
    gradient, metrics = jax.grad(loss_fn, has_aux=True)(
      params, frozen, rollout, None
    )
    momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, gradient)
    params = jax.tree.map(lambda p, m: p - 0.05 * m, params, momentum)
    return params, momentum, metrics

  momentum = jax.tree.map(jnp.zeros_like, params)
  rewards = []
  for step in range(40):
    collected = _collect(model, params, jax.random.key(step))
    params, momentum, metrics = update(params, momentum, collected.rollout)
    rewards.append(float(metrics['reward']))
  assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.3
  assert update._cache_size() == 1
  assert 0 < metrics['kl'] < 20


def test_greedy_sampling_is_refused(model):
  greedy = SamplerConfig(max_length=4, greedy=True)
  with pytest.raises(UserError, match='greedy'):
    policy_score_fn(model[0], greedy, EOS_ID)
  with pytest.raises(UserError, match='greedy'):
    reference_fn(model[0], model[1], greedy, EOS_ID)
