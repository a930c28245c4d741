"""Four devices compute a decoder-only model as one device does."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent


def test_a_mesh_changes_nothing():
  paths = [str(HERE.parent), os.environ.get('PYTHONPATH', '')]
  environment = {
    **os.environ,
    'XLA_FLAGS': '--xla_force_host_platform_device_count=4',
    'PYTHONPATH': os.pathsep.join(paths),
  }
  done = subprocess.run(
    [sys.executable, str(HERE / 'sharded_decoder.py')],
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  report = json.loads(done.stdout)
  assert report['loss'] < 1e-5
  assert report['gradient'] < 1e-5
  assert report['tokens'] == 0
  assert report['split_parameters'] > 10
