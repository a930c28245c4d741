"""The best 20 of 376,000 items for each of 1,000 users, exactly."""

from __future__ import annotations

import importlib

import measuring

WIDTH, K = 128, 20
SHAPES = {'376k': (1_000, 376_000), 'small': (50, 4_000)}


def _tables(size: str):
  import numpy as np

  generator = np.random.default_rng(0)
  return [
    generator.standard_normal((rows, WIDTH), dtype=np.float32)
    for rows in SHAPES[size]
  ]


def _what(size: str) -> str:
  users, items = SHAPES[size]
  return f'top {K} of {items:,} for {users:,} users'


def p4lm(size: str, data: str, work: str) -> dict:
  """Called as a library, on embeddings in memory: no job does only this.

  Looked up when it is run, as every contender: launch/ needs no p4lm.
  """
  del data, work
  top_items = importlib.import_module('p4lm.evaluation.top_items').top_items
  users, items = _tables(size)
  top_items(users, items, K)  # compiles
  return {
    'what': _what(size),
    **measuring.times(lambda: top_items(users, items, K), 3),
  }


def faiss(size: str, data: str, work: str) -> dict:
  """A flat index of inner products, its search alone."""
  del data, work
  import faiss

  faiss.omp_set_num_threads(measuring.num_cores())
  users, items = _tables(size)
  index = faiss.IndexFlatIP(WIDTH)
  index.add(items)
  index.search(users[:8], K)
  return {
    'what': _what(size),
    **measuring.times(lambda: index.search(users, K), 3),
  }


if __name__ == '__main__':
  measuring.run({'p4lm': p4lm, 'faiss': faiss})
