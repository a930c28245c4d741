"""Weights as a loop over tokens wants to read them.

Drawing a token reads every weight of the decoder. Where weights are split over
the mesh's `fsdp`, a loop would gather them again for each token:

  as they lie   [D/fsdp, F/model] float32    one part of each weight a device
  held          [D, F/model]      bfloat16   gathered and rounded, once a call

What is split over `model` stays split. A device then needs the memory of the
weights in the type of the computation, divided by the size of `model`.

The layers of a stack get arrays of their own, since a loop that cuts a layer's
weights out of a stack copies them for each token: nearly half the time of a
small model's token on a CPU.
"""

from __future__ import annotations

from flax import nnx

from p4lm.models import decoder_stack, t5_stacks
from p4lm.models.layers import Dense, unstacked
from p4lm.partitioning.rules import WITHOUT_FSDP, constrain
from p4lm.typing import Array

_DECODERS = (decoder_stack.Decoder, t5_stacks.Decoder)


def hold_weights(model: nnx.Module) -> nnx.Module:
  """A copy of a model whose weights lie as its `decode_step` reads them.

  Kernels are rounded as their layers round them at each call, so nothing that
  the model computes changes. For use under jit; without a mesh weights are
  only rounded.
  """
  model = nnx.clone(model)
  for _, module in nnx.iter_modules(model):
    dtype = module.dtype if isinstance(module, Dense) else None
    for variable in vars(module).values():
      if isinstance(variable, nnx.Variable):
        variable.set_value(_held(variable, dtype))
  modules = [module for _, module in nnx.iter_modules(model)]
  for module in modules:
    if isinstance(module, _DECODERS):
      module.layers = unstacked(module.layers)
  return model


def _held(variable: nnx.Variable, dtype: str | None) -> Array:
  value = variable.get_value()
  if dtype is not None:
    value = value.astype(dtype)
  names = variable.get_metadata().get('logical_axes')
  if names is None:
    return value
  return constrain(value, *names, rules=WITHOUT_FSDP)
