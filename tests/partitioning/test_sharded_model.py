"""Four devices compute what one device computes."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent


@pytest.fixture(scope='module')
def report():
  """Differences from one device, by mesh and quantity."""
  paths = [str(HERE.parent), os.environ.get('PYTHONPATH', '')]
  environment = {
    **os.environ,
    'XLA_FLAGS': '--xla_force_host_platform_device_count=4',
    'PYTHONPATH': os.pathsep.join(paths),
  }
  done = subprocess.run(
    [sys.executable, str(HERE / 'sharded_training.py')],
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout)


@pytest.mark.parametrize('mesh', ['data=2,model=2', 'fsdp=2,model=2'])
def test_a_mesh_changes_nothing(report, mesh):
  differences = report[mesh]
  assert differences['parameters'] == 0
  assert differences['loss'] < 1e-5
  assert differences['gradient'] < 1e-5
  assert differences['tokens'] == 0
  assert differences['logps'] < 1e-5
  assert differences['split_parameters'] > 20
