"""Arrays in Zarr's second format, as T5X keeps them: read and write.

An array is a directory: `.zarray` tells its shape, type and the shape of its
chunks, and the chunk that holds [i * c0:, j * c1:, ...] is the file `i.j`. All
chunks have the full size, what lies beyond the array is padding; a file that
is not there is a chunk of the fill value. Chunks are read and written one at a
time.
"""

from __future__ import annotations

import gzip
import itertools
import json
import math
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np

from p4lm.errors import UserError

_TYPES = {
  '<f4': np.dtype(np.float32),
  '<f8': np.dtype(np.float64),
  '<f2': np.dtype(np.float16),
  '<i4': np.dtype(np.int32),
  'bfloat16': np.dtype(ml_dtypes.bfloat16),
}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}
# Of a chunk, before compression.
_CHUNK_BYTES = 64 * 2**20


def read_array(directory: Path) -> np.ndarray:
  """The array of a directory.

  Raises:
    UserError: no array there, one in a form that p4lm does not read, or a
      chunk that is cut short.
  """
  try:
    about = json.loads((directory / '.zarray').read_text())
    shape, chunk = tuple(about['shape']), tuple(about['chunks'])
    kind, compressor = about['dtype'], about['compressor']
    if about['zarr_format'] != 2 or about['order'] != 'C':
      raise ValueError('it is not of format 2 in C order')
    fill = about.get('fill_value') or 0
    separator = about.get('dimension_separator', '.')
  except OSError as error:
    raise UserError(f'{directory} holds no array: {error.strerror}') from error
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f'{directory}/.zarray: {error!r}') from error
  name = (compressor or {}).get('id')
  if (
    kind not in _TYPES
    or name not in (None, 'gzip', 'zlib')
    or (about.get('filters'))
  ):
    raise UserError(
      f'{directory} has type {kind!r}, compressor {name!r}; p4lm reads '
      f'{", ".join(_TYPES)} with gzip, zlib or none'
    )
  dtype = _TYPES[kind]
  found = np.full(shape, fill, dtype)
  for place, inside in _chunks(shape, chunk):
    file = directory / separator.join(map(str, place or (0,)))
    if not file.is_file():
      continue
    try:
      data = _unpacked(file.read_bytes(), name)
      block = np.frombuffer(data, dtype).reshape(chunk)
    except (OSError, EOFError, zlib.error, ValueError) as error:
      raise UserError(f'{file} is damaged or cut short: {error}') from error
    found[inside] = block[tuple(slice(s.stop - s.start) for s in inside)]
  return found


def _unpacked(data: bytes, compressor: str | None) -> bytes:
  if compressor is None:
    return data
  return (gzip if compressor == 'gzip' else zlib).decompress(data)


def shape_and_type(directory: Path) -> tuple[tuple[int, ...], str]:
  """Of the array in a directory, without reading it.

  Raises:
    UserError: no array there.
  """
  try:
    about = json.loads((directory / '.zarray').read_text())
    return tuple(about['shape']), about['dtype']
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(f'{directory} holds no array: {error}') from error


def write_array(directory: Path, values: np.ndarray) -> dict:
  """Writes an array; returns what TensorStore calls its metadata."""
  directory.mkdir(parents=True, exist_ok=True)
  chunk = chunk_shape(values.shape, values.dtype.itemsize, _CHUNK_BYTES)
  compressor = {'id': 'gzip', 'level': 1}
  for place, inside in _chunks(values.shape, chunk):
    block = np.asarray(values[inside])
    if block.shape != chunk:
      missing = [(0, c - s) for c, s in zip(chunk, block.shape)]
      block = np.pad(block, missing)
    data = gzip.compress(block.tobytes(), 1, mtime=0)
    (directory / '.'.join(map(str, place or (0,)))).write_bytes(data)
  about = {
    'chunks': list(chunk),
    'compressor': compressor,
    'dtype': _NAMES[values.dtype],
    'fill_value': None,
    'filters': None,
    'order': 'C',
    'shape': list(values.shape),
    'zarr_format': 2,
  }
  # Last: without it the directory holds no array.
  (directory / '.zarray').write_text(json.dumps(about))
  return {
    'chunks': list(chunk),
    'compressor': compressor,
    'shape': list(values.shape),
  }


def chunk_shape(
  shape: tuple[int, ...], item_bytes: int, limit: int
) -> tuple[int, ...]:
  """The array's shape, its largest axes halved until a chunk is small enough.

  >>> chunk_shape((6, 4), 4, 40)
  (3, 2)
  """
  chunk = list(shape)
  while math.prod(chunk) * item_bytes > limit and max(chunk) > 1:
    axis = int(np.argmax(chunk))
    chunk[axis] = -(-chunk[axis] // 2)
  return tuple(chunk)


def _chunks(shape: tuple[int, ...], chunk: tuple[int, ...]):
  """(index of a chunk, the part of the array that it holds), in order."""
  counts = [range(-(-size // c)) for size, c in zip(shape, chunk)]
  for place in itertools.product(*counts):
    yield (
      place,
      tuple(
        slice(i * c, min((i + 1) * c, size))
        for i, c, size in zip(place, chunk, shape)
      ),
    )
