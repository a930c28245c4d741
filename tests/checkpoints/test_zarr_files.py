"""Our reader and writer of Zarr arrays against TensorStore's."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from p4lm.checkpoints import zarr_files
from p4lm.errors import UserError

tensorstore = pytest.importorskip('tensorstore')
SHAPES = [(), (5,), (4, 6), (7, 3, 5)]
TYPES = [np.float32, np.float16, ml_dtypes.bfloat16, np.int32]


def values_of(shape, dtype):
  rng = np.random.default_rng(0)
  return np.asarray(rng.normal(size=shape) * 9, dtype)


def spec(path, **more):
  return {
    'driver': 'zarr',
    'kvstore': {'driver': 'file', 'path': str(path)},
    **more,
  }


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('dtype', TYPES)
def test_tensorstore_reads_what_we_write(tmp_path, shape, dtype, monkeypatch):
  monkeypatch.setattr(zarr_files, '_CHUNK_BYTES', 40)
  values = values_of(shape, dtype)
  metadata = zarr_files.write_array(tmp_path / 'a', values)
  store = tensorstore.open(
    spec(tmp_path / 'a', dtype=np.dtype(dtype).name, metadata=metadata)
  ).result()
  assert store.read().result().tobytes() == values.tobytes()
  again = zarr_files.read_array(tmp_path / 'a')
  assert again.dtype == values.dtype and again.tobytes() == values.tobytes()


@pytest.mark.parametrize('chunks', [[4, 6], [3, 2], [1, 5]])
@pytest.mark.parametrize(
  'compressor', [None, {'id': 'gzip', 'level': 1}, {'id': 'zlib', 'level': 3}]
)
def test_we_read_what_tensorstore_writes(tmp_path, chunks, compressor):
  values = values_of((4, 6), np.float32)
  metadata = {'shape': [4, 6], 'chunks': chunks, 'compressor': compressor}
  store = tensorstore.open(
    spec(tmp_path / 'a', dtype='float32', metadata=metadata), create=True
  ).result()
  store.write(values).result()
  np.testing.assert_array_equal(zarr_files.read_array(tmp_path / 'a'), values)


def test_what_cannot_be_read_is_named(tmp_path):
  with pytest.raises(UserError, match='holds no array'):
    zarr_files.read_array(tmp_path / 'none')
  values = values_of((40, 6), np.float32)
  zarr_files.write_array(tmp_path / 'a', values)
  chunk = tmp_path / 'a' / '0.0'
  chunk.write_bytes(chunk.read_bytes()[:-30])
  with pytest.raises(UserError, match='0.0 is damaged or cut short'):
    zarr_files.read_array(tmp_path / 'a')
  metadata = {'shape': [4], 'chunks': [4], 'compressor': {'id': 'blosc'}}
  store = spec(tmp_path / 'b', dtype='float32', metadata=metadata)
  tensorstore.open(store, create=True).result()
  with pytest.raises(UserError, match="compressor 'blosc'"):
    zarr_files.read_array(tmp_path / 'b')
