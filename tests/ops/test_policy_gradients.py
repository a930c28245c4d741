import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p4lm.ops import policy_gradient

MASK = jnp.array([[True, True], [True, False], [False, False]])
LOGPS = jnp.array([[-1.0, -2.0], [-3.0, jnp.nan], [jnp.nan, jnp.nan]])
ADVANTAGES = jnp.array([[2.0, 2.0], [-1.0, jnp.inf], [jnp.nan, 0.0]])


def test_reinforce_by_hand():
  # Row sums -6 and 3: two responses count, three tokens.
  loss = policy_gradient.reinforce_loss(LOGPS, ADVANTAGES, response_mask=MASK)
  np.testing.assert_allclose(loss, 1.5)
  by_token = policy_gradient.reinforce_loss(
    LOGPS, ADVANTAGES, response_mask=MASK, aggregation='token'
  )
  np.testing.assert_allclose(by_token, 1.0)


def test_no_gradient_flows_into_advantages():
  slope = jax.grad(
    lambda a: policy_gradient.reinforce_loss(LOGPS, a, response_mask=MASK)
  )(ADVANTAGES)
  np.testing.assert_array_equal(slope, np.zeros((3, 2)))


def test_ppo_on_policy_has_the_reinforce_gradient():
  behavior = jnp.where(MASK, LOGPS, 0.0)
  ppo = jax.grad(
    lambda x: policy_gradient.ppo_clip_loss(
      x, behavior, ADVANTAGES, response_mask=MASK
    )
  )(behavior)
  reinforce = jax.grad(
    lambda x: policy_gradient.reinforce_loss(x, ADVANTAGES, response_mask=MASK)
  )(behavior)
  np.testing.assert_allclose(ppo, reinforce, rtol=1e-6)


@pytest.mark.parametrize(
  'ratio,advantage,loss,moves',
  [
    (1.5, 1.0, -1.2, False),  # already encouraged enough
    (0.5, 1.0, -0.5, True),  # a good token that lost mass is brought back
    (0.5, -1.0, 0.8, False),  # already discouraged enough
    (1.5, -1.0, 1.5, True),
  ],
)
def test_ppo_clips_only_what_went_too_far(ratio, advantage, loss, moves):
  one = jnp.ones((1, 1), bool)
  value, slope = jax.value_and_grad(
    lambda x: policy_gradient.ppo_clip_loss(
      x, jnp.zeros((1, 1)), jnp.full((1, 1), advantage), response_mask=one
    )
  )(jnp.log(jnp.full((1, 1), ratio)))
  np.testing.assert_allclose(value, loss, rtol=1e-6)
  assert bool(slope[0, 0] != 0) == moves


def test_bad_options_are_named():
  with pytest.raises(ValueError, match="'sum'"):
    policy_gradient.reinforce_loss(
      LOGPS, ADVANTAGES, response_mask=MASK, aggregation='sum'
    )
  with pytest.raises(ValueError, match='clip_low'):
    policy_gradient.ppo_clip_loss(
      LOGPS, LOGPS, ADVANTAGES, response_mask=MASK, clip_low=1.0
    )
  with pytest.raises(ValueError, match='response_mask'):
    policy_gradient.reinforce_loss(LOGPS, ADVANTAGES, response_mask=MASK[:2])
