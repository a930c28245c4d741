"""Estimators of KL(policy || reference) from sampled tokens."""

import jax.numpy as jnp

from p4lm.ops.masks import aggregate, hide, require_same_shape
from p4lm.typing import Array, Bool, Float


def kl_estimates(
  policy_logps: Float[Array, '...'],
  reference_logps: Float[Array, '...'],
  *,
  mask: Bool[Array, '...'],
  estimator: str = 'k1',
) -> Float[Array, '...']:
  r"""Per-sample estimates of KL(policy || reference), zero where masked.

  For a sample of the policy, with d = policy_logps - reference_logps
  (Schulman 2020, "Approximating KL divergence"):

      k1 = d                      mean KL; single values may be negative
      k2 = d^2 / 2                biased in value; see `kl_loss` for its use
      k3 = exp(-d) - 1 + d        mean KL, never negative

  Applied to [B, L] token log-probabilities the estimates are of each token's
  KL given what came before; k1 sums over a row to the log-ratio of the whole
  response, the others do not.

  >>> d = jnp.array([jnp.log(2.)])
  >>> one = jnp.ones(1, bool)
  >>> for k in ('k1', 'k2', 'k3'):
  ...   value = kl_estimates(d, jnp.zeros(1), mask=one, estimator=k)
  ...   print(k, f'{value[0]:.4f}')
  k1 0.6931
  k2 0.2402
  k3 0.1931

  Args:
    policy_logps: float [...], under the distribution sampled from.
    reference_logps: float [...], of the same tokens.
    mask: bool [...], False where there is no token; any value may stand there.
    estimator: 'k1', 'k2' or 'k3'.
  Returns:
    float32 [...], nats.
  Raises:
    ValueError: shapes differ, or the estimator is unknown.
  """
  require_same_shape(
    policy_logps=policy_logps, reference_logps=reference_logps, mask=mask
  )
  log_ratio = hide(policy_logps, mask) - hide(reference_logps, mask)
  if estimator == 'k1':
    return log_ratio
  if estimator == 'k2':
    return jnp.square(log_ratio) / 2
  if estimator == 'k3':
    return jnp.expm1(-log_ratio) + log_ratio
  raise ValueError(f"estimator must be 'k1', 'k2' or 'k3', got {estimator!r}")


def kl_loss(
  policy_logps: Float[Array, 'B L'],
  reference_logps: Float[Array, 'B L'],
  *,
  mask: Bool[Array, 'B L'],
  estimator: str,
  aggregation: str = 'response',
  row_weights: Float[Array, ' B'] | None = None,
) -> Float[Array, '']:
  r"""A KL penalty to be differentiated: row sums, averaged over the rows.

      loss = (1/M) sum_b sum_l k(policy_logps[b, l] - reference_logps[b, l])

  over the M rows with a counted token (another `aggregation` of
  `masks.aggregate` averages otherwise), each row times its weight if there are
  weights. What its gradient points at differs from what its value estimates,
  because the gradient does not pass through the sampling. For samples of the
  policy, at each token:

      E grad k1 = E grad log policy = 0          no penalty at all: refused
      E grad k2 = grad KL(policy || reference)   the reverse KL, as in J
      E grad k3 = grad KL(reference || policy)   the forward KL

  The states before each token are treated as given, so for responses of
  several tokens the sum leaves out how early tokens change the KL of later
  ones; k1 in the reward has that term.

  Returns:
    float32 [], nats a response; zero when every row is empty.
  Raises:
    ValueError: the estimator is k1 or unknown, or shapes differ.
  """
  if estimator == 'k1':
    raise ValueError(
      'the k1 estimator as a loss has an expected gradient of zero, so it '
      'would hold nothing back: put k1 in the reward, or use k2 (reverse KL) '
      'or k3 (forward KL) in the loss'
    )
  estimates = kl_estimates(
    policy_logps, reference_logps, mask=mask, estimator=estimator
  )
  if row_weights is not None:
    estimates *= row_weights[:, None]
  return aggregate(estimates, mask, aggregation)
