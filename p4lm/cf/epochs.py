"""The state of a fit between epochs, kept in one npz file."""

from __future__ import annotations

import dataclasses
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from p4lm.errors import UserError


@dataclasses.dataclass(frozen=True)
class FitState:
  """All that the next epoch depends on, and the history of L.

  Attributes:
    fingerprint: hash of the data and configuration.
    epoch: finished epochs.
    users: [U, E].
    items: [I, E]; empty before the first epoch.
    objectives: L after every half step.
  """

  fingerprint: str
  epoch: int
  users: np.ndarray
  items: np.ndarray
  objectives: tuple[float, ...]


def restore_or_start(
  path, *, fingerprint: str, start: Callable[[], np.ndarray]
) -> FitState:
  """The state in the file, or a first one from the users that `start` makes.

  Raises:
    UserError: the file is damaged or belongs to another fit.
  """
  if path is None or not Path(path).exists():
    users = start()
    return FitState(fingerprint, 0, users, users[:0], ())
  try:
    with open(path, 'rb') as raw, np.load(raw, allow_pickle=False) as file:
      state = FitState(
        fingerprint=str(file['fingerprint']),
        epoch=int(file['epoch']),
        users=file['users'],
        items=file['items'],
        objectives=tuple(file['objectives'].tolist()),
      )
  except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
    raise UserError(
      f'{path} is no readable checkpoint of a fit ({error}); remove it'
    ) from error
  if state.fingerprint != fingerprint:
    raise UserError(
      f'{path} is the checkpoint of a fit with other data or another '
      'configuration; remove it or choose another directory'
    )
  return state


def save(path, state: FitState) -> None:
  """Writes the state so that a kill at any moment leaves old or new."""
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f'.{path.name}.partial')
  with open(partial, 'wb') as file:
    np.savez(
      file,
      fingerprint=np.array(state.fingerprint),
      epoch=np.int64(state.epoch),
      users=state.users,
      items=state.items,
      objectives=np.array(state.objectives, np.float64),
    )
    file.flush()
    os.fsync(file.fileno())
  os.replace(partial, path)
