"""Sampling, scoring and updating on a mesh: what one device computes."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))

import rl_run  # noqa: E402
import tiny_run  # noqa: E402


@pytest.fixture(name='report', scope='module')
def _report(tmp_path_factory):
  root = tmp_path_factory.mktemp('sharded')
  tiny_run.make_tiny_run(root)
  done = subprocess.run(
    [sys.executable, str(HERE / 'sharded_rl.py'), str(root), str(root)],
    env=os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=4'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  line = next(x for x in done.stdout.splitlines() if x.startswith('REPORT'))
  return json.loads(line.removeprefix('REPORT'))


@pytest.mark.parametrize('name', rl_run.RUNS)
def test_a_mesh_changes_nothing(report, name):
  """Eight responses to four prompts, data=2, model=2."""
  found = report[name]
  assert found['rows'] == [4, 4]
  assert found['same_texts']
  assert max(found['losses_apart']) < 1e-5
  assert found['moved'] > 1e-3
  assert found['params_apart'] < 1e-5
