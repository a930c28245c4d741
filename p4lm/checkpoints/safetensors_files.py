"""Reading and writing safetensors files one tensor at a time.

A file is eight bytes with the length of a JSON header, the header (name ->
dtype, shape, place) and the tensors' bytes. Large models are split over files
(shards) with an index that says which tensor is where. Files are mapped into
memory, so that a tensor costs memory only while it is copied, and written
tensor after tensor. Everything that can be wrong with the files is found by
their headers and sizes, before any tensor is read.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from p4lm.errors import UserError

SINGLE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
DTYPES = {
  'F64': np.dtype(np.float64),
  'F32': np.dtype(np.float32),
  'F16': np.dtype(np.float16),
  'BF16': np.dtype(ml_dtypes.bfloat16),
}
_MAX_HEADER = 100_000_000
_ALIGNMENT = 8


class Place(NamedTuple):
  """Where a tensor is: its file, its type there, its shape, its first byte."""

  path: Path
  dtype: str
  shape: tuple[int, ...]
  offset: int


class TensorFiles:
  """The tensors of a directory, by name.

  Args:
    directory: holds `model.safetensors`, or an index and its shards.
  Raises:
    UserError: neither is there, a shard is missing or cut short, a header or
      the index is damaged, or they contradict each other.
  """

  def __init__(self, directory: str | os.PathLike):
    self.directory = Path(directory)
    self.places: dict[str, Place] = {}
    index = self.directory / INDEX
    if index.is_file():
      self._read_shards(index)
    elif (self.directory / SINGLE).is_file():
      self.places = _read_header(self.directory / SINGLE)
    else:
      raise UserError(
        f'{self.directory} has neither {SINGLE} nor {INDEX}; save the model'
        ' with save_pretrained(..., safe_serialization=True)'
      )

  def read(self, name: str) -> np.ndarray:
    """A tensor as it is in the file, mapped and not copied."""
    path, dtype, shape, offset = self.places[name]
    if 0 in shape:
      return np.zeros(shape, DTYPES[dtype])
    return np.memmap(path, DTYPES[dtype], 'r', offset, shape)

  def _read_shards(self, index: Path) -> None:
    by_name = _index_of(index)
    shards = sorted(set(by_name.values()))
    missing = [s for s in shards if not (self.directory / s).is_file()]
    if missing:
      raise UserError(
        f'{index} names files that are not there: {", ".join(missing)}'
      )
    for shard in shards:
      for name, place in _read_header(self.directory / shard).items():
        if by_name.get(name) != shard:
          raise UserError(
            f'{self.directory / shard} holds {name}, which {index.name} '
            f'places in {by_name.get(name, "no file")}'
          )
        self.places[name] = place
    lost = sorted(set(by_name) - set(self.places))
    if lost:
      raise UserError(
        f'{index} names tensors that its files do not hold: '
        f'{", ".join(lost[:8])}'
      )


def _index_of(index: Path) -> Mapping[str, str]:
  try:
    by_name = json.loads(index.read_text())['weight_map']
    assert all(Path(s).name == s for s in by_name.values())
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(f'{index} is damaged: {error!r}') from error
  except AssertionError as error:
    raise UserError(f'{index} names files outside of its directory') from error
  return by_name


def _read_header(path: Path) -> dict[str, Place]:
  size = path.stat().st_size
  with path.open('rb') as file:
    length = int.from_bytes(file.read(8), 'little')
    if size < 8 or length > min(size - 8, _MAX_HEADER):
      raise UserError(
        f'{path} is cut short or no safetensors file: it has {size} bytes, '
        f'and its header alone wants {length + 8}'
      )
    text = file.read(length)
  places, end = {}, 0
  try:
    for name, entry in json.loads(text).items():
      if name == '__metadata__':
        continue
      dtype, shape = entry['dtype'], tuple(entry['shape'])
      first, last = entry['data_offsets']
      if dtype not in DTYPES:
        raise UserError(
          f'{path}: {name} has type {dtype}; p4lm reads {", ".join(DTYPES)}'
        )
      if last - first != math.prod(shape) * DTYPES[dtype].itemsize:
        raise ValueError(f'{name} has {last - first} bytes')
      places[name] = Place(path, dtype, shape, 8 + length + first)
      end = max(end, last)
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(f'{path}: its header is damaged: {error!r}') from error
  if size != 8 + length + end:
    raise UserError(
      f'{path} has {size} bytes where its header tells of {8 + length + end}; '
      'it was cut short or added to, copy it again'
    )
  return places


class Tensor(NamedTuple):
  """A tensor to be written: its name, type and shape."""

  name: str
  dtype: str
  shape: tuple[int, ...]

  @property
  def num_bytes(self) -> int:
    return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def write_files(
  directory: Path,
  tensors: Sequence[Tensor],
  read: Callable[[Tensor], np.ndarray],
  *,
  shard_bytes: int,
) -> None:
  """Writes tensors in order, each file whole or not at all.

  Args:
    directory: gets `model.safetensors`, or shards and an index.
    tensors: in the order in which `read` is asked for them.
    read: a tensor's values, of its shape and type.
    shard_bytes: a file is closed before it gets larger than this.
  """
  shards: list[list[Tensor]] = []
  filled = shard_bytes + 1
  for tensor in tensors:
    if filled + tensor.num_bytes > shard_bytes and filled:
      shards.append([])
      filled = 0
    shards[-1].append(tensor)
    filled += tensor.num_bytes
  if len(shards) == 1:
    _write_file(directory / SINGLE, shards[0], read)
    return
  weight_map = {}
  for number, shard in enumerate(shards, 1):
    name = f'model-{number:05d}-of-{len(shards):05d}.safetensors'
    _write_file(directory / name, shard, read)
    weight_map |= {tensor.name: name for tensor in shard}
  total = sum(tensor.num_bytes for tensor in tensors)
  index = {'metadata': {'total_size': total}, 'weight_map': weight_map}
  partial = directory / f'.{INDEX}.partial'
  partial.write_text(json.dumps(index, indent=2) + '\n')
  os.replace(partial, directory / INDEX)


def _write_file(path: Path, tensors: Sequence[Tensor], read) -> None:
  header: dict = {'__metadata__': {'format': 'pt'}}
  end = 0
  for tensor in tensors:
    first, end = end, end + tensor.num_bytes
    header[tensor.name] = {
      'dtype': tensor.dtype,
      'shape': list(tensor.shape),
      'data_offsets': [first, end],
    }
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % _ALIGNMENT)
  partial = path.with_name(f'.{path.name}.partial')
  with partial.open('wb') as file:
    file.write(len(text).to_bytes(8, 'little') + text)
    for tensor in tensors:
      values = np.asarray(read(tensor), DTYPES[tensor.dtype], order='C')
      assert values.shape == tensor.shape, (tensor, values.shape)
      file.write(values.reshape(-1).view(np.uint8).data)
    file.flush()
    os.fsync(file.fileno())
  os.replace(partial, path)
