"""Preference losses: which of two responses did a rater prefer?"""

import jax
import jax.numpy as jnp

from p4lm.ops.masks import (
  at_least_float32,
  hide,
  masked_mean,
  require_same_shape,
)
from p4lm.typing import Array, Bool, Float


def bradley_terry_loss(
  chosen_rewards: Float[Array, '...'],
  rejected_rewards: Float[Array, '...'],
  *,
  pair_mask: Bool[Array, '...'],
  margin: float | Float[Array, '...'] = 0.0,
  label_smoothing: float = 0.0,
  flip_rate: float = 0.0,
  centring: float = 0.0,
  tie_mask: Bool[Array, '...'] | None = None,
  tie_odds: float = 0.0,
) -> Float[Array, '']:
  r"""Mean negative log-likelihood that raters prefer the chosen response.

  A reward gap is read as log-odds, P(chosen > rejected) = sigmoid(r_c - r_r);
  over the M pairs kept by `pair_mask` (Ouyang et al. 2022, eq. 1; the chosen
  one in the numerator, which P4LM's formula prints the other way round):

      loss = -(1/M) sum_b log sigmoid(r_c[b] - r_r[b])

  Only gaps matter: shifting every reward changes nothing, unless `centring`
  is used. Equal rewards give log 2 = 0.693.

  With g the gap less its margin and l(g) = -log sigmoid(g), a pair's loss is

      l(g)                                        by default
      (1 - s) l(g) + s l(-g)                      label_smoothing s
      ((1 - f) l(g) - f l(-g)) / (1 - 2 f)        flip_rate f

  Smoothing pulls gaps together; the flip rate undoes labels known to be wrong
  with probability f, being unbiased for the loss of the true labels (Chowdhury
  et al. 2024, eq. 12). `centring` c adds c (r_c + r_r)^2, which settles the
  free shift at a mean reward of zero (Eisenstein et al. 2023, eq. 6).

  With `tie_odds` v above 0 raters may also call a tie (Davidson 1970):

      P(chosen) : P(rejected) : P(tie) = e^{g/2} : e^{-g/2} : v

  so that l(g) = log(e^{g/2} + e^{-g/2} + v) - g/2, and a pair in `tie_mask` has
  the loss log(e^{g/2} + e^{-g/2} + v) - log v, without margin, smoothing or
  flips. Among pairs that are no ties the odds are those of Bradley and Terry.
  With v = 0 a tie counts as half a win of either side.

  >>> loss = bradley_terry_loss(jnp.array([1., 0.]), jnp.array([0., 2.]),
  ...                           pair_mask=jnp.ones(2, bool))
  >>> print(f'{loss:.4f}')
  1.2201

  Args:
    chosen_rewards: float [B], unnormalised scores of preferred responses.
    rejected_rewards: float [B], scores of the others, same order.
    pair_mask: bool [B], False on padding, which may hold any value (NaN too)
      without touching loss or gradient.
    margin: scalar or float [B], how far apart the scores should be: larger for
      a stronger preference.
    label_smoothing: in [0, 0.5).
    flip_rate: in [0, 0.5); not together with label_smoothing.
    centring: 0 or more.
    tie_mask: bool [B], pairs between which raters saw no difference (either
      order), or None for none.
    tie_odds: 0 or more; among equals a share v / (2 + v) are ties, so
      2 p / (1 - p) for a share p.
  Returns:
    float32 [], nats a pair; zero when no pair is kept.
  Raises:
    ValueError: the shapes differ (the message gives all), or an option is out
      of its range.
  """
  require_same_shape(
    chosen_rewards=chosen_rewards,
    rejected_rewards=rejected_rewards,
    pair_mask=pair_mask,
  )
  _check_rates(label_smoothing, flip_rate, centring, tie_odds)
  chosen = hide(chosen_rewards, pair_mask)
  rejected = hide(rejected_rewards, pair_mask)
  margin = jnp.broadcast_to(jnp.asarray(margin, chosen.dtype), chosen.shape)
  plain = chosen - rejected
  gap = plain - hide(margin, pair_mask)
  as_labelled, as_flipped = _surprise(gap, tie_odds), _surprise(-gap, tie_odds)
  losses = (
    (1 - label_smoothing) * as_labelled + label_smoothing * as_flipped
    if label_smoothing
    else ((1 - flip_rate) * as_labelled - flip_rate * as_flipped)
    / (1 - 2 * flip_rate)
  )
  if tie_mask is not None:
    require_same_shape(tie_mask=tie_mask, pair_mask=pair_mask)
    # l(g) + g / 2 is the logarithm of the sum of all odds.
    as_tie = _surprise(plain, tie_odds) + plain / 2
    if tie_odds:
      as_tie -= jnp.log(tie_odds).astype(as_tie.dtype)
    losses = jnp.where(tie_mask, as_tie, losses)
  losses += centring * jnp.square(chosen + rejected)
  return masked_mean(losses, pair_mask)


def general_preference(
  first: Float[Array, '... K'], second: Float[Array, '... K']
) -> Float[Array, '...']:
  r"""Log-odds that the first of two responses is preferred, cycles included.

  A response is K/2 points in the plane, and one beats another where it lies
  counter-clockwise before it (the general preference model of Zhang et al.
  2024, eq. 5, whose operator is block-diagonal and skew-symmetric):

      s(a, b) = sum_k a_2k b_2k+1 - a_2k+1 b_2k = -s(b, a)

  Scores on a line cannot say that a beats b, b beats c and c beats a; these
  can. Over a population of b's the mean of s(a, b) is s(a, mean of b), a score
  for each response. As a loss: `bradley_terry_loss` of s(a, b) against 0.

  >>> print(general_preference(jnp.array([1., 0.]), jnp.array([0., 2.])))
  2.0

  Args:
    first, second: float [..., K], K even.
  Returns:
    [...], float32 at least.
  Raises:
    ValueError: shapes differ, or K is odd.
  """
  require_same_shape(first=first, second=second)
  if first.shape[-1] % 2:
    raise ValueError(
      f'a response is an even number of coordinates, got {first.shape[-1]}'
    )
  first, second = at_least_float32(first), at_least_float32(second)
  across = first[..., ::2] * second[..., 1::2]
  return jnp.sum(across - first[..., 1::2] * second[..., ::2], axis=-1)


def preference_accuracy(
  chosen_rewards: Float[Array, ' B'],
  rejected_rewards: Float[Array, ' B'],
  *,
  pair_mask: Bool[Array, ' B'],
) -> Float[Array, '']:
  """Share of kept pairs whose chosen response scores higher; a tie is half.

  >>> print(preference_accuracy(jnp.array([1., 0.]), jnp.array([0., 0.]),
  ...                           pair_mask=jnp.ones(2, bool)))
  0.75
  """
  gap = hide(chosen_rewards, pair_mask) - hide(rejected_rewards, pair_mask)
  return masked_mean((jnp.sign(gap) + 1) / 2, pair_mask)


def _surprise(gap, tie_odds):
  """-log P(chosen) of pairs whose chosen side is ahead by `gap`."""
  if not tie_odds:
    return jax.nn.softplus(-gap)
  tie = jnp.full_like(gap, jnp.log(tie_odds))
  odds = jnp.stack([gap / 2, -gap / 2, tie])
  return jax.nn.logsumexp(odds, axis=0) - gap / 2


def _check_rates(label_smoothing, flip_rate, centring, tie_odds):
  for name, rate in (
    ('label_smoothing', label_smoothing),
    ('flip_rate', flip_rate),
  ):
    if not 0 <= rate < 0.5:
      raise ValueError(f'{name} must be in [0, 0.5), got {rate}')
  if label_smoothing and flip_rate:
    raise ValueError(
      'label_smoothing and flip_rate are two answers to noisy labels: set one '
      f'to 0, got {label_smoothing} and {flip_rate}'
    )
  for name, size in (('centring', centring), ('tie_odds', tie_odds)):
    if size < 0:
      raise ValueError(f'{name} must be 0 or more, got {size}')
