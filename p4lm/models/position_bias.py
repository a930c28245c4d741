"""T5's relative position bias, without a gather.

The bias of query q and key m depends on m - q alone: L + L values hold it all.
They are looked up by a one-hot product and laid out as an [L,L] table by a
shifted reshape, so that its gradient is dense sums and no scatter, which CPU
and TPU do slowly.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from p4lm.models.layers import normal_parameter
from p4lm.typing import Array, Float, Int


def relative_buckets(
  relative_position: np.ndarray,
  *,
  bidirectional: bool,
  num_buckets: int,
  max_distance: int,
) -> np.ndarray:
  """The bucket of each key position minus query position (Raffel et al. 2020).

  Half of the buckets are exact distances, the other half grow
  logarithmically up to `max_distance` and end in a common last bucket. In the
  bidirectional case, half of all buckets are for keys after the query.

  >>> differences = np.array([-3, 0, 3])
  >>> sizes = dict(num_buckets=32, max_distance=128)
  >>> relative_buckets(differences, bidirectional=True, **sizes).tolist()
  [3, 0, 19]
  """
  offset = np.zeros_like(relative_position)
  if bidirectional:
    num_buckets //= 2
    offset = np.where(relative_position > 0, num_buckets, 0)
    distance = np.abs(relative_position)
  else:
    distance = np.maximum(-relative_position, 0)
  exact = num_buckets // 2
  # Both logarithms in float32, as the published models computed them: a
  # distance on a bucket's edge must fall on the same side.
  ratio = np.log(
    np.maximum(distance, 1).astype(np.float32) / exact, dtype=np.float32
  ) / np.float32(math.log(max_distance / exact))
  far = exact + (ratio * (num_buckets - exact)).astype(np.int32)
  far = np.minimum(far, num_buckets - 1)
  return offset + np.where(distance < exact, distance, far)


class RelativeBias(nnx.Module):
  """A learned bias of the attention scores by bucket and head.

  With `layers` there is one for each layer, on a leading axis of the embedding
  and of all that comes of it.
  """

  def __init__(
    self,
    num_buckets: int,
    max_distance: int,
    num_heads: int,
    *,
    bidirectional: bool,
    rngs: nnx.Rngs,
    layers: int | None = None,
  ):
    axes = {'relpos_buckets': num_buckets, 'heads': num_heads}
    # Variance scaling by the mean of fan-in and fan-out, as in T5X.
    stddev = math.sqrt(2.0 / (num_buckets + num_heads))
    self.embedding = normal_parameter(rngs, axes, stddev, layers=layers)
    self.num_buckets = num_buckets
    self.max_distance = max_distance
    self.bidirectional = bidirectional

  def __call__(self, num_queries: int, num_keys: int) -> Float[Array, 'H Q M']:
    """The bias of every query position with every key position, from 0."""
    return self.table(self.embedding[...], num_queries, num_keys)

  def table(
    self, embedding: Float[Array, 'buckets H'], num_queries: int, num_keys: int
  ) -> Float[Array, 'H Q M']:
    """As calling it, of one layer's embedding."""
    # Row q of the table reads values[(m - q) mod period], so negative
    # differences stand at the end.
    period = num_queries + num_keys
    difference = np.arange(period)
    difference = np.where(
      difference < num_keys, difference, difference - period
    )
    values = self._lookup(embedding, difference)
    table = jnp.broadcast_to(
      values[:, None], (values.shape[0], num_queries, period)
    )
    table = table.reshape(values.shape[0], num_queries * period)
    table = table[:, : num_queries * (period - 1)]
    table = table.reshape(values.shape[0], num_queries, period - 1)
    return table[:, :, :num_keys]

  def by_distance(self, length: int) -> Float[Array, '*layers H W']:
    """Biases of the differences -(length-1) .. length-1, for `row_at`."""
    difference = np.arange(2 * length - 1) - (length - 1)
    lookup = lambda embedding: self._lookup(embedding, difference)
    embedding = self.embedding[...]
    if embedding.ndim == 3:
      lookup = jax.vmap(lookup)
    return lookup(embedding)

  def _lookup(
    self, embedding: Float[Array, 'buckets H'], difference: np.ndarray
  ) -> Float[Array, 'H M']:
    buckets = relative_buckets(
      difference,
      bidirectional=self.bidirectional,
      num_buckets=self.num_buckets,
      max_distance=self.max_distance,
    )
    one_hot = np.eye(self.num_buckets, dtype=np.float32)[buckets]
    return jnp.einsum(
      'mb,bh->hm',
      one_hot,
      embedding,
      precision=jax.lax.Precision.HIGHEST,
    )


def row_at(
  by_distance: Float[Array, 'H W'], position: Int[Array, '']
) -> Float[Array, 'H M']:
  """The bias of the query at `position` with the keys 0 .. length-1."""
  length = (by_distance.shape[1] + 1) // 2
  return jax.lax.dynamic_slice_in_dim(
    by_distance, length - 1 - position, length, axis=1
  )
