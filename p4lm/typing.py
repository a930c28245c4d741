"""Array types and the axis letters used in every docstring and annotation.

  B  batch            P  prompt length     L  response length
  S  soft tokens      N  CF vectors        D  model width
  E  CF width         V  vocabulary        G  samples a prompt
  U  users            I  items             C  candidates
  K  critics, minibatches, heads
  Z  latent width

Annotations are checked at run time by jaxtyping when the tests run.
"""

from jax import Array
from jaxtyping import Bool, Float, Int, Key, PyTree

__all__ = ['Array', 'Bool', 'Float', 'Int', 'Key', 'PyTree']
