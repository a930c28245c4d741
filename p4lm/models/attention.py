"""The one attention of every architecture.

Heads stand before positions ([B,H,L,K]) everywhere, so that attention is two
batched matrix products with no transposition and a cache can be extended in
place.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from p4lm.models.layers import Dense, dropout
from p4lm.models.library_attention import OWN, dot_product_attention
from p4lm.typing import Array, Bool, Float, Key

# Added to masked scores: finite, so that a row with nothing to attend to gives
# the mean of its values instead of NaN.
MASKED = -1e30


@jax.custom_vjp
def add_bias(
  scores: Float[Array, 'B H Q M'], bias: Float[Array, 'H Q M']
) -> Float[Array, 'B H Q M']:
  """scores + bias; the bias's gradient sums the batch by a product with ones.

  As a plain sum it would be fused with the softmax's gradient and computed
  down the columns, which takes longer than the rest of attention on a CPU.
  """
  return scores + bias[None]


def _add_bias_backward(_, gradient):
  rows = gradient.shape[0]
  total = jnp.einsum(
    'b,bx->x',
    jnp.ones(rows, gradient.dtype),
    gradient.reshape(rows, -1),
    precision=jax.lax.Precision.HIGHEST,
  )
  return gradient, total.reshape(gradient.shape[1:])


add_bias.defvjp(lambda s, b: (s + b[None], None), _add_bias_backward)


def attend(
  query: Float[Array, 'B H Q K'],
  key: Float[Array, 'B H M K'],
  value: Float[Array, 'B H M K'],
  *,
  bias: Float[Array, 'H Q M'] | None = None,
  mask: Bool[Array, '#B #H #Q M'] | None = None,
  scale: float = 1.0,
  dropout_rate: float = 0.0,
  dropout_key: Key[Array, ''] | None = None,
  implementation: str = OWN,
) -> Float[Array, 'B H Q K']:
  """softmax(scale q k^T + bias) v over the positions that `mask` keeps.

  The one attention of every model. Scores and softmax are float32 whatever
  the inputs' type; T5 uses scale 1 (its initialisation absorbs the root).

  Args:
    query: for Q positions.
    key: for M positions.
    value: for M positions.
    bias: added to the scores, the same for every example.
    mask: True where a query may look; a query that may look nowhere gets the
      mean of the values.
    scale: factor of the scores.
    dropout_rate: of the attention weights.
    dropout_key: None for no dropout.
    implementation: one of `library_attention`; others than 'own' have no
      dropout.
  """
  if implementation != OWN:
    return dot_product_attention(
      query,
      key,
      value,
      bias=bias,
      mask=mask,
      scale=scale,
      implementation=implementation,
    )
  scores = jnp.einsum(
    'bhqk,bhmk->bhqm', query, key, preferred_element_type=jnp.float32
  )
  if scale != 1.0:
    scores *= scale
  if bias is not None:
    scores = add_bias(scores, bias)
  if mask is not None:
    scores = jnp.where(mask, scores, MASKED)
  weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
  weights = dropout(weights, dropout_rate, dropout_key)
  return jnp.einsum('bhqm,bhmk->bhqk', weights, value)


class Attention(nnx.Module):
  """Query, key, value and output projections of multi-head attention.

  With `num_kv_heads` (grouped queries, Ainslie et al. 2023) keys and values
  have fewer heads than queries; head h asks key head h // (H / H_kv).
  """

  def __init__(
    self,
    width: int,
    num_heads: int,
    head_width: int,
    *,
    rngs: nnx.Rngs,
    dtype: str = 'float32',
    query_stddev: float | None = None,
    layers: int | None = None,
    num_kv_heads: int | None = None,
  ):
    embed, heads = {'embed': width}, {'heads': num_heads, 'kv': head_width}
    kv_heads = heads
    if num_kv_heads is not None:
      kv_heads = {'kv_heads': num_kv_heads, 'kv': head_width}
    options = dict(rngs=rngs, dtype=dtype, layers=layers)
    self.query = Dense(embed, heads, stddev=query_stddev, **options)
    self.key = Dense(embed, kv_heads, **options)
    self.value = Dense(embed, kv_heads, **options)
    self.out = Dense(heads, embed, **options)

  def queries(self, x: Float[Array, 'B Q D']) -> Float[Array, 'B H Q K']:
    """Query vectors by head."""
    return jnp.swapaxes(self.query(x), 1, 2)

  def keys_values(
    self, x: Float[Array, 'B M D']
  ) -> tuple[Float[Array, 'B J M K'], Float[Array, 'B J M K']]:
    """Key and value vectors by key head."""
    return jnp.swapaxes(self.key(x), 1, 2), jnp.swapaxes(self.value(x), 1, 2)

  def output(self, context: Float[Array, 'B H Q K']) -> Float[Array, 'B Q D']:
    """Joins the heads and projects back to the model width."""
    return self.out(jnp.swapaxes(context, 1, 2))
