"""The towers of a fitted two-tower model, without the training's machinery."""

from __future__ import annotations

import dataclasses
import os
import zipfile
from pathlib import Path

import numpy as np
import scipy.sparse

from p4lm.cf.rows import Interactions
from p4lm.errors import UserError

_FILE = 'history_tower.npz'


@dataclasses.dataclass(frozen=True)
class Layers:
  """Linear maps with ReLU between them, then perhaps unit length.

  Attributes:
    kernels: float32 [inputs, outputs] each; none leaves the vectors.
    biases: float32 [outputs] each.
    normalize: divide by the Euclidean norm; zero stays zero.
  """

  kernels: tuple[np.ndarray, ...] = ()
  biases: tuple[np.ndarray, ...] = ()
  normalize: bool = False

  def __call__(self, vectors: np.ndarray) -> np.ndarray:
    """float32 [N, E] of float [N, E], computed in float64."""
    x = np.asarray(vectors, np.float64)
    for index, (kernel, bias) in enumerate(zip(self.kernels, self.biases)):
      x = (np.maximum(x, 0.0) if index else x) @ kernel + bias
    if self.normalize:
      norms = np.linalg.norm(x, axis=1, keepdims=True)
      x = x / np.where(norms > 0, norms, 1.0)
    return x.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class HistoryTower:
  """A user is the mean of the vectors of their items, through layers.

  Attributes:
    table: float32 [I, E], a vector of each item as part of a history.
    layers: applied to the mean.
  """

  table: np.ndarray
  layers: Layers

  def embed(self, interactions: Interactions) -> np.ndarray:
    """Vectors of users from their items.

    Args:
      interactions: U users and what each of them has; values do not count.
    Returns:
      float32 [U, E]; zero for a user without items.
    Raises:
      UserError: the entries name another number of items than the tower has.
    """
    if interactions.num_items != len(self.table):
      raise UserError(
        f'the histories name {interactions.num_items} items but the tower has '
        f'{len(self.table)}; number them by the rows of the tables'
      )
    rows = interactions.user_rows
    matrix = scipy.sparse.csr_matrix(
      (np.ones(len(rows)), (rows, interactions.item_rows)),
      shape=(interactions.num_users, interactions.num_items),
    )
    counts = np.bincount(rows, minlength=interactions.num_users)[:, None]
    means = (matrix @ self.table.astype(np.float64)) / np.maximum(counts, 1)
    return np.where(counts > 0, self.layers(means), np.float32(0))

  def save(self, directory) -> None:
    """Writes `history_tower.npz`, whole."""
    layers = {}
    for index, (kernel, bias) in enumerate(
      zip(self.layers.kernels, self.layers.biases)
    ):
      layers |= {f'kernel_{index}': kernel, f'bias_{index}': bias}
    partial = Path(directory) / '.history_tower.partial.npz'
    np.savez(
      partial, table=self.table, normalize=self.layers.normalize, **layers
    )
    os.replace(partial, Path(directory) / _FILE)

  @classmethod
  def load(cls, directory) -> HistoryTower:
    """Reads what `save` wrote.

    Raises:
      UserError: it is missing or damaged.
    """
    path = Path(directory) / _FILE
    try:
      with np.load(path, allow_pickle=False) as file:
        depth = sum(name.startswith('kernel_') for name in file.files)
        layers = Layers(
          tuple(file[f'kernel_{index}'] for index in range(depth)),
          tuple(file[f'bias_{index}'] for index in range(depth)),
          bool(file['normalize']),
        )
        return cls(file['table'], layers)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
      raise UserError(
        f'{path} is missing or damaged ({error}); remove the directory and run '
        'fit_cf again'
      ) from error
