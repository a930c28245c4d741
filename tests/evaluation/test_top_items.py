"""Exact lists: against sorting, over devices, with ties and exclusions."""

from __future__ import annotations

import doctest
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from p4lm.errors import UserError
from p4lm.evaluation import item_lists, top_items
from p4lm.evaluation.item_lists import ItemLists
from p4lm.evaluation.top_items import top_of_scores

USERS, ITEMS, WIDTH = 13, 211, 3


def lists(rows):
  users = [user for user, items in enumerate(rows) for _ in items]
  items = [item for row in rows for item in row]
  return ItemLists.from_pairs(users, items, len(rows))


def problem(seed, items=ITEMS):
  """Small whole numbers: many ties, and float32 sums without rounding."""
  generator = np.random.default_rng(seed)
  users = generator.integers(-2, 3, (USERS, WIDTH))
  catalogue = generator.integers(-2, 3, (items, WIDTH))
  offsets = generator.integers(0, 2, items)
  share = generator.random((USERS, 1))
  seen = generator.random((USERS, items)) < share
  seen[0], seen[1] = True, False
  return users, catalogue, offsets, [np.flatnonzero(row) for row in seen]


def sorted_lists(users, items, offsets, seen, k):
  """What a person would do: sort what is left by score, then by row."""
  found = []
  for row, user in enumerate(users):
    scores = items @ user + offsets
    left = sorted(set(range(len(items))) - set(seen[row].tolist()))
    best = sorted(left, key=lambda item: (-scores[item], item))[:k]
    found.append(best + [-1] * (k - len(best)))
  return found


@pytest.mark.parametrize('k', [1, 7, 20, 300])
@pytest.mark.parametrize('block', [1, 4, 128])
def test_equals_sorting(monkeypatch, k, block):
  monkeypatch.setattr(top_items, '_BLOCK', block)
  monkeypatch.setattr(top_items, '_BATCH_SCORES', 5 * ITEMS)
  done = []
  for seed in range(4):
    users, items, offsets, seen = problem(seed)
    found = top_items.top_items(
      users, items, k, exclude=lists(seen), item_offsets=offsets,
      on_users=done.append,
    )  # fmt: skip
    assert found.dtype == np.int32
    assert found.tolist() == sorted_lists(users, items, offsets, seen, k)
    for user, row in enumerate(found):
      assert not set(row.tolist()) & set(seen[user].tolist())
  assert sum(done) == 4 * USERS and max(done) <= 5


def test_the_blocks_that_are_sorted_hold_the_best():
  """Equal maxima, blocks of one value, and -inf, against one whole sort."""
  generator = np.random.default_rng(0)
  scores = generator.integers(0, 9, (50, 640)).astype(np.float32)
  scores[0] = 1
  scores[1] = -np.inf
  scores[2, 5:] = -np.inf
  scores[3, ::16] = 20
  values, rows = top_items._best_columns(jnp.asarray(scores), 7, 16)
  expected = np.argsort(-scores, axis=1, kind='stable')[:, :7]
  kept = np.take_along_axis(scores, expected, axis=1) > -np.inf
  assert kept.sum() == 7 * 48 + 5
  np.testing.assert_array_equal(np.asarray(rows)[kept], expected[kept])
  np.testing.assert_array_equal(
    np.asarray(values), np.take_along_axis(scores, expected, axis=1)
  )


def test_zeros_of_both_signs_are_equal():
  items = np.array([[0.0], [-0.0], [0.0]])
  assert top_items.top_items([[1.0], [-1.0]], items, 3).tolist() == [
    [0, 1, 2], [0, 1, 2],
  ]  # fmt: skip
  assert top_of_scores([[-0.0, 0.0]], 2).tolist() == [[0, 1]]


def test_no_number_is_no_score():
  items = np.array([[np.inf], [1.0], [-np.inf]])
  found = top_items.top_items([[0.0], [1.0]], items, 3)
  assert found.tolist() == [[1, -1, -1], [0, 1, -1]]
  assert top_of_scores([[np.nan, 1.0]], 2).tolist() == [[1, -1]]
  ranked = top_items.top_items(
    [[1.0]], [[3.0], [4.0]], 2, item_offsets=[0, -np.inf]
  )
  assert ranked.tolist() == [[0, -1]]


def test_scores_are_compared_in_float32():
  """16,777,217 has no float32 of its own: a tie, the lower row first."""
  assert top_of_scores([[16777216.0, 16777217.0]], 1).tolist() == [[0]]


def test_nothing_to_rank():
  assert top_items.top_items(np.ones((2, 2)), np.ones((0, 2)), 2).tolist() == [
    [-1, -1], [-1, -1],
  ]  # fmt: skip
  assert top_items.top_items(np.ones((0, 2)), np.ones((3, 2)), 2).shape == (
    0,
    2,
  )
  assert top_items.top_items(np.ones((1, 2)), np.ones((2, 2)), 4).tolist() == [
    [0, 1, -1, -1]
  ]


@pytest.mark.parametrize('k', [0, -1, 2.0, True, '20'])
def test_a_bad_cutoff_is_told(k):
  with pytest.raises(UserError, match='cut-off k is .*at least 1'):
    top_items.top_items(np.ones((1, 2)), np.ones((2, 2)), k)
  with pytest.raises(UserError, match='cut-off k'):
    top_of_scores(np.ones((1, 2)), k)


def test_arrays_that_do_not_fit_are_told():
  users, items = np.ones((2, 3)), np.ones((4, 3))
  with pytest.raises(UserError, match=r'\(2, 3\) and item_embeddings \(4, 2\)'):
    top_items.top_items(users, items[:, :2], 1)
  with pytest.raises(UserError, match=r'shape \(3,\) for 4 items'):
    top_items.top_items(users, items, 1, item_offsets=np.ones(3))
  with pytest.raises(UserError, match='1 lists of excluded items for 2 users'):
    top_items.top_items(users, items, 1, exclude=lists([[0]]))
  with pytest.raises(UserError, match='row 4 is excluded but there are 4'):
    top_items.top_items(users, items, 1, exclude=lists([[0], [4]]))


_DEVICES = """
import sys, jax, numpy as np
sys.path.insert(0, 'tests/evaluation')
import test_top_items as case
from p4lm.evaluation import top_items
from p4lm.partitioning.mesh import make_mesh
assert len(jax.devices()) == 4
top_items._BLOCK, top_items._BATCH_SCORES = 4, 5 * 53
for seed, items, k in ((0, 211, 7), (1, 211, 60), (2, 3, 2), (3, 211, 300)):
  users, catalogue, offsets, seen = case.problem(seed, items)
  found = top_items.top_items(
    users, catalogue, k, exclude=case.lists(seen), item_offsets=offsets,
    mesh=make_mesh(),
  )
  wanted = case.sorted_lists(users, catalogue, offsets, seen, k)
  assert found.tolist() == wanted, (seed, items, k)
  print('equal')
"""


def test_four_devices_share_the_catalogue(repository):
  found = subprocess.run(
    [sys.executable, '-c', _DEVICES],
    env=os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=4'},
    cwd=repository, capture_output=True, text=True, timeout=240,
  )  # fmt: skip
  assert found.returncode == 0, found.stderr[-2000:]
  assert found.stdout.split() == ['equal'] * 4


def test_lists_group_pairs():
  found = lists([[3, 3, 1], [], [7]])
  assert [row.tolist() for row in (found[0], found[1], found[2])] == [
    [1, 3], [], [7],
  ]  # fmt: skip
  assert found.counts().tolist() == [2, 0, 1]
  users, items = found.pairs(1, 3)
  assert (users.tolist(), items.tolist()) == ([1], [7])
  empty = ItemLists.from_pairs([], [], 2)
  assert len(empty) == 2 and empty.counts().tolist() == [0, 0]


def test_examples():
  for module in (top_items, item_lists):
    found = doctest.testmod(module)
    assert found.attempted and not found.failed
