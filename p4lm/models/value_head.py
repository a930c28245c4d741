"""Values for each decoder position: the baselines and critics of RL."""

import jax.numpy as jnp
from flax import nnx

from p4lm.models.layers import Dense
from p4lm.typing import Array, Float


class ValueHead(nnx.Module):
  """A linear map from hidden states to values, zero at first."""

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    self.output = Dense(
      {'embed': width}, {'scores': 1}, rngs=rngs, stddev=0.0, use_bias=True
    )

  def __call__(self, hidden: Float[Array, 'R L D']) -> Float[Array, 'R L']:
    """float32 values of `Recommender.decode_hidden`'s states."""
    return self.output(hidden.astype(jnp.float32))[..., 0]


class ActionValueHead(nnx.Module):
  """K critics of every token of the vocabulary, from hidden states.

  K (D + 1) V parameters, 4 bytes each: two critics of 32,128 pieces on states
  of width 768 take 198 MB, and as much for their targets and for each moment of
  their optimizer. They are divided over the mesh as the vocabulary is. The
  first values are small and differ between critics, or they never would.
  """

  def __init__(
    self, width: int, vocabulary_size: int, critics: int, *, rngs: nnx.Rngs
  ):
    self.output = Dense(
      {'embed': width},
      {'scores': critics, 'vocab': vocabulary_size},
      rngs=rngs,
      stddev=1e-2 * width**-0.5,
      use_bias=True,
    )

  def __call__(self, hidden: Float[Array, 'R L D']) -> Float[Array, 'K R L V']:
    """float32 values of each token as the next one."""
    return jnp.moveaxis(self.output(hidden.astype(jnp.float32)), -2, 0)
