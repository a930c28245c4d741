import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p4lm.errors import UserError
from p4lm.rewards.joint import JointReward, JointRewardConfig
from p4lm.rewards.terms import CallableTerm, RewardRequest
from p4lm.rl.eos import EosContract
from p4lm.rl.rollouts import Rollout, collect_rollout

# Two prompts, two samples each; EOS is 1. The second sample of the first
# prompt was cut off.
TOKENS = jnp.array([[5, 1, 0], [6, 7, 8], [9, 9, 1], [1, 0, 0]])
MASK = jnp.array(
  [[True, True, False], [True] * 3, [True] * 3, [True, False, False]]
)


class _Samples:
  response_tokens = TOKENS
  response_mask = MASK
  logps = jnp.where(MASK, -1.0, 0.0)


PROMPTS = {
  'prompt_tokens': jnp.ones((2, 4), jnp.int32),
  'cf_embeddings': jnp.ones((2, 1, 3)),
  'cf_kind_ids': jnp.zeros((2, 1), jnp.int32),
  'item_id': ['i0', 'i1'],
}
SUBJECTS = [
  RewardRequest('', 'i0', 'u0', {'title': 'A'}),
  RewardRequest('', 'i1', 'u1', {'title': 'B'}),
]


def _decode(row):
  return ' '.join(str(t) for t in row if t > 1)


def _collect(score=lambda r: len(r.text), contract=None, subjects=SUBJECTS):
  asked = []

  def spy(request):
    asked.append(request)
    return score(request)

  joint = JointReward(
    [CallableTerm('a', spy)], JointRewardConfig(weights={'a': 2.0})
  )
  collected = collect_rollout(
    PROMPTS,
    subjects,
    jax.random.key(0),
    sample_fn=lambda prompts, key: _Samples(),
    reference_fn=lambda prompts, tokens, mask: jnp.where(mask, -2.0, 0.0),
    decode_fn=_decode,
    reward_fn=joint,
    eos_id=1,
    eos_contract=contract,
  )
  return collected, asked


def test_each_sample_is_judged_for_its_own_prompt():
  collected, asked = _collect()
  assert list(collected.texts) == ['5', '6 7 8', '9 9', '']
  assert [(r.text, r.item_id, r.user_id, r.item) for r in asked] == [
    ('5', 'i0', 'u0', {'title': 'A'}),
    ('6 7 8', 'i0', 'u0', {'title': 'A'}),
    ('9 9', 'i1', 'u1', {'title': 'B'}),
    ('', 'i1', 'u1', {'title': 'B'}),
  ]


def test_the_eos_contract_is_applied_to_the_total():
  collected, _ = _collect()
  # Twice the length of the text, but the cut response earns nothing.
  np.testing.assert_array_equal(collected.rollout.rewards, [2, 0, 6, 0])
  np.testing.assert_array_equal(collected.judged.total, [2, 10, 6, 0])
  collected, _ = _collect(contract=EosContract('score_anyway'))
  np.testing.assert_array_equal(collected.rollout.rewards, [2, 10, 6, 0])


def test_length_is_paid_for_after_the_rule_for_cut_responses():
  contract = EosContract('score_anyway', overlong_from=1, overlong_penalty=4.0)
  collected, _ = _collect(contract=contract)
  # Lengths 2, 3, 3, 1 of at most 3 tokens.
  np.testing.assert_allclose(
    collected.rollout.rewards, [2 - 2, 10 - 4, 6 - 4, 0]
  )


def test_the_seconds_of_each_phase_are_told():
  metrics = _collect()[0].metrics
  phases = {name for name in metrics if name.startswith('secs/')}
  assert phases == {'secs/sample', 'secs/judge', 'secs/reference'}
  assert all(metrics[name] >= 0 for name in phases)


def test_a_sample_without_a_reward_is_masked_not_zero():
  collected, _ = _collect(lambda r: np.nan if r.text == '5' else 1.0)
  np.testing.assert_array_equal(
    collected.rollout.valid, [False, True, True, True]
  )
  assert collected.metrics['rollout/share_valid'] == 0.75
  assert collected.metrics['reward/a/share_valid'] == 0.75


def test_metrics():
  metrics = _collect()[0].metrics
  assert metrics['rollout/length'] == 2.25
  assert metrics['rollout/share_finished'] == 0.75
  assert metrics['rollout/share_distinct'] == 1
  assert metrics['rollout/share_empty'] == 0.25
  assert metrics['reward/a/mean'] == 2.25


def test_a_rollout_is_a_pytree_with_its_group_size():
  rollout = _collect()[0].rollout
  assert rollout.group_size == 2
  assert set(rollout.prompts) == {
    'prompt_tokens',
    'cf_embeddings',
    'cf_kind_ids',
  }
  leaves, structure = jax.tree.flatten(rollout)
  # Of a rollout without the optional ones: KL coefficients and values.
  assert len(leaves) == len(dataclasses.fields(Rollout)) - 2
  again = jax.tree.unflatten(structure, leaves)
  assert jax.jit(lambda r: r.rewards.sum())(again) == 8


def test_subjects_must_fit_the_prompts():
  with pytest.raises(UserError, match='each of 2 prompts, got 1'):
    _collect(subjects=SUBJECTS[:1])


def test_a_term_that_throws_stops_with_its_name():
  def broken(request):
    raise RuntimeError('no server')

  with pytest.raises(UserError, match="'a' failed.*no server"):
    _collect(broken)
