r"""Speed and memory of p4lm beside the best libraries, in one run.

  python launch/bench.py                        every benchmark
  python launch/bench.py wals --size=10m        one of them
  python launch/bench.py --cores=0,1 --repeats=5 --output=runs/bench

wals       seconds of an epoch of weighted ALS, 128 factors: p4lm (exact),
           irspack (exact), implicit (three steps of conjugate gradients)
reading    releases of MovieLens, Amazon Reviews 2018, REGEN and MovieLens by
           TensorFlow Datasets into p4lm's tables, splits and checks; beside it
           pyarrow parsing the ratings of the first and doing nothing with them
top_items  the best 20 of 376,000 items for 1,000 users: p4lm and faiss
training   a step of T5 1.1 small and of a tiny T5, batch of 8 x (256 in, 64
           out), AdamW: p4lm and transformers on PyTorch; tokens are all of the
           batch, in and out
sampling   64 tokens from the same models after prompts of 64, for 1, 8 and 32
           prompts: p4lm and `generate` of transformers; tokens are those drawn
rl         an iteration of GRPO on a tiny Llama, 8 prompts x 8 responses of 64
           tokens, four trivial rewards: p4lm and TRL; and p4lm on a tiny T5

Contenders run one after the other in processes of their own, in turn, on the
same cores (one of them, for reading all, unless --cores says which) and on the
same generated data (in OUTPUT/data, kept for the next time; --size=small is for
a trial). p4lm's memory is in huge pages where its
jobs' is (p4lm/huge_pages.py); GLIBC_TUNABLES=glibc.malloc.hugetlb=1 gives them
to every contender, and =0 to none. CPU seconds are those of all threads;
medians over the repeats, with the least and the most; a rate is of the wall
seconds. A library that is not installed is left out with a note:
pip install 'p4lm[bench]'. Writes OUTPUT/bench.json and bench.md.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence

HERE = pathlib.Path(__file__).resolve().parent
CONTENDERS = HERE / 'contenders'
LIBRARIES = {
  'wals': ('p4lm', 'irspack', 'implicit'),
  'reading': ('p4lm', 'pyarrow'),
  'top_items': ('p4lm', 'faiss'),
  'training': ('p4lm', 'transformers'),
  'sampling': ('p4lm', 'transformers'),
  'rl': ('p4lm', 'trl'),
}
# The sizes that each benchmark is run at, unless --size says otherwise.
SIZES = {
  'wals': ('1m', '10m'),
  'reading': ('25m', '25m_amazon', '25m_regen', '25m_tfds'),
  'top_items': ('376k',),
  'training': ('t5_small', 't5_tiny'),
  'sampling': (
    *('t5_small_b1', 't5_small_b8', 't5_small_b32'),
    *('t5_tiny_b1', 't5_tiny_b8', 't5_tiny_b32'),
  ),
  'rl': ('llama_tiny', 't5_tiny'),
}
# To see the program work in a minute.
SMALL = 'small'
LEFT_OUT = {3: 'not installed', 4: 'nothing like it'}
# What is read from the files of generated ratings.
FROM_RATINGS = ('wals', 'reading')


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs the benchmarks named on the command line; 1 if a contender failed."""
  options = _options(arguments)
  output = pathlib.Path(options.output)
  output.mkdir(parents=True, exist_ok=True)
  rows, failures = [], 0
  for benchmark in options.benchmarks or list(LIBRARIES):
    sizes = SIZES[benchmark]
    if options.size:
      known = (*SIZES[benchmark], SMALL)
      sizes = [size for size in options.size if size in known]
    for size in sizes:
      found, failed = _compare(benchmark, size, output, options)
      rows += found
      failures += failed
      _save(output, rows, options)
  print(f'\n{_table(rows)}\nwritten: {output / "bench.md"}')
  return 1 if failures else 0


def _options(arguments) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('benchmarks', nargs='*', metavar='BENCHMARK')
  parser.add_argument('--output', default='runs/bench')
  parser.add_argument(
    '--cores', help='cores to run on, such as 0,1 (default: one, reading: all)'
  )
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--size', action='append', help='only these sizes')
  options = parser.parse_args(arguments)
  unknown = [name for name in options.benchmarks if name not in LIBRARIES]
  if unknown:
    parser.error(
      f'no benchmark {unknown[0]!r}; choose from {", ".join(LIBRARIES)}'
    )
  known = {size for sizes in SIZES.values() for size in sizes} | {SMALL}
  for size in options.size or ():
    if size not in known:
      parser.error(f'no size {size!r}; choose from {", ".join(sorted(known))}')
  if options.repeats < 1:
    parser.error(f'--repeats={options.repeats} must be 1 or more')
  options.cores = _cores(parser, options)
  return options


def _cores(parser, options) -> dict[str, list[int]]:
  """The cores of each benchmark."""
  here = os.sched_getaffinity(0)
  if options.cores is None:
    return {
      name: sorted(here) if name == 'reading' else [min(here)]
      for name in LIBRARIES
    }
  try:
    cores = {int(core) for core in options.cores.split(',')}
  except ValueError:
    parser.error(f'--cores={options.cores} must be numbers, such as 0,1')
  if cores - here:
    absent = min(cores - here)
    parser.error(f'--cores={options.cores}: no core {absent} here')
  return dict.fromkeys(LIBRARIES, sorted(cores))


def _compare(benchmark, size, output, options) -> tuple[list[dict], int]:
  """Rows of one benchmark, one a library, and how many libraries failed."""
  data = output / 'data' / size
  if benchmark in FROM_RATINGS and not data.exists():
    print(f'{benchmark} {size}: generating {data}', flush=True)
    _generate(data, size)
  measured: dict[str, list[dict]] = {}
  missing, failed = [], []
  for repeat in range(options.repeats):
    for library in LIBRARIES[benchmark]:
      if library in missing or library in failed:
        continue
      status, answer = _run(
        benchmark, library, size, data, output, options.cores[benchmark]
      )
      if status:
        print(f'{benchmark} {size} {library}: {_reason(status)}', flush=True)
        (missing if status in LEFT_OUT else failed).append(library)
        continue
      measured.setdefault(library, []).append(answer)
      print(
        f'{benchmark} {size} {library}, {repeat + 1} of {options.repeats}: '
        f'{answer["cpu_secs"]:.3g} CPU-s, {answer["peak_mb"]} MB'
        + _phases(answer),
        flush=True,
      )
  rows = [
    {'benchmark': benchmark, 'size': size, 'library': library, **_row(answers)}
    for library, answers in measured.items()
  ]
  return rows, len(failed)


def _generate(data: pathlib.Path, size: str) -> None:
  """Writes the ratings of a size; a directory that is there is whole."""
  program = 'releases.py' if '_' in size else 'ratings.py'
  unfinished = data.with_suffix('.unfinished')
  shutil.rmtree(unfinished, ignore_errors=True)
  # In a process of its own: a child begins with its parent's peak memory.
  command = [sys.executable, CONTENDERS / program, unfinished, size]
  subprocess.run(list(map(str, command)), check=True)
  unfinished.rename(data)


def _row(answers: list[dict]) -> dict:
  """What the repeats of one contender say together."""
  row = {
    'what': answers[0]['what'],
    **{
      name: _spread([answer[name] for answer in answers])
      for name in ('cpu_secs', 'wall_secs', 'peak_mb')
    },
  }
  if 'work' in answers[0]:
    row['unit'] = answers[0]['unit']
    row['rate'] = _spread([a['work'] / a['wall_secs'] for a in answers])
  if 'phases' in answers[0]:
    row['phases'] = {
      name: _spread([answer['phases'][name] for answer in answers])
      for name in answers[0]['phases']
    }
  return row


def _spread(values: list[float]) -> dict[str, float]:
  return {
    'median': statistics.median(values),
    'least': min(values),
    'most': max(values),
  }


def _phases(answer: dict) -> str:
  seconds = answer.get('phases', {})
  return ''.join(f', {name} {took:.3f} s' for name, took in seconds.items())


def _run(benchmark, library, size, data, output, cores) -> tuple[int, dict]:
  """The exit status of a contender, and what it measured if that is 0."""
  command = [
    sys.executable,
    str(CONTENDERS / f'{benchmark}.py'),
    library,
    size,
    str(data),
    str(output / 'work'),
  ]
  environment = os.environ | {
    'BENCH_CORES': ','.join(map(str, cores)),
    'JAX_PLATFORMS': 'cpu',
  }
  done = subprocess.run(
    command, env=environment, stdout=subprocess.PIPE, text=True
  )
  if done.returncode:
    return done.returncode, {}
  return 0, json.loads(done.stdout.splitlines()[-1])


def _reason(status: int) -> str:
  if status in LEFT_OUT:
    return f'{LEFT_OUT[status]}, left out'
  return f'failed with status {status} (messages above)'


def _save(output: pathlib.Path, rows: list[dict], options) -> None:
  about = {
    'machine': platform.machine(),
    'processor': _processor(),
    'cores': {
      row['benchmark']: options.cores[row['benchmark']] for row in rows
    },
    'repeats': options.repeats,
    'python': platform.python_version(),
  }
  (output / 'bench.json').write_text(
    json.dumps({'about': about, 'rows': rows}, indent=1) + '\n'
  )
  described = ', '.join(f'{name} {value}' for name, value in about.items())
  (output / 'bench.md').write_text(f'{described}\n\n{_table(rows)}\n')


def _processor() -> str:
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    return platform.processor()
  names = [line.split(':', 1)[1] for line in lines if 'model name' in line]
  return names[0].strip() if names else platform.processor()


def _table(rows: list[dict]) -> str:
  lines = [
    '| Benchmark | Library | What is measured | CPU, s | Wall, s | Rate '
    '| Peak, MB |',
    '|---|---|---|---|---|---|---|',
  ]
  for row in rows:
    cpu, wall = row['cpu_secs'], row['wall_secs']
    what, rate = row['what'], '-'
    if 'phases' in row:
      parts = ', '.join(
        f'{name} {took["median"]:.3f}' for name, took in row['phases'].items()
      )
      what += f' (s: {parts})'
    if 'rate' in row:
      rate = f'{row["rate"]["median"]:,.0f} {row["unit"]}/s'
    lines.append(
      f'| {row["benchmark"]} {row["size"]} | {row["library"]} | {what} '
      f'| {cpu["median"]:.3g} ({cpu["least"]:.3g} to {cpu["most"]:.3g}) '
      f'| {wall["median"]:.3g} | {rate} | {row["peak_mb"]["median"]:.0f} |'
    )
  return '\n'.join(lines)


if __name__ == '__main__':
  sys.exit(main())
