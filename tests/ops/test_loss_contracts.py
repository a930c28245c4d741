"""What every loss owes: jit, gradient, mask, extremes, all-masked.

The values themselves are tested beside each loss's own oracle.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p4lm.ops import (
  contrastive,
  critics,
  kl,
  policy_gradient,
  preference,
  relative_rewards,
  sampled_softmax,
  supervised,
)


@dataclasses.dataclass(frozen=True)
class LossCase:
  """A loss as a function of differentiable arrays, constants and a mask.

  Attributes:
    loss: called with (differentiable, constants, mask).
    shapes: of the differentiable arrays; the mask has the first axes of them.
    constant_shapes: of the others.
    mask_ndim: how many leading axes the mask has.
    largest: an input size at which the loss must still be finite.
  """

  loss: Callable
  shapes: tuple = ((6,),)
  constant_shapes: tuple = ()
  mask_ndim: int = 1
  largest: float = 1e4


_TOKENS = jnp.array([[0, 2, 1], [3, 1, 0], [2, 2, 2], [1, 0, 3]])
_BL = (4, 3)
_CANDIDATES = jnp.array([3, 0, 3, 1, 2, 0, 4, 3])


CASES = {
  'bradley_terry': LossCase(
    lambda x, c, m: preference.bradley_terry_loss(*x, pair_mask=m),
    shapes=((6,), (6,)),
  ),
  'bradley_terry_options': LossCase(
    lambda x, c, m: preference.bradley_terry_loss(
      *x, pair_mask=m, margin=c[0], label_smoothing=0.1, centring=0.05
    ),
    shapes=((6,), (6,)),
    constant_shapes=((6,),),
  ),
  'bradley_terry_flips': LossCase(
    lambda x, c, m: preference.bradley_terry_loss(
      *x, pair_mask=m, flip_rate=0.2
    ),
    shapes=((6,), (6,)),
  ),
  'bradley_terry_ties': LossCase(
    lambda x, c, m: preference.bradley_terry_loss(
      *x, pair_mask=m, tie_mask=c[0] > 0, tie_odds=0.5
    ),
    shapes=((6,), (6,)),
    constant_shapes=((6,),),
  ),
  'binary_cross_entropy': LossCase(
    lambda x, c, m: supervised.binary_cross_entropy(
      x[0], c[0], example_mask=m, label_smoothing=0.1
    ),
    constant_shapes=((6,),),
  ),
  'squared_error': LossCase(
    lambda x, c, m: supervised.squared_error(x[0], c[0], example_mask=m),
    constant_shapes=((6,),),
  ),
  'huber': LossCase(
    lambda x, c, m: supervised.huber_loss(
      x[0], c[0], example_mask=m, delta=0.5
    ),
    constant_shapes=((6,),),
  ),
  'token_cross_entropy': LossCase(
    lambda x, c, m: supervised.token_cross_entropy(
      x[0], _TOKENS, response_mask=m, z_loss=1e-2
    ),
    shapes=((*_BL, 5),),
    mask_ndim=2,
  ),
  'kl_k2': LossCase(
    lambda x, c, m: kl.kl_loss(x[0], c[0], mask=m, estimator='k2'),
    shapes=(_BL,),
    constant_shapes=(_BL,),
    mask_ndim=2,
  ),
  'kl_k3': LossCase(
    lambda x, c, m: kl.kl_loss(x[0], c[0], mask=m, estimator='k3'),
    shapes=(_BL,),
    constant_shapes=(_BL,),
    mask_ndim=2,
    # exp(80) is representable; a log-ratio of -100 is not a KL to train on.
    largest=30.0,
  ),
  'reinforce': LossCase(
    lambda x, c, m: policy_gradient.reinforce_loss(x[0], c[0], response_mask=m),
    shapes=(_BL,),
    constant_shapes=(_BL,),
    mask_ndim=2,
  ),
  'reinforce_token': LossCase(
    lambda x, c, m: policy_gradient.reinforce_loss(
      x[0], c[0], response_mask=m, aggregation='token'
    ),
    shapes=(_BL,),
    constant_shapes=(_BL,),
    mask_ndim=2,
  ),
  'ppo_clip': LossCase(
    lambda x, c, m: policy_gradient.ppo_clip_loss(
      x[0], c[0], c[1], response_mask=m
    ),
    shapes=(_BL,),
    constant_shapes=(_BL, _BL),
    mask_ndim=2,
    largest=30.0,
  ),
  'ppo_clip_response_mean': LossCase(
    lambda x, c, m: policy_gradient.ppo_clip_loss(
      x[0], c[0], c[1], response_mask=m, aggregation='response_mean'
    ),
    shapes=(_BL,),
    constant_shapes=(_BL, _BL),
    mask_ndim=2,
    largest=30.0,
  ),
  'kl_k3_weighted': LossCase(
    lambda x, c, m: kl.kl_loss(
      x[0],
      c[0],
      mask=m,
      estimator='k3',
      aggregation='response_mean',
      row_weights=jnp.arange(4.0),
    ),
    shapes=(_BL,),
    constant_shapes=(_BL,),
    mask_ndim=2,
    largest=30.0,
  ),
  **{
    f'rebel_{pairs}': LossCase(
      lambda x, c, m, pairs=pairs: relative_rewards.rebel_loss(
        x[0],
        *c,
        valid=m,
        group_size=3 if pairs == 'all' else 2,
        eta=0.5,
        pairs=pairs,
      ),
      constant_shapes=((6,), (6,)),
    )
    for pairs in ('all', 'neighbours')
  },
  'critic': LossCase(
    lambda x, c, m: critics.critic_loss(x[0], c[0], mask=m),
    shapes=(_BL,),
    constant_shapes=(_BL,),
    mask_ndim=2,
  ),
  'conservative': LossCase(
    lambda x, c, m: critics.conservative_penalty(
      x[0][None], _TOKENS, c[0], response_mask=m
    ),
    shapes=((*_BL, 5),),
    constant_shapes=((*_BL, 5),),
    mask_ndim=2,
  ),
  **{
    f'distillation_{direction}': LossCase(
      lambda x, c, m, direction=direction: critics.distillation_loss(
        x[0], c[0], response_mask=m, direction=direction
      ),
      shapes=((*_BL, 5),),
      constant_shapes=((*_BL, 5),),
      mask_ndim=2,
      # Log-probabilities: exp of them must be representable.
      largest=20.0,
    )
    for direction in ('reverse', 'forward')
  },
  'info_nce': LossCase(
    lambda x, c, m: contrastive.info_nce_loss(*x, example_mask=m),
    shapes=((6, 4), (6, 4)),
  ),
  **{
    f'sampled_softmax_{correction}': LossCase(
      lambda x, c, m, correction=correction: (
        sampled_softmax.sampled_softmax_loss(
          x[0],
          _CANDIDATES,
          jnp.log(1.0 + _CANDIDATES),
          example_mask=m,
          example_weights=jnp.abs(c[0]),
          correction=correction,
        )
      ),
      shapes=((6, 8),),
      constant_shapes=((6,),),
    )
    for correction in ('importance', 'posterior', 'none')
  },
}


def _inputs(case, dtype=jnp.float32, scale=1.0):
  generator = np.random.default_rng(7)

  def draw(shape):
    return jnp.asarray(scale * generator.normal(size=shape), dtype)

  mask_shape = case.shapes[0][: case.mask_ndim]
  mask = np.ones(mask_shape, bool)
  mask.reshape(-1)[[1, -1]] = False
  return (
    tuple(draw(s) for s in case.shapes),
    tuple(draw(s) for s in case.constant_shapes),
    jnp.asarray(mask),
  )


def _poison(arrays, mask, value):
  """`value` in every entry that the mask hides."""
  poisoned = []
  for array in arrays:
    changed = np.array(array)
    changed[~np.asarray(mask)] = value
    poisoned.append(jnp.asarray(changed))
  return tuple(poisoned)


@pytest.fixture(params=CASES, name='case', scope='module')
def _case(request):
  return CASES[request.param]


@pytest.fixture(name='compiled', scope='module')
def _compiled(case):
  """Value and gradient, compiled once for all float32 tests of a case."""
  return jax.jit(jax.value_and_grad(case.loss))


def test_jit_and_value_dtype(case, compiled):
  variables, constants, mask = _inputs(case)
  plain = case.loss(variables, constants, mask)
  fast, _ = compiled(variables, constants, mask)
  assert plain.shape == ()
  assert plain.dtype == jnp.float32
  np.testing.assert_allclose(fast, plain, rtol=1e-6)


def test_low_precision_inputs_are_summed_in_float32(case, compiled):
  variables, constants, mask = _inputs(case, dtype=jnp.bfloat16)
  loss = jax.jit(case.loss)(variables, constants, mask)
  raised = jax.tree.map(lambda a: a.astype(jnp.float32), (variables, constants))
  assert loss.dtype == jnp.float32
  np.testing.assert_allclose(loss, compiled(*raised, mask)[0], rtol=1e-6)


def test_gradient_is_the_finite_difference(case):
  with jax.enable_x64(True):
    variables, constants, mask = _inputs(case, dtype=jnp.float64)
    loss_and_gradient = jax.jit(jax.value_and_grad(case.loss))
    _, gradient = loss_and_gradient(variables, constants, mask)
    step = 1e-6
    generator = np.random.default_rng(3)
    directions = tuple(
      jnp.asarray(generator.normal(size=v.shape)) for v in variables
    )
    slope = sum(jnp.vdot(g, d) for g, d in zip(gradient, directions))

    def moved(by):
      shifted = tuple(v + by * d for v, d in zip(variables, directions))
      return loss_and_gradient(shifted, constants, mask)[0]

    difference = (moved(step) - moved(-step)) / (2 * step)
    np.testing.assert_allclose(slope, difference, rtol=1e-6, atol=1e-9)


def test_padding_touches_neither_loss_nor_gradient(case, compiled):
  variables, constants, mask = _inputs(case)
  clean = compiled(variables, constants, mask)
  for padding in (np.nan, np.inf, -np.inf, 1e30):
    dirty = compiled(
      _poison(variables, mask, padding), _poison(constants, mask, padding), mask
    )
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
  for slope in clean[1]:
    assert not np.any(np.asarray(slope)[~np.asarray(mask)])


def test_extremes_stay_finite(case, compiled):
  variables, constants, mask = _inputs(case, scale=case.largest)
  loss, gradient = compiled(variables, constants, mask)
  assert np.isfinite(loss)
  assert all(np.isfinite(g).all() for g in gradient)


def test_all_masked_is_zero(case, compiled):
  variables, constants, mask = _inputs(case)
  nothing = jnp.zeros_like(mask)
  loss, gradient = compiled(
    _poison(variables, nothing, jnp.nan), constants, nothing
  )
  assert loss == 0
  assert all(not np.any(g) for g in gradient)
