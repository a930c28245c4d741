"""Rotary position embedding (Su et al. 2021), with the scalings in use.

A head's vector is read as K/2 pairs (x_k, x_{k+K/2}); pair k is turned by the
angle position * f_k, f_k = base ** (-2k / K), so that the product of a query
and a key depends on their distance alone.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from p4lm.errors import UserError
from p4lm.models.config_json import JsonConfig
from p4lm.typing import Array, Float, Int

KINDS = ('linear', 'llama3')


@dataclasses.dataclass(frozen=True)
class RopeScaling(JsonConfig):
  """How frequencies change for texts longer than those of pre-training.

  Attributes:
    kind: 'linear' divides every frequency by `factor`; 'llama3' divides those
      whose wavelength exceeds original_length / low_frequency_factor, leaves
      those below original_length / high_frequency_factor, and goes from one to
      the other linearly in the number of turns between.
    factor: 1 or more.
    low_frequency_factor, high_frequency_factor, original_length: of 'llama3'.
  """

  kind: str
  factor: float
  low_frequency_factor: float = 1.0
  high_frequency_factor: float = 4.0
  original_length: int = 8192

  def __post_init__(self):
    if self.kind not in KINDS:
      raise UserError(
        f'RopeScaling.kind is {self.kind!r}; it must be one of'
        f' {", ".join(KINDS)}.'
      )
    if not self.factor >= 1:
      raise UserError(
        f'RopeScaling.factor is {self.factor!r}; it must be at least 1.'
      )
    if not 0 < self.low_frequency_factor < self.high_frequency_factor:
      raise UserError(
        'RopeScaling: low_frequency_factor must be positive and below'
        f' high_frequency_factor, got {self.low_frequency_factor} and'
        f' {self.high_frequency_factor}.'
      )


def frequencies(
  width: int, base: float, scaling: RopeScaling | None = None
) -> np.ndarray:
  """float32 [K/2], radians a position of each pair.

  >>> frequencies(4, 100.0).tolist()
  [1.0, 0.10000000149011612]
  """
  exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
  plain = 1.0 / np.float32(base) ** exponents
  if scaling is None:
    return plain.astype(np.float32)
  scaled = plain / scaling.factor
  if scaling.kind == 'linear':
    return scaled.astype(np.float32)
  turns = scaling.original_length * plain / (2 * math.pi)
  low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
  kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
  return ((1 - kept) * scaled + kept * plain).astype(np.float32)


def angles(
  positions: Int[Array, 'R Q'], frequency: np.ndarray
) -> Float[Array, 'R Q F']:
  """What each position turns each of the F = K/2 pairs by, in radians."""
  return positions.astype(jnp.float32)[..., None] * frequency[None, None]


def rotate(
  x: Float[Array, 'R H Q K'], angle: Float[Array, '#R Q F']
) -> Float[Array, 'R H Q K']:
  """Turns the pairs (x_k, x_{k+K/2}) of every head; K = 2F."""
  cos = jnp.cos(angle)[:, None].astype(x.dtype)
  sin = jnp.sin(angle)[:, None].astype(x.dtype)
  first, second = jnp.split(x, 2, axis=-1)
  return jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  )
