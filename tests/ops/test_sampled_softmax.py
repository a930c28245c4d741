"""The sampled softmax against hand values, numpy and exact enumeration."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p4lm.ops.sampled_softmax import sampled_softmax_loss

CORRECTIONS = ('importance', 'posterior', 'none')

# A catalogue of three items: how often each is drawn, how likely this user
# takes it, and some scores.
DRAWN = np.array([0.6, 0.3, 0.1])
TAKEN = np.array([0.5, 0.2, 0.3])
SCORES = np.array([0.3, -0.4, 0.8])


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def loss_of(scores, ids, counts, **options):
  options.setdefault('example_mask', jnp.ones(len(scores), bool))
  return sampled_softmax_loss(
    jnp.asarray(scores), jnp.asarray(ids), jnp.log(jnp.asarray(counts)),
    **options,
  )  # fmt: skip


def test_three_pairs_by_hand():
  """Items 7, 8 and 7 again; exp of the scores are whole numbers.

  Two draws each: c(7) = 2 * 0.5 = 1, c(8) = 2 * 0.25 = 1/2. The third pair's
  item is no negative of the first and the other way round.
    row 0: Z = 2 + 3 / (1/2) = 8          -> 2/8
    row 1: Z = 5 + 1 / 1 + 4 / 1 = 10     -> 5/10
    row 2: Z = 6 + 3 / (1/2) = 12         -> 6/12
  """
  scores = np.log([[2.0, 3.0, 9.0], [1.0, 5.0, 4.0], [8.0, 3.0, 6.0]])
  found = loss_of(scores, [7, 8, 7], [1.0, 0.5, 1.0])
  expected = (math.log(4) + math.log(2) + math.log(2)) / 3
  np.testing.assert_allclose(found, expected, rtol=1e-12)

  # Yi et al.: row 0 is 2/1 of 2/1 + 3/(1/2) + 9/1; row 1, 5/(1/2) of
  # 1/1 + 5/(1/2) + 4/1; row 2, 6/1 of 8/1 + 3/(1/2) + 6/1.
  found = loss_of(scores, [7, 8, 7], [1, 0.5, 1], correction='posterior')
  expected = -(math.log(2 / 17) + math.log(10 / 15) + math.log(6 / 20)) / 3
  np.testing.assert_allclose(found, expected, rtol=1e-12)

  # Weights 3, 1 and 0 leave the first two rows.
  weights = jnp.array([3.0, 1.0, 0.0])
  found = loss_of(scores, [7, 8, 7], [1, 0.5, 1], example_weights=weights)
  expected = (3 * math.log(4) + math.log(2)) / 4
  np.testing.assert_allclose(found, expected, rtol=1e-12)

  # Hiding item 8 from row 0 leaves it the positive alone; row 1 keeps its own.
  hidden = jnp.array([[True, True, True], [False, True, False], [False] * 3])
  found = loss_of(scores, [7, 8, 7], [1, 0.5, 1], hidden=hidden)
  np.testing.assert_allclose(found, 2 * math.log(2) / 3, rtol=1e-12)


def plain_loss(scores, ids, counts, mask, weights, hidden, correction):
  """The definition, pair by pair."""
  total = 0.0
  for b in np.flatnonzero(mask):
    own = counts[b] if correction == 'posterior' else 1.0
    positive = math.exp(scores[b, b]) / own
    normalizer = positive
    for c in range(len(ids)):
      if c == b or (c < len(mask) and not mask[c]):
        continue
      if ids[c] == ids[b]:
        if correction == 'importance':
          continue
      elif hidden[b, c]:
        continue
      weight = 1.0 if correction == 'none' else counts[c]
      normalizer += math.exp(scores[b, c]) / weight
    total -= weights[b] * math.log(positive / normalizer)
  return total / weights[mask].sum()


@pytest.mark.parametrize('correction', CORRECTIONS)
def test_value_and_gradient_are_those_of_the_definition(correction):
  generator = np.random.default_rng(1)
  scores = generator.normal(size=(5, 9))
  ids = np.array([4, 2, 4, 0, 1, 4, 3, 3, 2])
  counts = generator.uniform(0.1, 3.0, 5)[ids]
  mask = np.array([True, True, True, False, True])
  weights = generator.uniform(0.2, 2.0, 5)
  hidden = generator.random((5, 9)) < 0.3
  plain = functools.partial(
    plain_loss, ids=ids, counts=counts, mask=mask, weights=weights,
    hidden=hidden, correction=correction,
  )  # fmt: skip
  found, gradient = jax.value_and_grad(loss_of)(
    jnp.asarray(scores), ids, counts, example_mask=jnp.asarray(mask),
    example_weights=jnp.asarray(weights), hidden=jnp.asarray(hidden),
    correction=correction,
  )  # fmt: skip
  np.testing.assert_allclose(found, plain(scores), rtol=1e-12)
  for place in np.ndindex(scores.shape):
    up, down = scores.copy(), scores.copy()
    up[place] += 1e-5
    down[place] -= 1e-5
    difference = (plain(up) - plain(down)) / 2e-5
    np.testing.assert_allclose(gradient[place], difference, atol=1e-9)


def draws(count):
  """(items of `count` draws, probability) of each unordered outcome."""
  outcomes = list(itertools.combinations_with_replacement(range(3), count))
  times = np.array([np.bincount(o, minlength=3) for o in outcomes])
  ways = [
    math.factorial(count) / math.prod(map(math.factorial, map(int, t)))
    for t in times
  ]
  return np.array(outcomes), np.array(ways) * np.prod(DRAWN**times, axis=1)


def over_draws(function, count, **options):
  """Expectation over the negatives, for each of the three positives."""
  outcomes, probabilities = draws(count)

  def one(scores, positive, negatives):
    ids = jnp.concatenate([positive[None], negatives])
    counts = count * jnp.asarray(DRAWN)[ids]
    return function(
      lambda s: loss_of(s[ids][None], ids, counts, **options), scores, positive
    )

  each = jax.jit(jax.vmap(one, (None, None, 0)))
  return np.stack(
    [
      np.tensordot(probabilities, each(scores, positive, outcomes), 1)
      for scores, positive in zip([jnp.asarray(SCORES)] * 3, jnp.arange(3))
    ]
  )


def expected_gradient(scores, count, correction):
  """d E[loss] / d scores over the user's positives and all draws."""
  outcomes, probabilities = draws(count)

  def loss(scores, ids):
    counts = count * jnp.asarray(DRAWN)[ids]
    return loss_of(scores[ids][None], ids, counts, correction=correction)

  gradients = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))
  total = np.zeros(3)
  for positive, taken in enumerate(TAKEN):
    own = np.full((len(outcomes), 1), positive)
    found = gradients(jnp.asarray(scores), np.hstack([own, outcomes]))
    total += taken * probabilities @ np.asarray(found)
  return total


def full_gradient(scores):
  chances = np.exp(scores) / np.exp(scores).sum()
  return chances - TAKEN


@pytest.mark.parametrize('count', [1, 2, 5])
def test_the_normalizer_is_estimated_without_bias(count):
  """Z = exp(loss + s of the positive), over all draws: sum of exp s."""

  def normalizer(loss, scores, positive):
    return jnp.exp(loss(scores) + scores[positive])

  found = over_draws(normalizer, count, correction='importance')
  np.testing.assert_allclose(found, np.exp(SCORES).sum(), rtol=1e-12)


@pytest.mark.parametrize('correction', ['importance', 'posterior'])
def test_more_draws_tend_to_the_full_softmax(correction):
  """The error of the expected gradient falls as 1 / draws, to nothing."""
  errors = [
    expected_gradient(SCORES, n, correction) - full_gradient(SCORES)
    for n in (16, 32, 64)
  ]
  sizes = np.abs(errors).max(axis=1)
  np.testing.assert_allclose(sizes[1:] / sizes[:-1], 0.5, atol=0.03)
  # What is left of an error a + b / n when b is eliminated.
  assert np.abs(2 * errors[2] - errors[1]).max() < 0.1 * sizes[2]


@pytest.mark.parametrize('count', [1, 2, 6])
def test_the_posterior_has_the_full_softmaxs_optimum(count):
  """Whatever the number of draws: at s = log p + constant nothing moves."""
  optimum = np.log(TAKEN) + 1.7
  found = expected_gradient(optimum, count, 'posterior')
  np.testing.assert_allclose(found, 0.0, atol=1e-14)


@pytest.mark.parametrize('count', [1, 2, 6, 40])
def test_without_correction_popular_items_are_pushed_down(count):
  """At the full softmax's optimum the often drawn item has a positive slope and
  the rarely drawn one a negative; nothing moves at log p - log q instead."""
  slopes = expected_gradient(np.log(TAKEN), count, 'none')
  assert slopes[0] > 0.04 and slopes[2] < -0.04
  shifted = expected_gradient(np.log(TAKEN / DRAWN) - 0.3, count, 'none')
  np.testing.assert_allclose(shifted, 0.0, atol=1e-14)


@pytest.mark.parametrize('correction', CORRECTIONS)
def test_the_others_of_a_batch_are_draws_from_the_frequencies(correction):
  """All 5^3 batches of three of five pairs: their mean gradient is that of each
  pair with two draws from the items' frequencies."""
  users = np.array([0, 0, 1, 1, 0])
  items = np.array([0, 1, 0, 2, 0])
  frequencies = np.bincount(items) / 5
  table = jnp.asarray(np.random.default_rng(2).normal(size=(2, 3)))
  counts = 2 * frequencies

  def batch_loss(table, rows):
    mine, theirs = jnp.asarray(users)[rows], jnp.asarray(items)[rows]
    scores = table[mine][:, theirs]
    return loss_of(
      scores, theirs, jnp.asarray(counts)[theirs], correction=correction
    )

  def pair_loss(table, row, drawn):
    ids = jnp.concatenate([jnp.asarray(items)[row][None], drawn])
    scores = table[jnp.asarray(users)[row]][ids][None]
    return loss_of(scores, ids, jnp.asarray(counts)[ids], correction=correction)

  batches = np.array(list(itertools.product(range(5), repeat=3)))
  found = jax.vmap(jax.grad(batch_loss), (None, 0))(table, batches).mean(0)

  drawn = np.array(list(itertools.product(range(3), repeat=2)))
  chances = np.prod(frequencies[drawn], axis=1)
  gradients = jax.vmap(jax.grad(pair_loss), (None, None, 0))
  expected = sum(
    np.tensordot(chances, gradients(table, row, drawn), 1) / 5
    for row in np.arange(5)
  )
  np.testing.assert_allclose(found, expected, atol=1e-14)


def test_bad_arguments_are_named():
  with pytest.raises(ValueError, match="correction must be one of.*'logq'"):
    loss_of(np.zeros((1, 2)), [0, 1], [1, 1], correction='logq')
  with pytest.raises(ValueError, match='3 examples need at least as many'):
    loss_of(np.zeros((3, 2)), [0, 1], [1.0, 1.0])
