"""Shuffled orders without end, addressed by step or position."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

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


class GroupedOrder:
  """A shuffled order without end that keeps rows of a group side by side.

  Every epoch a group's rows are shuffled and cut into runs of at most `most`;
  the runs of all groups are shuffled and written one after the other. What
  stands at a position depends on the seed and on the position alone.

  >>> order = GroupedOrder([7, 8, 7, 8], most=2, seed=0)
  >>> sorted(order[p] for p in (0, 1)) in ([0, 2], [1, 3])
  True

  Args:
    groups: int [N], equal numbers are one group.
    most: rows of a run.
    seed: of the shuffles.
  """

  def __init__(self, groups: Sequence[int], most: int, seed: int):
    _, self._groups = np.unique(np.asarray(groups), return_inverse=True)
    self._most, self._seed = most, seed
    self._permutations: dict[int, np.ndarray] = {}

  def __getitem__(self, position: int) -> int:
    epoch, place = divmod(position, len(self._groups))
    if epoch not in self._permutations:
      self._permutations.pop(epoch - 2, None)
      self._permutations[epoch] = self._permutation(epoch)
    return int(self._permutations[epoch][place])

  def _permutation(self, epoch: int) -> np.ndarray:
    generator = np.random.default_rng([self._seed, epoch])
    rows = generator.permutation(len(self._groups))
    rows = rows[np.argsort(self._groups[rows], kind='stable')]
    groups = self._groups[rows]
    begins = np.flatnonzero(np.diff(groups, prepend=-1))
    sizes = np.diff(begins, append=len(groups))
    places = np.arange(len(groups)) - np.repeat(begins, sizes)
    runs = np.cumsum(places % self._most == 0) - 1
    ranks = generator.permutation(runs[-1] + 1)
    return rows[np.argsort(ranks[runs], kind='stable')]
