r"""Launches a job of p4lm through XManager.

  xmanager launch launch/xm_launch.py -- train_lm --gin_file=runs/train_lm.gin \
    --gin.DATA_DIR=data --gin.OUTPUT_DIR=runs/lm
  python launch/xm_launch.py pipeline --gin_file=experiments/world.gin \
    --gin.OUTPUT_DIR=runs/world

The job and its flags are those of `p4lm JOB`; relative paths are seen from the
directory that the launcher is started in. A flag `--sweep.NAME=VALUE`, given
once a value, runs the job for each value (for each combination, when several
names are swept), every run in its own directory below OUTPUT_DIR:

  python launch/xm_launch.py fit_cf --gin.DATA_DIR=data \
    --gin.OUTPUT_DIR=runs/cf --sweep.SEED=0 --sweep.SEED=1

writes runs/cf/SEED=0 and runs/cf/SEED=1.
"""

from __future__ import annotations

import itertools
import pathlib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence

from absl import app, flags

HERE = pathlib.Path(__file__).resolve().parent
if str(HERE) not in sys.path:
  # `xmanager launch` takes its own path entry away again after the import.
  sys.path.insert(0, str(HERE))

import executors  # noqa: E402

try:
  # Defines the --xm_... flags, one of which `xmanager launch` passes itself.
  import xmanager.xm  # noqa: F401
except ImportError:
  # The executor says so, in one sentence, when it is asked to run.
  pass

_GIN_FILE = flags.DEFINE_multi_string(
  'gin_file', [], 'Configuration, read in the order given.'
)
_SEARCH_PATHS = flags.DEFINE_multi_string(
  'gin_search_paths', [], 'More directories in which gin files are looked up.'
)
_EXECUTOR = flags.DEFINE_enum(
  'executor', 'local', sorted(executors.EXECUTORS), 'Where the job runs.'
)
_PARALLEL = flags.DEFINE_boolean(
  'parallel', False, 'Run the units of a sweep all at once.'
)
_TITLE = flags.DEFINE_string(
  'title', None, "The experiment's name in XManager (default: the job)."
)

_DYNAMIC_FLAG = re.compile(r'^--?((gin|sweep)\.[^=]+)(=|$)')


def register_dynamic_flags(arguments: Iterable[str]) -> list[str]:
  """Defines a flag for every `--gin.X` and `--sweep.X` among `arguments`.

  absl stops at flags that nobody has defined, and XManager parses them before
  it calls `main`, so the names must be known when this module is imported.

  Returns:
    The flags' names in order of appearance.
  """
  names = []
  for argument in arguments:
    match = _DYNAMIC_FLAG.match(argument)
    if match and match.group(1) not in names:
      names.append(match.group(1))
  for name in names:
    if name not in flags.FLAGS:
      flags.DEFINE_multi_string(name, [], f'Value of {name.split(".", 1)[1]}.')
  return names


_DYNAMIC_FLAGS = register_dynamic_flags(sys.argv[1:])


def build_units(
  job: str,
  gin_files: Sequence[str],
  search_paths: Sequence[str],
  bindings: Sequence[tuple[str, str]],
  sweeps: Mapping[str, Sequence[str]],
) -> list[executors.Unit]:
  """One unit for each combination of swept values, a single one without any.

  Args:
    job: name of a job.
    gin_files: values of `--gin_file`, in order.
    search_paths: values of `--gin_search_paths`.
    bindings: (NAME, VALUE) of each `--gin.NAME=VALUE`, in order.
    sweeps: swept names and their values.
  Raises:
    executors.LaunchError: several runs would write into one directory.
  """
  common = [job]
  common += [f'--gin_file={path}' for path in gin_files]
  common += [f'--gin_search_paths={paths}' for paths in search_paths]
  common += [f'--gin.{name}={value}' for name, value in bindings]
  if not sweeps:
    return [executors.Unit(job, tuple(common))]
  output_dir = dict(bindings).get('OUTPUT_DIR')
  if output_dir is None and 'OUTPUT_DIR' not in sweeps:
    raise executors.LaunchError(
      'a sweep needs --gin.OUTPUT_DIR=DIR: every run gets its own directory '
      'below it'
    )
  units = []
  for values in itertools.product(*sweeps.values()):
    chosen = list(zip(sweeps, values))
    name = ','.join(f'{key}={value}' for key, value in chosen)
    directory = re.sub(r'[^\w.,=+-]', '_', name)
    if 'OUTPUT_DIR' not in sweeps:
      chosen.append(('OUTPUT_DIR', str(pathlib.Path(output_dir, directory))))
    arguments = common + [f'--gin.{key}={value}' for key, value in chosen]
    units.append(executors.Unit(f'{job}-{directory}', tuple(arguments)))
  names = [unit.name for unit in units]
  twice = sorted({name for name in names if names.count(name) > 1})
  if twice:
    raise executors.LaunchError(
      f'swept values give the same directory twice: {", ".join(twice)}'
    )
  return units


def _flag_values(prefix: str) -> dict[str, list[str]]:
  return {
    name.split('.', 1)[1]: list(flags.FLAGS[name].value)
    for name in _DYNAMIC_FLAGS
    if name.startswith(prefix)
  }


def main(argv: Sequence[str]) -> None:
  """Entry point of both `xmanager launch` and `python launch/xm_launch.py`."""
  if len(argv) != 2:
    raise app.UsageError(
      f'name one job, got {list(argv[1:])}; for example: '
      'python launch/xm_launch.py train_lm --gin_file=runs/train_lm.gin'
    )
  job = argv[1]
  bindings = [
    (name, value)
    for name, values in _flag_values('gin.').items()
    for value in values
  ]
  if _EXECUTOR.value == 'local':
    executor = executors.LocalExecutor(parallel=_PARALLEL.value)
  else:
    executor = executors.EXECUTORS[_EXECUTOR.value]()
  try:
    units = build_units(
      job,
      _GIN_FILE.value,
      _SEARCH_PATHS.value,
      bindings,
      _flag_values('sweep.'),
    )
    failed = executor.run(_TITLE.value or f'p4lm {job}', units)
  except executors.LaunchError as error:
    print(f'xm_launch: {error}', file=sys.stderr)
    sys.exit(1)
  except KeyboardInterrupt:
    print('xm_launch: stopped, and the local jobs with it', file=sys.stderr)
    sys.exit(130)
  if failed:
    print(
      f'xm_launch: {len(failed)} of {len(units)} failed: {", ".join(failed)}',
      file=sys.stderr,
    )
    sys.exit(1)


if __name__ == '__main__':
  app.run(main)
