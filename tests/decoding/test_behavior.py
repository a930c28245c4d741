"""Truncation against sorting, drawing against exact counts."""

from __future__ import annotations

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p4lm.decoding import behavior
from p4lm.decoding.behavior import (
  SamplerConfig,
  behavior_logits,
  draw,
  largest,
  top_k_mask,
  top_p_mask,
)
from p4lm.errors import UserError

LOGITS = np.random.default_rng(0).normal(0, 3, (40, 33)).astype('float32')


@pytest.mark.parametrize('k', [1, 2, 7, 33])
def test_top_k_keeps_the_k_largest(k):
  kept = top_k_mask(jnp.asarray(LOGITS), k)
  order = np.argsort(-LOGITS, axis=-1)[:, :k]
  expected = np.zeros(LOGITS.shape, bool)
  np.put_along_axis(expected, order, True, -1)
  np.testing.assert_array_equal(kept, expected)


@pytest.mark.parametrize('share', [0.01, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_smallest_sufficient_set(share):
  kept = np.asarray(top_p_mask(jnp.asarray(LOGITS), share))
  probabilities = np.exp(LOGITS.astype('float64'))
  probabilities /= probabilities.sum(-1, keepdims=True)
  for row in range(len(LOGITS)):
    order = np.argsort(-probabilities[row])
    size = np.searchsorted(np.cumsum(probabilities[row][order]), share) + 1
    assert set(np.flatnonzero(kept[row])) == set(order[:size])


def test_ties_stay_together_and_dropped_tokens_stay_dropped():
  logits = jnp.log(jnp.array([[0.4, 0.2, 0.2, 0.2]]))
  assert top_k_mask(logits, 2).tolist() == [[True, True, True, True]]
  assert top_p_mask(logits, 0.5).tolist() == [[True, True, True, True]]
  hidden = jnp.array([[0.0, -jnp.inf, -jnp.inf]])
  assert top_k_mask(hidden, 2).tolist() == [[True, False, False]]
  assert top_p_mask(hidden, 0.99).tolist() == [[True, False, False]]


def test_the_behaviour_distribution_is_what_its_settings_say():
  logits = jnp.log(jnp.array([[0.1, 0.2, 0.3, 0.15, 0.25]]))
  config = SamplerConfig(
    9, temperature=0.5, top_k=3, top_p=0.8, min_length=2, num_tokens=4
  )
  probabilities = lambda position: np.asarray(
    jax.nn.softmax(behavior_logits(logits, position, config, eos_id=2))
  )[0]
  # Early: tokens 0, 1, 3 remain, squared 1, 4, 2.25; the share 0.8 of 7.25
  # needs 1 and 3.
  np.testing.assert_allclose(
    probabilities(1), [0, 4 / 6.25, 0, 2.25 / 6.25, 0], atol=1e-6
  )
  # Later EOS joins: 9, 4, 2.25 are the top three; 0.8 of 15.25 needs 9 and 4.
  np.testing.assert_allclose(
    probabilities(2), [0, 4 / 13, 9 / 13, 0, 0], atol=1e-6
  )


@pytest.mark.parametrize('vocab', [5, 33, 64, 97])
def test_drawing_inverts_the_cumulative_distribution(vocab):
  rng = np.random.default_rng(vocab)
  logits = rng.normal(0, 2, vocab).astype('float32')
  logits[rng.random(vocab) < 0.3] = -np.inf
  logits[0] = 0.0
  points = 4000
  uniform = (np.arange(points) + 0.5) / points
  rows = jnp.broadcast_to(jnp.asarray(logits)[None], (points, vocab))
  tokens = np.asarray(draw(rows, jnp.asarray(uniform, jnp.float32)))
  weights = np.exp(logits.astype('float64'))
  expected = points * weights / weights.sum()
  counts = np.bincount(tokens, minlength=vocab)
  assert np.all(np.abs(counts - expected) <= 1.01)
  assert np.all(counts[np.isneginf(logits)] == 0)
  assert np.all(np.diff(tokens) >= 0)


def test_the_ends_of_the_unit_interval_draw_possible_tokens():
  logits = jnp.full((2, 30), -jnp.inf).at[:, 3:6].set(jnp.array([[0.1] * 3]))
  almost_one = np.nextafter(np.float32(1), np.float32(0))
  tokens = draw(logits, jnp.array([0.0, almost_one]))
  assert tokens.tolist() == [3, 5]


def test_largest_takes_the_first_of_equals():
  logits = jnp.array([[0.0, 2.0, 2.0], [3.0, 1.0, -jnp.inf], [1.0, 1.0, 1.0]])
  assert largest(logits).tolist() == [1, 0, 0]


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'temperature': 0.0}, 'temperature is 0.0.*greedy=True'),
    ({'top_p': 0.0}, 'top_p is 0.0'),
    ({'top_k': -1}, 'top_k is -1'),
    ({'max_length': 0}, 'max_length is 0'),
    ({'min_length': 9}, 'min_length is 9'),
    ({'num_samples': 0}, 'num_samples is 0'),
    ({'greedy': True, 'top_p': 0.5}, 'greedy takes the likeliest'),
  ],
)
def test_bad_settings_are_named(settings, message):
  with pytest.raises(UserError, match=message):
    SamplerConfig(**{'max_length': 9, **settings})


def test_examples():
  result = doctest.testmod(behavior, extraglobs={'jnp': jnp})
  assert result.attempted and not result.failed
