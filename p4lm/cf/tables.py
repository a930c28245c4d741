"""CF embeddings by id: what the rest of p4lm reads.

On disk a table directory holds `user_embeddings.npy`, `item_embeddings.npy`,
`ids.json` and `tables.json`. The last is written last and carries the hash of
the others, so a directory without it, or with another hash, is unfinished or
damaged. Nothing is pickled.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from p4lm.errors import UserError

_FORMAT = 1


@dataclasses.dataclass
class CFTables:
  """User and item embeddings with their ids.

  Attributes:
    user_embeddings: float32 [U, E], raw (norms as fitted).
    item_embeddings: float32 [I, E].
    user_ids: U distinct strings, in row order.
    item_ids: I distinct strings.
    scale: what `lookup` returns: 'mean_norm' divides a table by the mean norm
      of its rows (REGEN's scaling, so that rows have norm 1 on average), 'raw'
      leaves it.
    unknown: what `lookup` does with an id that no row has: 'mean' returns the
      mean row and counts it in `unknown_counts`, 'error' raises.
  """

  user_embeddings: np.ndarray
  item_embeddings: np.ndarray
  user_ids: Sequence[str]
  item_ids: Sequence[str]
  scale: Literal['mean_norm', 'raw'] = 'mean_norm'
  unknown: Literal['mean', 'error'] = 'mean'

  def __post_init__(self):
    for name, valid in (
      ('scale', ('mean_norm', 'raw')),
      ('unknown', ('mean', 'error')),
    ):
      if getattr(self, name) not in valid:
        raise UserError(
          f'{name} is {getattr(self, name)!r}; choose one of {", ".join(valid)}'
        )
    self.user_embeddings = np.asarray(self.user_embeddings, np.float32)
    self.item_embeddings = np.asarray(self.item_embeddings, np.float32)
    self.user_ids, self.item_ids = list(self.user_ids), list(self.item_ids)
    if self.user_embeddings.shape[1:] != self.item_embeddings.shape[1:]:
      raise UserError(
        f'user_embeddings are {self.user_embeddings.shape} and item_embeddings '
        f'{self.item_embeddings.shape}; both need the same width'
      )
    self.unknown_counts = collections.Counter()
    self._rows, self._scaled, self._mean = {}, {}, {}
    for kind, table, ids in (
      ('user', self.user_embeddings, self.user_ids),
      ('item', self.item_embeddings, self.item_ids),
    ):
      _check_table(kind, table, ids)
      self._rows[kind] = {id_: row for row, id_ in enumerate(ids)}
      scaled = table / mean_norm(table) if self.scale == 'mean_norm' else table
      self._scaled[kind] = scaled
      empty = np.zeros(self.width, np.float32)
      self._mean[kind] = scaled.mean(0) if len(scaled) else empty

  @property
  def width(self) -> int:
    """E."""
    return self.user_embeddings.shape[1]

  @property
  def sha256(self) -> str:
    """Hash of embeddings and ids (not of `scale` and `unknown`)."""
    digest = hashlib.sha256()
    for content in self._files().values():
      digest.update(content)
    return digest.hexdigest()

  def row(self, kind: str, id_: str) -> int | None:
    """Row of an id, or None for an unknown one.

    Raises:
      UserError: `kind` is neither 'user' nor 'item'.
    """
    if kind not in self._rows:
      raise UserError(
        f"kind is {kind!r}; CF vectors are of kind 'user', 'item'"
      )
    return self._rows[kind].get(id_)

  def lookup(self, kind: str, id_: str) -> np.ndarray:
    """The embedding of one id, scaled as `scale` says.

    Args:
      kind: 'user' or 'item'.
      id_: the id.
    Returns:
      float32 [E].
    Raises:
      UserError: a wrong kind, or an unknown id where `unknown` is 'error'.
    """
    row = self.row(kind, id_)
    if row is not None:
      return self._scaled[kind][row]
    if self.unknown == 'error':
      raise UserError(
        f'no {kind} {id_!r} among the {len(self._rows[kind])} {kind}s of the '
        "CF tables; fit them with its ratings, or take unknown='mean'"
      )
    self.unknown_counts[kind] += 1
    return self._mean[kind]

  def lookup_many(self, kind: str, ids: Sequence[str]) -> np.ndarray:
    """`lookup` of each id, float32 [len(ids), E]."""
    if not len(ids):
      return np.zeros((0, self.width), np.float32)
    return np.stack([self.lookup(kind, id_) for id_ in ids])

  def scale_vectors(self, kind: str, vectors: np.ndarray) -> np.ndarray:
    """New raw vectors of a kind, scaled as `lookup` scales its own.

    Args:
      kind: 'user' or 'item'.
      vectors: float [..., E].
    Returns:
      float32 [..., E].
    """
    table = self.user_embeddings if kind == 'user' else self.item_embeddings
    divisor = mean_norm(table) if self.scale == 'mean_norm' else 1.0
    return (np.asarray(vectors) / divisor).astype(np.float32)

  def save(self, directory) -> None:
    """Writes the tables; a directory that was killed half-way does not load."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    # Old tables must not vouch for new files.
    (directory / 'tables.json').unlink(missing_ok=True)
    files = self._files()
    for name, content in files.items():
      _write(directory / name, content)
    about = {
      'format': _FORMAT,
      'width': self.width,
      'num_users': len(self.user_ids),
      'num_items': len(self.item_ids),
      'sha256': {n: hashlib.sha256(c).hexdigest() for n, c in files.items()},
    }
    _write(directory / 'tables.json', json.dumps(about, indent=2).encode())

  @classmethod
  def load(
    cls,
    directory,
    *,
    scale: Literal['mean_norm', 'raw'] = 'mean_norm',
    unknown: Literal['mean', 'error'] = 'mean',
  ) -> CFTables:
    """Reads what `save` wrote.

    Raises:
      UserError: the directory holds no finished tables, or a file differs from
        its recorded hash.
    """
    directory = Path(directory)
    if not (directory / 'tables.json').exists():
      raise UserError(
        f'{directory} holds no finished CF tables (no tables.json); '
        'run fit_cf with this OUTPUT_DIR first'
      )
    try:
      about = json.loads((directory / 'tables.json').read_text())
    except ValueError as error:
      raise UserError(
        f'{directory}/tables.json is no readable JSON ({error}); '
        'run fit_cf again'
      ) from error
    if about.get('format') != _FORMAT:
      raise UserError(
        f'{directory}/tables.json has format {about.get("format")}, this '
        f'version reads {_FORMAT}; run fit_cf again'
      )
    files = {}
    for name, wanted in about['sha256'].items():
      path = directory / name
      content = path.read_bytes() if path.exists() else b''
      if hashlib.sha256(content).hexdigest() != wanted:
        raise UserError(
          f'{path} is missing or damaged (its hash is not the recorded one); '
          'remove the directory and run fit_cf again'
        )
      files[name] = content
    ids = json.loads(files['ids.json'])
    return cls(
      np.load(io.BytesIO(files['user_embeddings.npy']), allow_pickle=False),
      np.load(io.BytesIO(files['item_embeddings.npy']), allow_pickle=False),
      ids['user_ids'],
      ids['item_ids'],
      scale=scale,
      unknown=unknown,
    )

  def _files(self) -> dict[str, bytes]:
    ids = {'user_ids': self.user_ids, 'item_ids': self.item_ids}
    return {
      'user_embeddings.npy': _npy(self.user_embeddings),
      'item_embeddings.npy': _npy(self.item_embeddings),
      'ids.json': json.dumps(ids, ensure_ascii=False).encode(),
    }


def mean_norm(table) -> float:
  """Mean Euclidean norm of the rows; 1 for a table that is all zero.

  >>> mean_norm(np.array([[3.0, 4.0], [1.0, 0.0]]))
  3.0
  """
  norms = np.linalg.norm(np.asarray(table, np.float64), axis=1)
  return float(norms.mean()) if norms.any() else 1.0


def _check_table(kind: str, table: np.ndarray, ids: Sequence[str]) -> None:
  if table.ndim != 2 or len(table) != len(ids):
    raise UserError(
      f'{kind}_embeddings have shape {table.shape} for {len(ids)} {kind}_ids; '
      'give one row per id'
    )
  if not np.isfinite(table).all():
    row = int(np.argmax(~np.isfinite(table).all(axis=1)))
    raise UserError(f'{kind}_embeddings of {ids[row]!r} are not finite')
  bad = next((id_ for id_ in ids if not isinstance(id_, str)), None)
  if bad is not None:
    raise UserError(f'{kind} id {bad!r} is no string; ids are strings')
  if len(set(ids)) != len(ids):
    twice = next(i for i, n in collections.Counter(ids).items() if n > 1)
    raise UserError(f'{kind} id {twice!r} is there twice; ids are distinct')


def _npy(table: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  np.save(buffer, table, allow_pickle=False)
  return buffer.getvalue()


def _write(path: Path, content: bytes) -> None:
  partial = path.with_name(f'.{path.name}.partial')
  with open(partial, 'wb') as file:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
  os.replace(partial, path)
