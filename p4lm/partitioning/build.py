"""Building a model's parameters, quickly and each shard in its place."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from p4lm.partitioning.rules import STANDARD_RULES, Rules
from p4lm.partitioning.shardings import is_variable, param_shardings
from p4lm.typing import Array, Key

# Parameters up to this size share one draw: the generator then compiles once
# instead of once a shape, which takes longer than everything else in building
# a small model. Larger ones are drawn alone, so that they are born sharded.
_SHARED_DRAW_SIZE = 2**22


def build_model(
  make_model: Callable[[], nnx.Module],
  seed: int = 0,
  mesh: Mesh | None = None,
  rules: Rules = STANDARD_RULES,
) -> tuple[nnx.GraphDef, nnx.State]:
  """The model that `make_model` describes, its parameters drawn from `seed`.

  `make_model` is traced for shapes only. Every parameter is then drawn from
  N(mean, stddev^2) as its `init_mean` and `init_stddev` metadata say, in one
  compiled call whose results are sharded as they are made: no device holds a
  whole parameter that is to be split. The values do not depend on the mesh.

  Args:
    make_model: makes the module; the rngs it gives are not used, so
      `lambda: Recommender(config, rngs=nnx.Rngs(0))` serves every seed.
    seed: of the parameters.
    mesh: where to put them; None for the default device.
    rules: logical name to mesh axes.

  Returns:
    graphdef and state: `nnx.merge(graphdef, state)` is the module.

  Raises:
    UserError: as `param_shardings` does, before anything is drawn.
  """
  graphdef, abstract = nnx.split(nnx.eval_shape(make_model))
  options = {}
  if mesh is not None:
    options['out_shardings'] = param_shardings(abstract, mesh, rules)
  draw = jax.jit(lambda key: _draw(abstract, key), **options)
  return graphdef, draw(jax.random.key(seed))


def _draw(abstract: nnx.State, key: Key[Array, '']) -> nnx.State:
  variables = jax.tree.leaves(abstract, is_leaf=is_variable)
  random = lambda v: v.get_metadata()['init_stddev'] > 0
  shared = [v for v in variables if random(v) and _size(v) <= _SHARED_DRAW_SIZE]
  pool = jax.random.normal(key, (sum(map(_size, shared)),), jnp.float32)
  taken, values = 0, []
  for index, variable in enumerate(variables):
    metadata, size = variable.get_metadata(), _size(variable)
    shape = variable.get_value().shape
    if not random(variable):
      noise = jnp.zeros(shape, jnp.float32)
    elif size <= _SHARED_DRAW_SIZE:
      noise = pool[taken : taken + size].reshape(shape)
      taken += size
    else:
      noise = jax.random.normal(
        jax.random.fold_in(key, index + 1), shape, jnp.float32
      )
    values.append(metadata['init_mean'] + metadata['init_stddev'] * noise)
  return jax.tree.unflatten(jax.tree.structure(abstract), values)


def _size(variable: Any) -> int:
  return math.prod(variable.get_value().shape)
