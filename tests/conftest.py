"""Shared by all tests: run-time checks, the compilation cache, real data.

This file runs before any test module imports p4lm or JAX, which the import
hook and the environment variables below depend on.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def _cache_dir() -> pathlib.Path:
  """A directory of compiled programs for this processor and this user.

  XLA compiles for the processor at hand, and a program from another one may
  not run here: the processor's features are part of the name.
  """
  home = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    features = next(line for line in lines if line.startswith('flags'))
  except (OSError, StopIteration):
    features = ''
  processor = hashlib.sha256(features.encode()).hexdigest()[:12]
  return pathlib.Path(home) / 'p4lm' / 'test_compilations' / processor


# Tests run on the CPU, wherever they run. These also reach the processes that
# tests start.
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(_cache_dir()))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.3')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1')
os.environ.setdefault('MPLBACKEND', 'Agg')

# Tests import tasks, and the processes that they start import p4lm, from any
# directory: the checkout comes first, whether or not p4lm is installed.
sys.path.insert(0, str(ROOT))
os.environ['PYTHONPATH'] = os.pathsep.join(
  [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
)

from jaxtyping import install_import_hook  # noqa: E402

# Every annotated shape and dtype of p4lm is checked at each call.
sys.path.insert(0, str(ROOT / 'tests'))
_HOOK = install_import_hook('p4lm', 'array_checks.check_arrays')

import jax  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture(autouse=True)
def _rank_promotion_raises():
  """[B] against [B, L] broadcasts along the wrong axis in silence; not here."""
  with jax.numpy_rank_promotion('raise'):
    yield


@pytest.fixture(scope='session')
def repository() -> pathlib.Path:
  """The directory that holds setup.py."""
  return ROOT


@pytest.fixture(scope='session')
def data_dir() -> pathlib.Path:
  """Real data: $P4LM_DATA, or a directory beside the checkout.

  The tests that use it read, below it, `movielens/ml-latest-small` (GroupLens),
  `movielens/overviews.jsonl` and `tokenizers/t5/spiece.model`.
  """
  named = os.environ.get('P4LM_DATA')
  path = pathlib.Path(named) if named else ROOT.parent / 'shared' / 'data'
  if not path.is_dir():
    pytest.skip(
      f'no real data in {path}: set P4LM_DATA to a directory that holds '
      'movielens/ml-latest-small'
    )
  return path
