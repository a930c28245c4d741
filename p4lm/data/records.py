"""One cached example as bytes: msgpack of ids, numbers and int32 vectors."""

from __future__ import annotations

from collections.abc import Mapping

import msgpack
import numpy as np

# Vectors travel as little-endian int32 bytes behind this extension code.
_INT32 = 1

Value = str | int | float | np.ndarray


def encode_record(features: Mapping[str, Value]) -> bytes:
  """Packs features: str, int, float, or int32 [length] arrays.

  >>> decode_record(encode_record({'inputs': np.array([3, 4], np.int32)}))
  {'inputs': array([3, 4], dtype=int32)}

  Raises:
    TypeError: a feature of another type; the message names it.
  """
  packed = {}
  for name, value in features.items():
    if isinstance(value, np.ndarray):
      if value.ndim != 1 or value.dtype.kind not in 'iu':
        raise TypeError(
          f'feature {name!r}: arrays must be integer vectors, got '
          f'{value.dtype} {value.shape}'
        )
      value = msgpack.ExtType(_INT32, value.astype('<i4').tobytes())
    elif not isinstance(value, (str, int, float)):
      raise TypeError(
        f'feature {name!r}: {type(value).__name__} cannot be stored'
      )
    packed[name] = value
  return msgpack.packb(packed)


def decode_record(record: bytes) -> dict[str, Value]:
  """The features that `encode_record` packed."""
  return msgpack.unpackb(record, ext_hook=_vector)


def _vector(code: int, data: bytes):
  if code != _INT32:
    raise ValueError(f'a record holds an unknown extension type {code}')
  return np.frombuffer(data, '<i4').astype(np.int32)
