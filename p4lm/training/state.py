"""What a training step reads and replaces."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from p4lm.typing import PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """One point of a training, enough to go on from it bit for bit.

  Attributes:
    step: int32 [], updates done.
    params: the arrays that are trained, in any tree.
    frozen: arrays that the loss reads and nothing changes; may be empty.
    opt_state: of the optimizer, over `params`.
    key: the run's random key. It is never consumed: step s uses
      `fold_in(key, s)`, so randomness depends on the step and on nothing else.
  """

  step: jax.Array
  params: PyTree
  frozen: PyTree
  opt_state: PyTree
  key: jax.Array

  @classmethod
  def create(
    cls,
    params: PyTree,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    *,
    frozen: PyTree = None,
  ) -> TrainState:
    """The state before the first step.

    Parameters are copied, since a step gives its input's memory to its output;
    the caller's arrays stay valid (an RL anchor often shares them). Frozen
    arrays are shared. Optimizer moments lie on the devices as their parameters
    do.
    """
    params = jax.tree.map(jnp.copy, params)
    init = jax.jit(
      optimizer.init, out_shardings=_opt_state_shardings(optimizer, params)
    )
    return cls(
      step=jnp.zeros((), jnp.int32),
      params=params,
      frozen={} if frozen is None else frozen,
      opt_state=init(params),
      key=jnp.copy(key),
    )

  def checkpoint_items(self) -> dict[str, PyTree]:
    """The named items of a checkpoint of this state."""
    return {
      'params': self.params,
      'frozen': self.frozen,
      'opt_state': self.opt_state,
      'rng': {'key': self.key, 'step': self.step},
    }

  def with_items(self, items: dict[str, PyTree]) -> TrainState:
    """The state of a checkpoint's items; the inverse of `checkpoint_items`."""
    return TrainState(
      step=items['rng']['step'],
      params=items['params'],
      frozen=items['frozen'],
      opt_state=items['opt_state'],
      key=items['rng']['key'],
    )


def _opt_state_shardings(optimizer, params: PyTree) -> PyTree:
  """Shardings of the optimizer state, or None when all is on one device."""
  shardings = jax.tree.map(lambda leaf: getattr(leaf, 'sharding', None), params)
  meshes = {
    sharding.mesh
    for sharding in jax.tree.leaves(shardings)
    if isinstance(sharding, jax.sharding.NamedSharding)
  }
  if not meshes:
    return None
  mesh = meshes.pop()
  replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

  def of_moment(moment, param):
    # Adafactor keeps row and column sums: another rank than the parameter.
    same = np.shape(moment) == np.shape(param)
    return param.sharding if same else replicated

  return optax.tree_map_params(
    optimizer,
    of_moment,
    jax.eval_shape(optimizer.init, params),
    params,
    transform_non_params=lambda _: replicated,
  )
