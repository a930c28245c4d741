"""Buckets cover every row once; compression keeps every entry."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from p4lm.cf.rows import compress, plan_buckets

_COUNTS = st.lists(st.integers(0, 5000), min_size=1, max_size=60)


@settings(max_examples=80, deadline=None)
@given(_COUNTS, st.sampled_from([4, 64, 128]), st.sampled_from([1, 4]))
def test_buckets_hold_each_row_once(counts, width, devices):
  buckets = plan_buckets(np.array(counts), width, num_devices=devices)
  held = np.concatenate([b.rows.ravel() for b in buckets] or [np.zeros(0, int)])
  rows = held[held < len(counts)]
  assert sorted(rows) == [r for r, n in enumerate(counts) if n]
  for bucket in buckets:
    inside = bucket.rows[bucket.rows < len(counts)]
    longest = max(counts[r] for r in inside)
    assert (
      longest > bucket.length
      if bucket.segmented
      else (longest <= bucket.length)
    )
    assert bucket.rows.shape[1] % devices == 0


def test_lengths_are_few_for_small_data_and_fine_for_large():
  small = plan_buckets(np.arange(1, 100), 64)
  large = plan_buckets(np.tile(np.arange(1, 100), 5000), 64)
  assert len(small) == 1
  assert len(large) >= 4
  padded = sum(b.rows.size * b.length for b in large)
  assert padded < 1.25 * 5000 * np.arange(1, 100).sum()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7)), max_size=40))
def test_compression_keeps_entries_in_order(pairs):
  rows = np.array([r for r, _ in pairs], int)
  columns = np.array([c for _, c in pairs], int)
  side = compress(rows, columns, 6, 8)
  for row in range(6):
    start, count = side.starts[row], side.counts[row]
    found = side.columns[start : start + count].tolist()
    assert found == [c for r, c in pairs if r == row]
