"""A release of 25 million ratings, from its files to tables."""

from __future__ import annotations

import pathlib
import re
import resource
import shutil
import subprocess
import sys
import time

import measuring

# By what stands behind the size.
DATASETS = {
  '': 'movielens',
  'amazon': 'amazon-2018',
  'regen': 'regen',
  'tfds': 'tfds:movielens/25m',
}
# A step in what make_data prints.
_STEP = re.compile(r'^  (read|split|save) +([0-9.]+) s ', re.MULTILINE)


def p4lm(size: str, data: str, work: str) -> dict:
  """The whole job: reading, checking, splitting, writing Parquet."""
  tables = pathlib.Path(work, 'tables-reading')
  shutil.rmtree(tables, ignore_errors=True)
  started = time.perf_counter(), _child_secs()
  done = subprocess.run(
    [
      sys.executable,
      *('-m', 'p4lm.main', 'make_data'),
      f'--gin.DATASET={DATASETS[size.partition("_")[2]]}',
      f'--gin.DATA_DIR={data}',
      f'--gin.OUTPUT_DIR={tables}',
      '--gin.make_data.write_texts=False',
    ],
    stdout=subprocess.PIPE,
    check=True,
    text=True,
  )
  print(done.stdout, file=sys.stderr)
  return {
    'what': 'make_data: read, check, split, write',
    'cpu_secs': _child_secs() - started[1],
    'wall_secs': time.perf_counter() - started[0],
    'phases': {name: float(secs) for name, secs in _STEP.findall(done.stdout)},
  }


def _child_secs() -> float:
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


def pyarrow(size: str, data: str, work: str) -> dict:
  """The floor: parse the columns and keep them."""
  del work
  if '_' in size:
    raise measuring.NotComparable('it has no streaming parser of these files')
  from pyarrow import csv

  path = pathlib.Path(data, 'ratings.csv')
  return {
    'what': 'parse ratings.csv alone',
    **measuring.times(lambda: csv.read_csv(path), 1),
  }


if __name__ == '__main__':
  measuring.run({'p4lm': p4lm, 'pyarrow': pyarrow})
