"""The softmax over a whole catalogue, estimated from a few candidates."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from p4lm.ops.masks import at_least_float32, hide
from p4lm.typing import Array, Bool, Float, Int

Correction = Literal['importance', 'posterior', 'none']


def sampled_softmax_loss(
  scores: Float[Array, 'B C'],
  candidate_ids: Int[Array, ' C'],
  log_expected_counts: Float[Array, ' C'],
  *,
  example_mask: Bool[Array, ' B'],
  example_weights: Float[Array, ' B'] | None = None,
  hidden: Bool[Array, 'B C'] | None = None,
  correction: Correction = 'importance',
) -> Float[Array, '']:
  r"""Cross-entropy of each example's item against sampled negatives.

  Candidate b is the positive item of example b, and a negative of the others
  (in-batch negatives); candidates B, B + 1, ... are negatives of all:

      candidates      0   1   2   3   4
      example 0       +   -   -   -   -
      example 1       -   +   -   -   -     B = 3, C = 5
      example 2       -   -   +   -   -

  The softmax over all items would cost
      -s(b, i_b) + log sum_i exp s(b, i).
  Popular items are drawn as negatives more often than others, so the draws
  alone would push their scores down. With c(i) the expected number of draws of
  item i among the N negatives of an example, N q(i) for draws from q:

  importance  Bengio and Senecal 2008. The positive counts once and the draws of
              other items estimate the rest of the sum without bias,
                Z_b = exp s(b, i_b) + sum_{j: i_j != i_b} exp s(b, j) / c(i_j),
              so loss and gradient tend to the full softmax's as N grows; their
              bias at a finite N falls as 1/N.
  posterior   Yi et al. 2019, section 3: log c(i_j) is taken from every
              candidate's score, the positive's too, and a second draw of the
              positive's item stays. This is the probability that, of these
              candidates, the positive is the one not drawn from q: the full
              softmax's optimum is stationary whatever N is.
  none        the same without log c. Its optimum is s = log p - log q for the
              full softmax's p: unpopular items are ranked too high.

      loss = sum_b w_b [-log softmax over the candidates of b]_b / sum_b w_b

  One negative with c = 1/2 stands for two items, so with equal scores
  Z = 1 + 2:

  >>> loss = sampled_softmax_loss(
  ...   jnp.zeros((2, 2)), jnp.array([7, 8]), jnp.log(jnp.array([0.5, 0.5])),
  ...   example_mask=jnp.ones(2, bool))
  >>> print(f'{loss:.4f}')
  1.0986

  Args:
    scores: float [B, C], s; C >= B.
    candidate_ids: int [C], equal for equal items.
    log_expected_counts: float [C], log c of each candidate's item.
    example_mask: bool [B], False on padding, which is nobody's negative and
      whose scores may be NaN.
    example_weights: float [B], not negative; None weighs all alike.
    hidden: bool [B, C], candidates to leave out of an example's negatives, such
      as its user's other positives. The positive's own item is not concerned.
    correction: see above.
  Returns:
    float32 [] (float64 for float64 scores), nats an example; zero when none is
    kept.
  Raises:
    ValueError: an unknown correction, or fewer candidates than examples.
  """
  if correction not in get_args(Correction):
    raise ValueError(
      f'correction must be one of {", ".join(get_args(Correction))}; got '
      f'{correction!r}'
    )
  batch, count = scores.shape
  if count < batch:
    raise ValueError(
      f'{batch} examples need at least as many candidates, got {count}'
    )
  positive = jnp.eye(batch, count, dtype=bool)
  same_item = candidate_ids[:batch, None] == candidate_ids[None, :]
  kept = jnp.concatenate([example_mask, jnp.ones(count - batch, bool)])
  counted = example_mask[:, None] & kept[None, :]
  if hidden is not None:
    counted &= same_item | ~hidden
  if correction == 'importance':
    counted &= ~same_item
  counted |= positive

  # Padding is replaced before any arithmetic; its row keeps one finite entry.
  seen = jnp.where(kept, at_least_float32(log_expected_counts), 0.0)
  logits = hide(scores, counted & example_mask[:, None])
  if correction == 'importance':
    logits -= jnp.where(positive, 0.0, seen[None, :])
  elif correction == 'posterior':
    logits -= seen[None, :]
  logits = jnp.where(counted, logits, -jnp.inf)
  losses = jax.nn.logsumexp(logits, axis=1) - jnp.diagonal(logits)

  if example_weights is None:
    example_weights = jnp.ones(batch, losses.dtype)
  weights = hide(example_weights, example_mask)
  total = jnp.sum(weights)
  return jnp.sum(weights * losses) / jnp.where(total > 0, total, 1.0)
