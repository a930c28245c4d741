"""Checkpoints of models that memory could not hold twice.

A parameter is first put together in a file that is mapped into memory, which
the system can write out and drop; then Orbax saves one chunk after another.
The peak is a few chunks, whatever the size of the model.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from p4lm.checkpoints import integrity
from p4lm.checkpoints.manager import CheckpointStore

# Bytes of a chunk, which is compressed and written whole.
_CHUNK = 4 * 2**20

Shapes = Mapping[str, tuple[int, ...]]


@contextlib.contextmanager
def mapped_arrays(
  directory: Path, shapes: Shapes, fill: Callable[[str, np.ndarray], None]
) -> Iterator[dict[str, np.ndarray]]:
  """float32 arrays that `fill` has filled, in files that go with the context.

  Args:
    directory: of the files; made, and removed afterwards.
    shapes: {name: shape}.
    fill: (name, array) -> None, asked for one array after another.
  """
  shutil.rmtree(directory, ignore_errors=True)
  directory.mkdir(parents=True)
  try:
    arrays = {}
    for index, (name, shape) in enumerate(shapes.items()):
      path = directory / str(index)
      array = np.memmap(path, np.float32, 'w+', shape=shape)
      fill(name, array)
      array.flush()
      # Mapped anew, read-only: what was written can leave the memory.
      arrays[name] = np.memmap(path, np.float32, 'r', shape=shape)
    yield arrays
  finally:
    shutil.rmtree(directory, ignore_errors=True)


def save_streamed(
  directory: Path, step: int, item: str, arrays: Mapping[str, np.ndarray]
) -> None:
  """Saves one item of one step, array after array.

  Reads like what `CheckpointStore.save` writes.
  """
  registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
  handlers = ocp.type_handlers.create_type_handler_registry(
    (np.ndarray, _OneAfterAnother()),
    # Of no use here, but Orbax warns without it.
    (jax.Array, ocp.type_handlers.ArrayHandler()),
  )
  registry.add(
    None,
    ocp.args.PyTreeSave,
    ocp.PyTreeCheckpointHandler(type_handler_registry=handlers),
  )
  plain = {name: np.asarray(array) for name, array in arrays.items()}
  with ocp.CheckpointManager(
    directory.absolute(),
    options=ocp.CheckpointManagerOptions(
      enable_async_checkpointing=False, create=True
    ),
    handler_registry=registry,
  ) as manager:
    save_args = {n: ocp.SaveArgs(chunk_byte_size=_CHUNK) for n in plain}
    saved = ocp.args.PyTreeSave(plain, save_args=save_args)
    items = ocp.args.Composite(**{item: saved})
    manager.save(step, args=items, force=True)
    manager.wait_until_finished()
  integrity.write_file_list(directory / str(step))


class ArrayReader:
  """Reads the arrays of an item of the newest whole step, one at a time.

  Args:
    store: of the checkpoint.
    items: names of the items that hold them.
  Attributes:
    step: that step.
    shapes: {array's name: shape}.
  Raises:
    UserError: no whole step.
  """

  def __init__(self, store: CheckpointStore, items: tuple[str, ...]):
    self.step, found = store.abstract_items(items)
    self._directory = store.directory / str(self.step)
    self._saved = {
      name: (item, leaf)
      for item, leaves in found.items()
      for name, leaf in leaves.items()
    }
    self.shapes = {name: leaf.shape for name, (_, leaf) in self._saved.items()}

  def read(self, name: str) -> np.ndarray:
    """An array, copied into memory."""
    item, leaf = self._saved[name]
    abstract = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    restored = ocp.PyTreeCheckpointHandler().restore(
      self._directory / item,
      args=ocp.args.PyTreeRestore(
        {name: abstract},
        restore_args={name: ocp.RestoreArgs(restore_type=np.ndarray)},
        partial_restore=True,
      ),
    )
    return restored[name]


class _OneAfterAnother(ocp.type_handlers.NumpyHandler):
  """Writes a chunk when the one before it is written, and copies none first.

  Orbax copies all arrays and then writes them all at once, where each chunk in
  flight takes a few times its size.
  """

  def __init__(self):
    super().__init__()
    self._deepcopy_host_arrays = False

  async def _background_serialize(self, values, infos, args=None):
    for value, info, arg in zip(values, infos, args):
      await super()._background_serialize([value], [info], [arg])

  async def _open_and_write(self, value, tspec, ts_context):
    array = await ts.open(
      ts.Spec(tspec), create=True, open=True, context=ts_context
    )
    for chunk in _chunks(value.shape, array.chunk_layout.write_chunk.shape):
      await array[chunk].write(
        value[chunk], can_reference_source_data_indefinitely=True
      )


def _chunks(
  shape: tuple[int, ...], chunk_shape: tuple[int, ...]
) -> Iterator[tuple[slice, ...]]:
  """The places of an array's chunks, in the order of memory."""
  starts = (range(0, n, step) for n, step in zip(shape, chunk_shape))
  for corner in itertools.product(*starts):
    yield tuple(
      slice(begin, min(begin + step, n))
      for begin, step, n in zip(corner, chunk_shape, shape)
    )
