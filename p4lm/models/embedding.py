"""The table of word embeddings."""

from flax import nnx

from p4lm.models.layers import normal_parameter
from p4lm.typing import Array, Float, Int


class TokenEmbedder(nnx.Module):
  """The embedding table; what it gives is multiplied by `scale`."""

  def __init__(
    self,
    vocab_size: int,
    width: int,
    *,
    rngs: nnx.Rngs,
    stddev: float = 1.0,
    scale: Float[Array, ''] | float = 1.0,
  ):
    axes = {'vocab': vocab_size, 'embed': width}
    self.embedding = normal_parameter(rngs, axes, stddev)
    self.scale = scale

  def __call__(self, tokens: Int[Array, '*B']) -> Float[Array, '*B D']:
    # Ids are in range by contract; the default mode would fill the rest with
    # NaN and cost a comparison an element.
    rows = self.embedding[...].at[tokens].get(mode='clip')
    return rows if self.scale == 1.0 else rows * self.scale
