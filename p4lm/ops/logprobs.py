"""Log-probabilities of tokens: the one definition for sampler and learner.

Logits may hold -inf for tokens that are never drawn (a truncated distribution):
the others are then normalised among themselves, as they must be for a replayed
sample to have the log-probabilities that it was drawn with.
"""

import jax
import jax.numpy as jnp

from p4lm.ops.masks import at_least_float32, hide
from p4lm.typing import Array, Bool, Float, Int


def token_logprobs(
  logits: Float[Array, 'B L V'],
  tokens: Int[Array, 'B L'],
  *,
  temperature: float = 1.0,
) -> Float[Array, 'B L']:
  r"""Log-probability of each given token under the softmax of its logits.

      logps[b, l] = z[b, l, tokens[b, l]] - log sum_v exp z[b, l, v]

  with z = logits / temperature. A token whose logit is -inf has -inf. Padding
  positions get a number too: mask them. The normaliser is one log-sum-exp, so
  no second [B, L, V] array is made.

  >>> logits = jnp.log(jnp.array([[[0.5, 0.25, 0.25]]]))
  >>> print(f'{token_logprobs(logits, jnp.array([[1]]))[0, 0]:.4f}')
  -1.3863

  Args:
    logits: float [B, L, V], unnormalised; position l scores token l.
    tokens: int [B, L], each in [0, V).
    temperature: above 0; the sampler's own, to replay its tokens.
  Returns:
    float32 [B, L] (float64 for float64 logits), nats.
  Raises:
    ValueError: temperature is not above 0.
  """
  logits = _cooled(logits, temperature)
  chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
  return chosen - jax.nn.logsumexp(logits, axis=-1)


def sequence_logprobs(
  logps: Float[Array, 'B L'], response_mask: Bool[Array, 'B L']
) -> Float[Array, ' B']:
  """Log-probability of each response: the sum over its counted tokens.

  EOS counts (it is inside the mask); nothing is divided by the length. An
  empty response has 0.
  """
  return jnp.sum(hide(logps, response_mask), axis=1)


def token_entropies(
  logits: Float[Array, 'B L V'], *, temperature: float = 1.0
) -> Float[Array, 'B L']:
  r"""Entropy of each position's distribution, in nats.

      H[b, l] = -sum_v p_v log p_v,  p = softmax(logits[b, l] / temperature)

  A token with logit -inf has probability 0 and adds nothing.

  >>> print(f'{token_entropies(jnp.zeros((1, 1, 4)))[0, 0]:.4f}')
  1.3863
  """
  logps = jax.nn.log_softmax(_cooled(logits, temperature))
  probabilities = jnp.exp(logps)
  # 0 * -inf: the dropped token is replaced before the product.
  logps = jnp.where(probabilities > 0, logps, 0.0)
  return -jnp.sum(probabilities * logps, axis=-1)


def logprob_drift(
  policy_logps: Float[Array, 'B L'],
  behavior_logps: Float[Array, 'B L'],
  response_mask: Bool[Array, 'B L'],
) -> dict[str, Array]:
  """How far a learner's replay of sampled tokens is from the sampler's record.

  For an unchanged policy both are the same number; what is left is a
  difference in arithmetic (kernels, precision) or in settings (temperature,
  top-p), and it biases the policy gradient.

  Returns:
    scalars over counted tokens: `drift_mean` and `drift_max` of |policy -
    behavior|, `ratio_max` of exp(policy - behavior).
  """
  gap = hide(policy_logps, response_mask) - hide(behavior_logps, response_mask)
  count = jnp.maximum(jnp.sum(response_mask), 1).astype(gap.dtype)
  return {
    'drift_mean': jnp.sum(jnp.abs(gap)) / count,
    'drift_max': jnp.max(jnp.abs(gap), initial=0.0),
    'ratio_max': jnp.exp(jnp.max(gap, initial=-jnp.inf, where=response_mask)),
  }


def _cooled(logits, temperature):
  # A traced temperature cannot be looked at.
  if isinstance(temperature, int | float) and not temperature > 0:
    raise ValueError(
      f'temperature must be above 0, got {temperature}; for the arg max use a '
      'greedy sampler'
    )
  logits = at_least_float32(logits)
  return logits / temperature
