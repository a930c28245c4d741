"""A shuffled order without end, addressed by step."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np


def epoch_rows(
  num_rows: int, batch_size: int, seed: int, start_step: int = 0
) -> Iterator[np.ndarray]:
  """Row indices of each step's batch, a new permutation every epoch.

  Step s takes positions s * batch_size and on of the permutations written one
  after the other, so the indices depend on the seed and on s alone.

  Args:
    num_rows: rows to draw from.
    batch_size: indices a step.
    seed: of the permutations.
    start_step: the first step.
  Yields:
    int64 [batch_size].
  """
  permutations: dict[int, np.ndarray] = {}

  def row_at(position: int) -> int:
    epoch, place = divmod(position, num_rows)
    if epoch not in permutations:
      permutations.pop(epoch - 2, None)
      generator = np.random.default_rng([seed, epoch])
      permutations[epoch] = generator.permutation(num_rows)
    return permutations[epoch][place]

  for step in itertools.count(start_step):
    first = step * batch_size
    yield np.array([row_at(first + i) for i in range(batch_size)])
