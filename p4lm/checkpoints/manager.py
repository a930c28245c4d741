"""A directory of checkpoints: one directory a step, one item a tree.

Orbax writes each step into a temporary directory and renames it when it is
complete, so a killed process leaves whole steps only. Restoring is strict, and
a step that was damaged later is passed over with a warning.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from p4lm.checkpoints import integrity, items
from p4lm.errors import UserError
from p4lm.typing import PyTree

_log = logging.getLogger(__name__)
_SHOWN_MISMATCHES = 12
_REMOVED = '.removed-'


class CheckpointStore:
  """Saves and restores named items by step.

  Nothing is made on disk before the first save, so a store may also be opened
  to read. An item is any tree of arrays, random keys and Python numbers; empty
  trees take no space and come back as they were given.

  Args:
    directory: holds one directory a step.
    keep: newest steps that stay; older ones are removed after a save.
    keep_every: steps that this divides stay for ever; None for none.
    asynchronous: save while training goes on; see `wait`.
  Raises:
    UserError: `keep` or `keep_every` is below 1.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    keep: int = 2,
    keep_every: int | None = None,
    *,
    asynchronous: bool = False,
  ):
    for name, value in (('keep', keep), ('keep_every', keep_every)):
      if value is not None and value < 1:
        raise UserError(f'{name} must be at least 1, got {value}')
    self.directory = Path(os.path.abspath(directory))
    self._keep, self._keep_every = keep, keep_every
    self._asynchronous = asynchronous
    self._manager: ocp.CheckpointManager | None = None
    self._unlisted: int | None = None
    self._damaged: set[int] = set()

  def all_steps(self) -> list[int]:
    """Steps that were completed, ascending; damage is not looked for."""
    if not self.directory.is_dir():
      return []
    return sorted(
      int(path.name) for path in self.directory.iterdir() if _is_step(path)
    )

  def latest_step(self) -> int | None:
    """The newest completed step that is not known to be damaged."""
    steps = [step for step in self.all_steps() if step not in self._damaged]
    return steps[-1] if steps else None

  def save(self, step: int, items_of_step: Mapping[str, PyTree]) -> None:
    """Saves the items as step `step`, replacing that step if it is there.

    Args:
      step: not negative.
      items_of_step: {name: tree}.
    Raises:
      UserError: the directory cannot be written.
    """
    self.wait()
    self._make_room(step)
    arrays = {
      name: items.to_arrays(tree) for name, tree in items_of_step.items()
    }
    if self._asynchronous:
      # The next step reuses this memory while it is still being written.
      arrays = jax.tree.map(_copy, arrays)
    args = {
      name: ocp.args.PyTreeSave(tree) for name, tree in arrays.items() if tree
    }
    try:
      self._open().save(step, args=ocp.args.Composite(**args), force=True)
    except OSError as error:
      raise UserError(
        f'cannot save step {step} in {self.directory}: '
        f'{error.strerror or error}'
      ) from error
    self._unlisted = step
    if not self._asynchronous:
      self.wait()

  def wait(self) -> None:
    """Returns when the last save is complete on disk."""
    if self._manager is not None:
      self._manager.wait_until_finished()
    if self._unlisted is not None:
      if jax.process_index() == 0:
        integrity.write_file_list(self.directory / str(self._unlisted))
      self._unlisted = None
      self._remove_old()

  def close(self) -> None:
    """Waits for the last save and lets go of Orbax's threads."""
    self.wait()
    if self._manager is not None:
      self._manager.close()
      self._manager = None

  def restore(
    self, templates: Mapping[str, PyTree], step: int | None = None
  ) -> tuple[int, dict[str, PyTree]]:
    """Restores items into trees like the templates.

    Args:
      templates: {name: tree} of arrays or `jax.ShapeDtypeStruct`; their
        structure, dtypes and shardings are those of the result.
      step: a given step; the newest whole one by default.
    Returns:
      (step, {name: tree}).
    Raises:
      UserError: no whole step, or its items differ from the templates; the
        message names every array that is missing, unexpected or misshapen.
    """
    wanted = {name: items.to_abstract(tree) for name, tree in templates.items()}
    step, arrays = self._read(step, lambda found: self._checked(found, wanted))
    return step, {
      name: items.from_arrays(tree, arrays.get(name, {}))
      for name, tree in templates.items()
    }

  def restore_any(
    self, names: Sequence[str] | None = None, step: int | None = None
  ) -> tuple[int, dict[str, items.Arrays]]:
    """Restores items without a template, as {item: {array's name: array}}.

    Args:
      names: the items wanted; those that the step lacks are left out. None
        for all.
      step: a given step; the newest whole one by default.
    Returns:
      (step, items); arrays on the first device, random keys as integers.
    Raises:
      UserError: no whole step.
    """

    def plan(found: int):
      return {
        item: items.to_abstract(self._saved(found, item))
        for item in self.item_names(found)
        if names is None or item in names
      }

    return self._read(step, plan)

  def abstract_items(
    self, names: Sequence[str]
  ) -> tuple[int, dict[str, dict[str, jax.ShapeDtypeStruct]]]:
    """The newest step that is whole, and its items' arrays without values.

    Raises:
      UserError: no whole step.
    """
    for step in reversed(self.all_steps()):
      if integrity.find_damage(self.directory / str(step)) is None:
        return step, {name: self._saved(step, name) for name in names}
    raise UserError(f'{self.directory} holds no whole checkpoint')

  def item_names(self, step: int) -> list[str]:
    """Names of the items that a step holds."""
    return sorted(
      path.name
      for path in (self.directory / str(step)).iterdir()
      if path.is_dir()
    )

  def _read(self, step: int | None, plan) -> tuple[int, dict]:
    """Reads what `plan(step)` asks for from the first step that is whole."""
    self.wait()
    steps = self.all_steps() if step is None else [step]
    if step is not None and step not in self.all_steps():
      raise UserError(
        f'{self.directory} has no step {step}; it has {self.all_steps()}'
      )
    if not steps:
      raise UserError(f'{self.directory} holds no checkpoint')
    reasons = []
    for candidate in reversed(steps):
      reason = integrity.find_damage(self.directory / str(candidate))
      if reason is None:
        try:
          return candidate, self._restore_arrays(candidate, plan(candidate))
        except UserError:
          raise
        except Exception as error:
          # Orbax and TensorStore report damage by many kinds of exception.
          reason = _first_line(error)
      self._damaged.add(candidate)
      reasons.append(f'step {candidate}: {reason}')
      if step is None:
        _log.warning(
          'checkpoint %s is damaged (%s); trying an older one',
          self.directory / str(candidate),
          reason,
        )
    raise UserError(
      f'{self.directory} holds no whole checkpoint ({"; ".join(reasons)}). '
      'Restore the directory, or remove it to start over'
    )

  def _restore_arrays(self, step: int, wanted: dict) -> dict:
    # Not through the manager, which cleans up unfinished saves when it opens:
    # a reader must not, they may be another process's.
    restored = {
      name: _handler().restore(
        self.directory / str(step) / name,
        args=ocp.args.PyTreeRestore(
          tree,
          restore_args=ocp.checkpoint_utils.construct_restore_args(tree),
        ),
      )
      for name, tree in wanted.items()
      if tree
    }
    return jax.block_until_ready(restored)

  def _checked(self, step: int, wanted: dict) -> dict:
    """`wanted`, if the step holds exactly that."""
    found = []
    for item, tree in wanted.items():
      saved = self._saved(step, item)
      found += [f'{item}/{what}' for what in items.mismatches(tree, saved)]
    if found:
      more = len(found) - _SHOWN_MISMATCHES
      found = found[:_SHOWN_MISMATCHES] + [f'{more} more'] * (more > 0)
      raise UserError(
        f'the checkpoint {self.directory / str(step)} is not of this model or '
        f'optimizer: {"; ".join(found)}. Choose another OUTPUT_DIR or '
        'CHECKPOINT, or the configuration that it was made with'
      )
    return wanted

  def _saved(self, step: int, item: str) -> dict:
    """{name: abstract array} of an item; empty where the step lacks it."""
    if item not in self.item_names(step):
      return {}
    tree = _handler().metadata(self.directory / str(step) / item).tree
    return {
      name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
      for name, leaf in tree.items()
    }

  def _make_room(self, step: int) -> None:
    """A damaged step must not count among those to keep, nor one be there
    already."""
    self._remove({*self._damaged, step}.intersection(self.all_steps()))
    self._damaged.clear()

  def _remove_old(self) -> None:
    every = self._keep_every
    old = self.all_steps()[: -self._keep]
    self._remove(s for s in old if every is None or s % every)

  def _remove(self, steps: Iterable[int]) -> None:
    """Removes steps; one half removed no longer has a step's name."""
    steps = list(steps)
    if jax.process_index() == 0:
      for step in steps:
        doomed = self.directory / f'{_REMOVED}{step}'
        shutil.rmtree(doomed, ignore_errors=True)
        os.rename(self.directory / str(step), doomed)
      for doomed in self.directory.glob(f'{_REMOVED}*'):
        shutil.rmtree(doomed, ignore_errors=True)
    if steps and self._manager is not None:
      self._manager.reload()

  def _open(self) -> ocp.CheckpointManager:
    if self._manager is None:
      self._manager = ocp.CheckpointManager(
        self.directory,
        options=ocp.CheckpointManagerOptions(
          enable_async_checkpointing=self._asynchronous,
          cleanup_tmp_directories=True,
          create=True,
        ),
      )
    return self._manager


def _handler() -> ocp.PyTreeCheckpointHandler:
  return ocp.PyTreeCheckpointHandler()


def _is_step(path: Path) -> bool:
  return path.name.isdigit() and path.is_dir()


def _copy(array):
  return array.copy() if isinstance(array, (jax.Array, np.ndarray)) else array


def _first_line(error: Exception) -> str:
  lines = str(error).strip().splitlines()
  return lines[0][:200] if lines else type(error).__name__
