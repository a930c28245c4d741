"""An epoch of weighted ALS with 128 factors on generated ratings."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys

import measuring

FACTORS, EPOCHS = 128, 4


def p4lm(size: str, data: str, work: str) -> dict:
  """The jobs themselves; the first epoch compiles and is left out."""
  tables = pathlib.Path(work, f'tables-{size}')
  if not (tables / 'manifest.json').exists():
    _job(
      'make_data', DATA_DIR=data, OUTPUT_DIR=tables, DATASET='movielens',
      **{
        'make_data.write_texts': False,
        'make_data.test_share': 0.0,
        'make_data.validation_share': 0.0,
      },
    )  # fmt: skip
  fitted = pathlib.Path(work, f'wals-{size}')
  shutil.rmtree(fitted, ignore_errors=True)
  settings = {
    'width': FACTORS,
    'epochs': EPOCHS,
    'mode': 'implicit',
    'alpha0': 0.1,
    'regularization': 0.003,
    'exponent': 1.0,
  }
  peak = _job(
    'fit_cf', DATA_DIR=tables, OUTPUT_DIR=fitted,
    **{f'fit_cf.{name}': value for name, value in settings.items()},
  )  # fmt: skip
  lines = (fitted / 'metrics.jsonl').read_text().splitlines()
  epochs = [json.loads(line) for line in lines][1:]
  return {
    'what': 'an epoch, exact (Cholesky)',
    'cpu_secs': statistics.median(e['epoch_cpu_secs'] for e in epochs),
    'wall_secs': statistics.median(e['epoch_secs'] for e in epochs),
    'peak_mb': peak // 1024,
  }


def _job(job: str, **macros) -> int:
  """Runs a job; its peak memory in KiB, which is not that of other children."""
  command = [
    sys.executable,
    *('-m', 'p4lm.main', job),
    *(f'--gin.{name}={value}' for name, value in macros.items()),
  ]
  process = subprocess.Popen(command, stdout=sys.stderr)
  _, status, used = os.wait4(process.pid, 0)
  process.returncode = os.waitstatus_to_exitcode(status)
  if process.returncode:
    raise subprocess.CalledProcessError(process.returncode, command)
  return used.ru_maxrss


def irspack(size: str, data: str, work: str) -> dict:
  """The same objective, exactly."""
  del work
  import ratings
  from irspack import IALSRecommender

  model = IALSRecommender(
    ratings.read_matrix(data, size), n_components=FACTORS, alpha0=0.1,
    reg=0.003, nu=1.0, loss_type='IALSPP', solver_type='CHOLESKY',
    n_threads=measuring.num_cores(),
  )  # fmt: skip
  model.start_learning()
  model.run_epoch()
  return {
    'what': 'an epoch, exact (Cholesky)',
    **measuring.times(model.run_epoch, EPOCHS - 1),
  }


def implicit(size: str, data: str, work: str) -> dict:
  """Three steps of conjugate gradients a row, its default."""
  del work
  import time

  import ratings
  from implicit.cpu.als import AlternatingLeastSquares

  moments = []

  def on_epoch(*_):
    moments.append((time.process_time(), time.perf_counter()))

  model = AlternatingLeastSquares(
    factors=FACTORS, regularization=0.03, iterations=EPOCHS,
    num_threads=measuring.num_cores(), random_state=0,
  )  # fmt: skip
  model.fit(
    ratings.read_matrix(data, size), show_progress=False, callback=on_epoch
  )
  laps = [
    [later - earlier for earlier, later in zip(*pair)]
    for pair in zip(moments, moments[1:])
  ]
  return {
    'what': 'an epoch, three approximate steps',
    'cpu_secs': statistics.median(cpu for cpu, _ in laps),
    'wall_secs': statistics.median(wall for _, wall in laps),
  }


if __name__ == '__main__':
  measuring.run({'p4lm': p4lm, 'irspack': irspack, 'implicit': implicit})
