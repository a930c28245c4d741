"""What T5's encoder leaves to its decoder, and the decoder to itself."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from p4lm.typing import Array


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=('hidden', 'mask'),
  meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class Encoded:
  """What the encoder made of a batch of prompts.

  Attributes:
    hidden: float [B,P,D].
    mask: bool [B,P], True on tokens, False on padding.
  """

  hidden: Array
  mask: Array

  def repeat(self, num_samples: int) -> 'Encoded':
    """Each prompt `num_samples` times: row b*G+g is copy g of prompt b.

    The decoder takes G rows a prompt without this copy: `decode` and
    `start_cache` match any multiple of the prompts.
    """
    repeat = lambda x: jnp.repeat(x, num_samples, axis=0)
    return Encoded(repeat(self.hidden), repeat(self.mask))


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=(
    'step',
    'self_keys',
    'self_values',
    'cross_keys',
    'cross_values',
    'cross_mask',
    'position_bias',
  ),
  meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class DecodeCache:
  """Keys and values of a decoder on its way, R rows over B prompts.

  One array a layer, not a stack: a step then writes one position of each in
  place and never copies a cache.

  Attributes:
    step: int32 [], the position that the next token takes.
    self_keys, self_values: a float [R,H,L,K] for each layer.
    cross_keys, cross_values: a float [B,H,P,K] for each layer; kept once a
      prompt however many rows R = B*G it has.
    cross_mask: bool [B,P].
    position_bias: float32 [H,2L-1], the bias by distance; with a leading axis
      of layers where each has its own.
  """

  step: Array
  self_keys: tuple[Array, ...]
  self_values: tuple[Array, ...]
  cross_keys: tuple[Array, ...]
  cross_values: tuple[Array, ...]
  cross_mask: Array
  position_bias: Array
