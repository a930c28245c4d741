"""Compression keeps every entry."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from p4lm.cf.rows import compress


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
