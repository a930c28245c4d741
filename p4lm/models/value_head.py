"""A value for each decoder position: the baseline or critic of RL."""

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
