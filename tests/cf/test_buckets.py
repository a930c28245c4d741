"""Buckets and placements hold every row once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p4lm.cf import buckets as buckets_lib
from p4lm.cf.buckets import plan_buckets, row_cost
from p4lm.cf.placement import one_device_mesh, place, place_evenly

_COUNTS = st.lists(st.integers(0, 5000), min_size=1, max_size=60)


@settings(max_examples=80, deadline=None)
@given(_COUNTS, st.sampled_from([4, 64, 128]), st.sampled_from([1, 3, 256]))
def test_buckets_hold_each_row_once(counts, width, longest):
  buckets = plan_buckets(np.array(counts), width, longest=longest)
  held = np.concatenate([b.rows for b in buckets] or [np.zeros(0, int)])
  assert sorted(held) == [r for r, n in enumerate(counts) if n]
  for bucket in buckets:
    entries = np.array(counts)[bucket.rows]
    assert np.all(np.diff(entries) <= 0)
    if bucket.segment:
      assert bucket.segment == longest < entries.min()
      rests = (entries - 1) % longest + 1
      assert rests.max() <= bucket.length <= longest
    else:
      assert entries.max() <= bucket.length <= longest


def test_lengths_are_few_for_small_data_and_fine_for_large():
  small = plan_buckets(np.arange(1, 100), 64)
  large = plan_buckets(np.tile(np.arange(1, 100), 5000), 64)
  assert len(small) == 1
  assert len(large) >= 4
  padded = sum(len(b.rows) * b.length for b in large)
  assert padded < 1.25 * 5000 * np.arange(1, 100).sum()


def test_chosen_lengths_cost_least(monkeypatch):
  """Against every subset of the candidates, compiling included."""
  import itertools

  counts = np.array([3, 3, 7, 11, 12, 19, 20, 20, 27])
  candidates = [8, 10, 12, 14, 16, 20, 24, 28]
  for price in (0, 1e3, 2e4, 1e6):
    monkeypatch.setattr(buckets_lib, '_SHAPE_COST', price)

    def cost(lengths, price=price):
      padded = [min(x for x in lengths if x >= n) for n in counts]
      used = len(set(padded))
      return sum(row_cost(x, 8) for x in padded) + price * used

    best = min(
      cost((*some, 28))
      for size in range(len(candidates))
      for some in itertools.combinations(candidates[:-1], size)
    )
    found = plan_buckets(counts, 8, longest=64)
    assert cost([b.length for b in found]) == pytest.approx(best)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 400), min_size=1, max_size=40))
def test_a_placed_table_comes_back(counts):
  mesh = one_device_mesh()
  buckets = plan_buckets(np.array(counts), 8)
  table = np.random.default_rng(0).standard_normal((len(counts), 3))
  table = table.astype(np.float32)
  for placement in (
    place(len(counts), buckets, mesh),
    place_evenly(len(counts), mesh),
  ):
    np.testing.assert_array_equal(placement.get(placement.put(table)), table)


def test_each_bucket_is_dealt_out_in_turn():
  """The example of the module: two devices, buckets {0 3 4} and {1 2 5}."""
  import types

  buckets = [
    buckets_lib.Bucket(4, np.array([0, 3, 4])),
    buckets_lib.Bucket(12, np.array([2, 1, 5])),
  ]
  mesh = types.SimpleNamespace(shape={'data': 2})
  placement = place(7, buckets, mesh)
  assert placement.owners.tolist() == [0, 0, 1, 1, 0, 1, 0]
  assert placement.block == 4
  assert placement.positions.tolist() == [0, 1, 4, 5, 2, 6, 3]
