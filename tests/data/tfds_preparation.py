"""Runs `tfds_probe.py`, which prepares data sets with TFDS' own builders."""

import json
import pathlib
import subprocess
import sys

from p4lm import child_process

_PROBE = pathlib.Path(__file__).parent / 'tfds_probe.py'


def prepare(steps):
  """Runs [(directory of files, line of Python)]; names of all configurations.

  One process for all of them: TensorFlow takes its time to load.
  """
  done = subprocess.run(
    [sys.executable, str(_PROBE), json.dumps([[str(d), x] for d, x in steps])],
    env=child_process.tensorflow_environment(),
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout.splitlines()[-1])
