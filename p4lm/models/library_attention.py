"""Attention by JAX's own function, and by the library of a platform.

`own` products and softmax are written for what p4lm does most: on a CPU they
take half the time of JAX's function, gradients included, and attention over a
prompt that many responses share needs no copy of its keys.
What keeps [B, H, Q, M] scores out of memory is another matter: cuDNN's fused
attention on an NVIDIA GPU, in bfloat16. Loops over tokens, and responses that
share a prompt's keys, are `own` always. A model that was trained with cuDNN is
read with XLA where there is no such GPU.
"""

import jax
import jax.numpy as jnp

from p4lm.typing import Array, Bool, Float

OWN = 'own'
# As `implementation` of jax.nn.dot_product_attention: by XLA, or by cuDNN.
IMPLEMENTATIONS = (OWN, 'xla', 'cudnn')


def dot_product_attention(
  query: Float[Array, 'B H Q K'],
  key: Float[Array, 'B J M K'],
  value: Float[Array, 'B J M K'],
  *,
  bias: Float[Array, 'H Q M'] | None = None,
  mask: Bool[Array, '#B #H #Q M'] | None = None,
  scale: float,
  implementation: str,
) -> Float[Array, 'B H Q K']:
  """softmax(scale q k^T + bias) v, of H heads over J key heads, H a multiple.

  What a query that may look nowhere gets is the library's affair.

  Raises:
    RuntimeError, ValueError: JAX's, where a GPU's cuDNN is missing or cannot
      take these shapes or types.
  """
  if implementation == 'cudnn' and not _has_cuda():
    implementation = 'xla'
  positions_first = lambda x: jnp.swapaxes(x, 1, 2)
  context = jax.nn.dot_product_attention(
    positions_first(query),
    positions_first(key),
    positions_first(value),
    bias=None if bias is None else bias[None].astype(query.dtype),
    mask=mask,
    scale=scale,
    implementation=implementation,
  )
  return positions_first(context)


def _has_cuda() -> bool:
  # ROCm's GPUs are 'gpu' as well.
  client = jax.devices()[0].client
  return client.platform == 'gpu' and 'cuda' in client.platform_version.lower()
