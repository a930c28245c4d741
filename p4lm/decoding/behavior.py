"""The behaviour distribution, which tokens are drawn from.

In one place for the sampler and for replaying its log-probabilities. No sort
anywhere: a truncation keeps every token whose probability reaches a threshold,
found by bisection over the float32 values in (0, 1], fewer than 2^30. That is
thirty passes over a row, exact to the last bit, where sorting it costs ten
times as much on a CPU. Tokens of equal probability are kept or dropped
together.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from p4lm.errors import UserError
from p4lm.typing import Array, Bool, Float, Int

# Bit patterns of the smallest normal float32 and of 1.0. Smaller numbers count
# as zero in vectorised code.
_SMALLEST_AS_BITS, _ONE_AS_BITS = 0x00800000, 0x3F800000


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
  """How responses are drawn.

  Attributes:
    max_length: tokens L of a response at most, EOS included.
    temperature: logits are divided by it first.
    top_k: keeps the k likeliest tokens; 0 keeps all.
    top_p: then keeps the smallest set of likeliest tokens that holds at least
      this share of the probability; 1 keeps all.
    min_length: EOS is not drawn before this many other tokens, nor a stop id.
    num_samples: responses G for each prompt.
    greedy: takes the likeliest token; temperature, top_k and top_p must be at
      their defaults. Its log-probabilities are those at temperature 1.
    num_tokens: ids from here up are never drawn (rows that only pad the
      embedding table); 0 allows all.
    stop_ids: tokens that end a response as EOS does, and count as it does.
  """

  max_length: int
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_length: int = 0
  num_samples: int = 1
  greedy: bool = False
  num_tokens: int = 0
  stop_ids: tuple[int, ...] = ()

  def __post_init__(self):
    checks = (
      ('max_length', self.max_length >= 1, 'at least 1'),
      ('temperature', self.temperature > 0, 'above 0 (greedy=True for 0)'),
      ('top_k', self.top_k >= 0, 'at least 0 (0 keeps all)'),
      ('top_p', 0 < self.top_p <= 1, 'in (0, 1]'),
      ('min_length', 0 <= self.min_length < self.max_length, 'in [0, L)'),
      ('num_samples', self.num_samples >= 1, 'at least 1'),
      ('num_tokens', self.num_tokens >= 0, 'at least 0 (0 allows all)'),
    )
    for name, holds, wanted in checks:
      if not holds:
        raise UserError(
          f'SamplerConfig.{name} is {getattr(self, name)!r}; it must be'
          f' {wanted}.'
        )
    changed = (self.temperature, self.top_k, self.top_p) != (1.0, 0, 1.0)
    if self.greedy and changed:
      raise UserError(
        'SamplerConfig.greedy takes the likeliest token: leave temperature,'
        ' top_k and top_p at their defaults, or set greedy=False.'
      )


def behavior_logits(
  logits: Float[Array, '*B V'],
  position: Int[Array, '...'] | int,
  config: SamplerConfig,
  eos_id: int,
) -> Float[Array, '*B V']:
  """Logits of the behaviour distribution, -inf for what is never drawn.

  In order: forbidden tokens go, the rest is divided by the temperature, then
  top-k, then top-p of what top-k left. Their log-softmax is the behaviour
  distribution, renormalised over the kept tokens.

  Args:
    logits: of the model.
    position: index of the token in its response, for min_length.
    config: of the sampler.
    eos_id: not drawn at positions before min_length.
  """
  token = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
  if config.num_tokens:
    logits = jnp.where(token < config.num_tokens, logits, -jnp.inf)
  if config.min_length:
    position = jnp.broadcast_to(position, logits.shape[:-1])[..., None]
    ends = token == eos_id
    for stop_id in config.stop_ids:
      ends |= token == stop_id
    early_eos = ends & (position < config.min_length)
    logits = jnp.where(early_eos, -jnp.inf, logits)
  if config.temperature != 1.0:
    logits = logits / config.temperature
  if config.top_k and config.top_k < logits.shape[-1]:
    logits = jnp.where(top_k_mask(logits, config.top_k), logits, -jnp.inf)
  if config.top_p < 1.0:
    logits = jnp.where(top_p_mask(logits, config.top_p), logits, -jnp.inf)
  return logits


def top_k_mask(logits: Float[Array, '*B V'], k: int) -> Bool[Array, '*B V']:
  """True for the k largest, and for all that equal the k-th.

  >>> top_k_mask(jnp.log(jnp.array([.1, .4, .2, .3])), 2).tolist()
  [False, True, False, True]
  """
  weights = _relative_weights(logits)
  enough = lambda kept: kept.sum(axis=-1) >= k
  return weights >= _threshold(weights, enough)


def top_p_mask(
  logits: Float[Array, '*B V'], share: float
) -> Bool[Array, '*B V']:
  """True for the smallest set of likeliest tokens with at least this share.

  >>> top_p_mask(jnp.log(jnp.array([.1, .4, .2, .3])), 0.6).tolist()
  [False, True, False, True]
  """
  weights = _relative_weights(logits)
  wanted = share * weights.sum(axis=-1)
  enough = lambda kept: jnp.where(kept, weights, 0.0).sum(axis=-1) >= wanted
  return weights >= _threshold(weights, enough)


def draw(
  logits: Float[Array, 'R V'], uniform: Float[Array, 'R']
) -> Int[Array, 'R']:
  """A token a row by inverting the cumulative distribution at `uniform`.

  One uniform number a row and one pass over the vocabulary: Gumbel noise would
  take a number a token, which costs more than a tiny model's whole step. The
  sums are taken block by block, first to find the block, then within it.

  Args:
    logits: -inf for what is never drawn; some logit of a row is finite.
    uniform: in [0, 1).
  """
  weights = _relative_weights(logits)
  rows, vocab = weights.shape
  width = _block_width(vocab)
  blocks = weights.reshape(rows, vocab // width, width)
  upto = jnp.cumsum(blocks.sum(axis=-1), axis=-1)
  target = uniform * upto[:, -1]
  block = _first_above(upto, target, jnp.diff(upto, prepend=0.0) > 0)
  before = jnp.where(
    block > 0,
    jnp.take_along_axis(upto, jnp.maximum(block - 1, 0)[:, None], 1)[:, 0],
    0.0,
  )
  inside = jnp.take_along_axis(blocks, block[:, None, None], 1)[:, 0]
  within = jnp.cumsum(inside, axis=-1)
  return block * width + _first_above(within, target - before, inside > 0)


def largest(logits: Float[Array, 'R V']) -> Int[Array, 'R']:
  """The lowest index of each row's maximum.

  As jnp.argmax, which XLA does not vectorise on a CPU; this is six times as
  fast there.
  """
  top = logits.max(axis=-1, keepdims=True)
  index = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
  return jnp.where(logits == top, index, logits.shape[-1] - 1).min(axis=-1)


def _relative_weights(logits: Array) -> Array:
  return jnp.exp(logits - logits.max(axis=-1, keepdims=True))


def _threshold(
  weights: Float[Array, '*B V'], enough: Callable[[Array], Array]
) -> Float[Array, '*B 1']:
  """The largest t in (0, 1] for which the kept set weights >= t is enough.

  Positive floats order as their bit patterns do, so bisecting the patterns
  visits every float32 there is.
  """

  def halve(_, bounds):
    low, high = bounds
    middle = low + (high - low + 1) // 2
    value = jax.lax.bitcast_convert_type(middle, jnp.float32)
    holds = enough(weights >= value[..., None])
    return jnp.where(holds, middle, low), jnp.where(holds, high, middle - 1)

  low = jnp.full(weights.shape[:-1], _SMALLEST_AS_BITS, jnp.int32)
  high = jnp.full(weights.shape[:-1], _ONE_AS_BITS, jnp.int32)
  low, _ = jax.lax.fori_loop(0, 30, halve, (low, high))
  return jax.lax.bitcast_convert_type(low, jnp.float32)[..., None]


def _first_above(
  cumulative: Float[Array, 'R M'],
  target: Float[Array, 'R'],
  positive: Bool[Array, 'R M'],
) -> Int[Array, 'R']:
  # Rounding can leave no entry above the target; the last one of positive
  # weight is then the one whose interval holds it.
  index = jnp.sum(cumulative <= target[:, None], axis=-1)
  place = jax.lax.broadcasted_iota(jnp.int32, positive.shape, 1)
  last = jnp.max(jnp.where(positive, place, 0), axis=-1)
  return jnp.minimum(index, last).astype(jnp.int32)


def _block_width(vocab: int) -> int:
  """The divisor of the vocabulary that is nearest above its square root."""
  width = max(int(vocab**0.5), 1)
  while vocab % width:
    width += 1
  return width
