r"""Rewards that differ by user through a latent variable, learned from pairs.

One score for all users averages opposed tastes away. Variational preference
learning (Poddar et al. 2024) gives each user a latent z ~ N(0, I_d), a reward
r(y, z), and an encoder q(z | the user's labelled pairs); it maximises

    ELBO = E_q[sum_i log sigmoid(r(c_i, z) - r(r_i, z))] - KL(q || N(0, I))

Here a response is a point of 1 + 3 d coordinates, all heads of one model:

    base s, slopes g [d]       r(y, z) = s(y) + g(y) . z
    evidence e, certainty h    q(z | pairs) = N(m, 1 / p), for each dimension
                               p = 1 + sum_i softplus(h(c_i) + h(r_i))
                               m = sum_i (e(c_i) - e(r_i)) / p

In place of the paper's attention over pairs the evidence of pairs is added up,
as that of Gaussian observations is: whatever their order, turned round with a
label, and no pairs leave the prior. As r is linear in z, a gap is Gaussian
under q and its expected log-likelihood an integral over one dimension, which a
quadrature gives in place of samples.
"""

import jax
import jax.numpy as jnp
import numpy as np

from p4lm.ops.masks import at_least_float32, hide, masked_sum
from p4lm.typing import Array, Bool, Float, Int

_NODES = 24


def latent_width(coordinates: int) -> int:
  """d of points with 1 + 3 d coordinates.

  >>> latent_width(7)
  2

  Raises:
    ValueError: there is no such d above 0.
  """
  width, rest = divmod(coordinates - 1, 3)
  if rest or width < 1:
    raise ValueError(
      'a response is 1 + 3 d coordinates (4, 7, 10...), d the width of the '
      f'latent; got {coordinates}'
    )
  return width


def latent_rewards(
  points: Float[Array, '*B K'], latents: Float[Array, '*B Z']
) -> Float[Array, '*B']:
  """r(y, z) = s(y) + g(y) . z.

  >>> print(latent_rewards(jnp.array([1., 2., 0., 0.]), jnp.array([-0.5])))
  0.0

  Args:
    points: float [..., K], K = 1 + 3 d.
    latents: float [..., d].
  """
  width = latent_width(points.shape[-1])
  points, latents = at_least_float32(points), at_least_float32(latents)
  return points[..., 0] + jnp.sum(points[..., 1 : 1 + width] * latents, axis=-1)


def pair_evidence(
  chosen: Float[Array, 'B K'],
  rejected: Float[Array, 'B K'],
  *,
  pair_mask: Bool[Array, 'B'],
) -> tuple[Float[Array, 'B Z'], Float[Array, 'B Z']]:
  """What each pair says about its user's latent.

  Args:
    chosen, rejected: points of the two responses.
    pair_mask: False for pairs that say nothing; anything may stand there.
  Returns:
    Evidence, an odd function of the pair, and precision, an even one above 0;
    both 0 where masked.
  """
  width = latent_width(chosen.shape[-1])
  mask = pair_mask[:, None]
  chosen, rejected = (
    hide(at_least_float32(points), mask) for points in (chosen, rejected)
  )
  evidence = slice(1 + width, 1 + 2 * width)
  certainty = slice(1 + 2 * width, None)
  precisions = jax.nn.softplus(chosen[:, certainty] + rejected[:, certainty])
  return (
    chosen[:, evidence] - rejected[:, evidence],
    hide(precisions, mask),
  )


def posterior(
  evidence: Float[Array, '*B Z'], precisions: Float[Array, '*B Z']
) -> tuple[Float[Array, '*B Z'], Float[Array, '*B Z']]:
  """Mean and precision of q(z) from the sums over a user's pairs.

  >>> mean, precision = posterior(jnp.array([3.0]), jnp.array([0.5]))
  >>> print(mean, precision)
  [2.] [1.5]
  """
  precisions = 1 + precisions
  return evidence / precisions, precisions


def variational_preference_loss(
  chosen: Float[Array, 'B K'],
  rejected: Float[Array, 'B K'],
  users: Int[Array, 'B'],
  *,
  pair_mask: Bool[Array, 'B'],
  tie_mask: Bool[Array, 'B'] | None = None,
  kl_weight: float = 1.0,
) -> tuple[Float[Array, ''], Float[Array, '']]:
  r"""Minus the ELBO of the users of a batch, a mean over its pairs.

  A pair in `tie_mask` counts as half a win of either side and says nothing of
  its user. A pair without a user has the prior in place of a posterior.

  Args:
    chosen, rejected: points [B, 1 + 3 d].
    users: equal numbers are one user; below 0 there is none.
    pair_mask: False on padding.
    tie_mask: None for no ties.
    kl_weight: of the KL; 1 for the ELBO.
  Returns:
    float32 [] loss, nats a pair, and float32 [] the KL within it, unweighted.
  """
  if tie_mask is None:
    tie_mask = jnp.zeros_like(pair_mask)
  tells = pair_mask & ~tie_mask & (users >= 0)
  same = (users[:, None] == users[None, :]) & tells[None, :]
  same = same & (pair_mask & (users >= 0))[:, None]
  sums = [
    same.astype(x.dtype) @ x
    for x in pair_evidence(chosen, rejected, pair_mask=tells)
  ]
  means, precisions = posterior(*sums)
  gaps = hide(at_least_float32(chosen), pair_mask[:, None])
  gaps -= hide(at_least_float32(rejected), pair_mask[:, None])
  centres = latent_rewards(gaps, means)
  slopes = gaps[:, 1 : 1 + means.shape[-1]]
  spreads = jnp.sum(jnp.square(slopes) / precisions, axis=-1)
  won = expected_log_sigmoid(centres, spreads)
  likelihood = jnp.where(
    tie_mask, (won + expected_log_sigmoid(-centres, spreads)) / 2, won
  )
  # A user's KL is shared among the pairs that tell of the user.
  share = hide(1 / jnp.maximum(same.sum(axis=1), 1), tells)
  divergence = share * kl_from_prior(means, precisions)
  count = jnp.maximum(jnp.sum(pair_mask), 1)
  kl = masked_sum(divergence, tells) / count
  return kl_weight * kl - masked_sum(likelihood, pair_mask) / count, kl


def kl_from_prior(
  means: Float[Array, '*B Z'], precisions: Float[Array, '*B Z']
) -> Float[Array, '*B']:
  """KL(N(m, 1 / p) || N(0, I)) = sum (1 / p + m^2 - 1 + log p) / 2, nats."""
  each = 1 / precisions + jnp.square(means) - 1 + jnp.log(precisions)
  return jnp.sum(each, axis=-1) / 2


def expected_log_sigmoid(
  means: Float[Array, '*B'], variances: Float[Array, '*B']
) -> Float[Array, '*B']:
  """E[log sigmoid(x)] for x ~ N(mean, variance), by Gauss and Hermite.

  >>> print(f'{expected_log_sigmoid(jnp.zeros(1), jnp.zeros(1))[0]:.4f}')
  -0.6931
  """
  nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
  # The root of 0 has no gradient; this shift is far below rounding.
  deviations = jnp.sqrt(variances + 1e-12)
  offsets = jnp.tensordot(deviations, nodes.astype(means.dtype), 0)
  at = means[..., None] + offsets
  values = jax.nn.log_sigmoid(at)
  return values @ (weights / weights.sum()).astype(means.dtype)
