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

  def permutation(epoch: int) -> np.ndarray:
    if epoch not in permutations:
      permutations.pop(epoch - 2, None)
      generator = np.random.default_rng([seed, epoch])
      permutations[epoch] = generator.permutation(num_rows)
    return permutations[epoch]

  for step in itertools.count(start_step):
    positions = step * batch_size + np.arange(batch_size)
    epochs, places = np.divmod(positions, num_rows)
    rows = np.empty(batch_size, np.int64)
    for epoch in range(epochs[0], epochs[-1] + 1):
      here = epochs == epoch
      rows[here] = permutation(epoch)[places[here]]
    yield rows
