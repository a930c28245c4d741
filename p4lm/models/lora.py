"""LoRA (Hu et al. 2021): low-rank updates of chosen linear maps.

y = x W + (alpha / rank) (x A) B. B starts at zero, so the model's outputs do
not change when LoRA is applied. A and B are nnx.LoRAParam, which the `lora`
stage of `models.selection` trains while W stays as it is.

What works in place changes the module's variables, which a state given to
nnx.merge shares with it unless merged with copy=True.
"""

import functools
import math
import re
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from p4lm.errors import UserError
from p4lm.models.layers import Dense, normal_parameter
from p4lm.models.selection import parameter_name
from p4lm.typing import Array, Float

# Every projection of the language model's stacks, as QLoRA recommends.
DEFAULT_TARGETS = (r'^lm/(encoder|decoder)/layers/',)


class UnmergedKernel(nnx.Variable):
  """The kernel as it was before LoRA was merged into it."""


def apply_lora(
  module: nnx.Module,
  rank: int,
  alpha: float,
  target_patterns: Sequence[str] = DEFAULT_TARGETS,
  *,
  rngs: nnx.Rngs,
) -> list[str]:
  """Adds LoRA factors to the linear maps whose name matches, in place.

  Args:
    module: a model built of `layers.Dense`.
    rank: width r of the factors.
    alpha: the update is scaled by alpha / rank.
    target_patterns: regular expressions searched for in the maps' names, such
      as 'lm/decoder/layers/self_attention/query'.
    rngs: gives the `params` stream for A; B is zero.

  Returns:
    The names of the maps changed, sorted.

  Raises:
    UserError: rank < 1, a pattern that is no regular expression or matches
      nothing, or a map that has LoRA already.
  """
  if rank < 1:
    raise UserError(f'LoRA rank is {rank!r}; it must be at least 1.')
  maps = dict(_dense_maps(module))
  chosen: set[str] = set()
  for pattern in target_patterns:
    try:
      found = {name for name in maps if re.search(pattern, name)}
    except re.error as error:
      raise UserError(f'LoRA target {pattern!r}: {error}.') from error
    if not found:
      raise UserError(
        f'LoRA target {pattern!r} matches no linear map; the model has'
        f' {", ".join(sorted(maps))}.'
      )
    chosen |= found
  for name in sorted(chosen):
    if maps[name].lora_a is not None:
      raise UserError(f'{name} has LoRA factors already.')
    _add_factors(maps[name], rank, alpha, rngs)
  return sorted(chosen)


def merge_lora(module: nnx.Module) -> None:
  """Adds each update to its kernel, in place, keeping the kernel beside it.

  The model computes the same up to rounding, at the cost of no LoRA.
  `unmerge_lora` restores the kernels bit by bit.

  Raises:
    UserError: nothing to merge.
  """
  maps = [m for m in _lora_maps(module) if m.unmerged is None]
  for dense in maps:
    dense.unmerged = UnmergedKernel(
      dense.kernel[...], **dense.kernel.get_metadata()
    )
    dense.kernel[...] = dense.kernel[...] + _delta(dense)


def unmerge_lora(module: nnx.Module) -> None:
  """Undoes `merge_lora` exactly, in place."""
  for dense in _lora_maps(module):
    if dense.unmerged is not None:
      dense.kernel[...] = dense.unmerged[...]
      dense.unmerged = None


def fold_lora(module: nnx.Module) -> None:
  """Merges for good: the factors go, a plain model stays. In place."""
  for dense in _lora_maps(module):
    if dense.unmerged is None:
      dense.kernel[...] = dense.kernel[...] + _delta(dense)
    _drop_factors(dense)


def without_lora(module: nnx.Module) -> nnx.Module:
  """The model under its LoRA: a new module that shares the base arrays.

  This is the reference of a LoRA policy, at no memory of its own.
  """
  graphdef, state = nnx.split(module)
  # Copies the variables, which this function changes; the arrays are shared.
  base = nnx.merge(graphdef, state, copy=True)
  unmerge_lora(base)
  for dense in _lora_maps(base):
    _drop_factors(dense)
  return base


def low_rank_update(
  kernel_ndim: int,
  lora_a: Float[Array, '*I r'],
  lora_b: Float[Array, '...'],
  scale: float,
) -> Float[Array, '...']:
  """What is added to a kernel [*I, *O]: scale A B, layer by layer in a stack.

  Args:
    kernel_ndim: dimensions of the kernel, its layers included.
    lora_a: [*I, r], with the layers in front where the kernel has them.
    lora_b: [r, *O], likewise.
    scale: alpha / rank.
  """
  product = lambda a, b: jnp.tensordot(a, b, 1, precision='highest')
  if lora_a.ndim + lora_b.ndim - 2 > kernel_ndim:
    product = jax.vmap(product)
  return scale * product(lora_a, lora_b)


def _add_factors(dense: Dense, rank: int, alpha: float, rngs: nnx.Rngs) -> None:
  names = dense.kernel.get_metadata()['logical_axes']
  pairs = tuple(zip(names, dense.kernel[...].shape))
  stacked = pairs[:1] if names[0] == 'layers' else ()
  split = len(stacked) + dense.num_inputs
  low = (('lora_rank', rank),)
  fan_in = math.prod(size for _, size in pairs[len(stacked) : split])
  parameter = functools.partial(normal_parameter, rngs, kind=nnx.LoRAParam)
  dense.lora_a = parameter(pairs[:split] + low, fan_in**-0.5)
  dense.lora_b = parameter(stacked + low + pairs[split:], 0.0)
  dense.lora_scale = alpha / rank


def _delta(dense: Dense) -> jax.Array:
  return low_rank_update(
    dense.kernel[...].ndim,
    dense.lora_a[...],
    dense.lora_b[...],
    dense.lora_scale,
  )


def _drop_factors(dense: Dense) -> None:
  dense.lora_a = dense.lora_b = dense.unmerged = None
  dense.lora_scale = 0.0


def _lora_maps(module: nnx.Module) -> list[Dense]:
  maps = [dense for _, dense in _dense_maps(module)]
  maps = [dense for dense in maps if dense.lora_a is not None]
  if not maps:
    raise UserError('The model has no LoRA factors; apply_lora adds them.')
  return maps


def _dense_maps(module: nnx.Module) -> Iterator[tuple[str, Dense]]:
  for path, node in nnx.iter_graph(module):
    if isinstance(node, Dense):
      yield parameter_name(path), node
