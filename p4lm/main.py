"""The command line: `p4lm JOB [--gin_file=F]... [--gin.NAME=VALUE]...`.

Exit status: 0 done, 1 an error that the user can mend (one message, no
traceback), 2 bad usage. Nothing heavy is imported until a job is known, so
that help answers at once.
"""

from __future__ import annotations

import difflib
import logging
import os
import sys
from collections.abc import Sequence

from p4lm import child_process, huge_pages
from p4lm.errors import UserError

JOBS = {
  'make_data': 'ratings and texts -> tables, splits, vocabulary',
  'fit_cf': 'ratings -> user and item embeddings (weighted ALS, two towers)',
  'cache_tasks': 'SeqIO tasks, tokenized and cached as ArrayRecord',
  'train_lm': 'soft-token language model: stage adapters, full or lora',
  'train_reward': 'a reward model: nli, appeal, personalization, relevance',
  'train_rl': 'fine-tune against the joint reward with a KL anchor',
  'infer': 'JSONL in, JSONL out: generate, score or reward',
  'convert': 'checkpoints from and to Hugging Face; from GGUF and T5X',
  'evaluate': "the paper's table, or how CF embeddings rank; the report",
  'pipeline': 'all of the above, stage by stage, from one experiment',
  'compile_pod': 'what a training job would take on a TPU pod, without one',
}

# What runs language models, and is faster with memory in huge pages.
_WITH_HUGE_PAGES = ('train_lm', 'train_reward', 'train_rl', 'infer')

USAGE = """\
usage: p4lm JOB [--gin_file=FILE]... [--gin.NAME=VALUE]...
                [--gin_search_paths=DIR,...]
       p4lm JOB --help

Jobs:
{jobs}

  --gin_file=FILE      configuration, read in the order given
                       (default: runs/JOB.gin)
  --gin.NAME=VALUE     overrides a macro or a parameter; a value that is no
                       Python literal is taken as a string
  --gin_search_paths   more directories in which gin files are looked up

Examples:
  p4lm pipeline --gin_file=experiments/world.gin --gin.OUTPUT_DIR=runs/world
  p4lm fit_cf --gin.DATA_DIR=runs/world/data --gin.OUTPUT_DIR=runs/cf
"""


class UsageError(Exception):
  """The command line itself is wrong: exit status 2."""


def usage() -> str:
  lines = [f'  {name:<14}{about}' for name, about in JOBS.items()]
  return USAGE.format(jobs='\n'.join(lines))


def parse_arguments(arguments: Sequence[str]):
  """Splits the command line into job, gin files, bindings, search paths.

  Returns:
    (job or None, wants_help, gin_files, bindings as 'NAME=VALUE', paths).
  Raises:
    UsageError: an unknown job or flag, or a flag without its value.
  """
  job, wants_help, files, bindings, paths = None, False, [], [], []
  pending = list(arguments)
  while pending:
    argument = pending.pop(0)
    if argument in ('-h', '--help', 'help'):
      wants_help = True
    elif argument.startswith(('--gin.', '-gin.')):
      bindings.append(_binding(argument, pending))
    elif argument.startswith(('--gin_file', '--gin_search_paths')):
      name, _, value = argument.partition('=')
      if name not in ('--gin_file', '--gin_search_paths'):
        raise UsageError(_unknown_flag(name))
      if not value:
        if not pending:
          raise UsageError(f'{name} needs a value: {name}=PATH')
        value = pending.pop(0)
      if name == '--gin_file':
        files.append(value)
      else:
        paths.extend(p for p in value.split(',') if p)
    elif argument.startswith('-'):
      raise UsageError(_unknown_flag(argument.partition('=')[0]))
    elif job is None:
      job = argument
    else:
      raise UsageError(f'one job at a time: got {job!r} and {argument!r}')
  if job is not None and job not in JOBS:
    near = difflib.get_close_matches(job, JOBS, n=1)
    hint = f'; did you mean {near[0]!r}?' if near else '.'
    raise UsageError(f'no job {job!r}{hint} Jobs: {", ".join(JOBS)}')
  return job, wants_help, files, bindings, paths


def _binding(argument: str, pending: list[str]) -> str:
  binding = argument.split('gin.', 1)[1]
  if '=' not in binding:
    if not pending:
      raise UsageError(f'{argument} needs a value: {argument}=VALUE')
    binding = f'{binding}={pending.pop(0)}'
  return binding


def _unknown_flag(name: str) -> str:
  known = ['--gin_file', '--gin_search_paths', '--help', '--gin.NAME']
  near = difflib.get_close_matches(name, known, n=1)
  bare = name.lstrip('-')
  if bare.split('.')[0].isupper():
    return f'unknown flag {name}; did you mean --gin.{bare}=...?'
  hint = f'; did you mean {near[0]}?' if near else ''
  return f'unknown flag {name}{hint}'


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command line (without the program's name); returns the status.

  Without `argv` it runs the process's own, which may start the process again
  (see `huge_pages`).
  """
  arguments = sys.argv[1:] if argv is None else list(argv)
  try:
    job, wants_help, files, bindings, paths = parse_arguments(arguments)
    if argv is None and job in _WITH_HUGE_PAGES and not wants_help:
      huge_pages.restart()
    if job is None:
      print(usage())
      if wants_help:
        return 0
      raise UsageError('no job was named')
    from p4lm import configuration

    if wants_help:
      print(configuration.describe(job, files, paths))
      return 0
    _log_to_stderr()
    child_process.end_with_parent()
    configuration.run(job, files, bindings, paths)
    return 0
  except UsageError as error:
    print(f'p4lm: {error}\nTry: p4lm --help', file=sys.stderr)
    return 2
  except UserError as error:
    print(f'p4lm: error: {error}', file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    print('p4lm: stopped; run the same command to go on', file=sys.stderr)
    return 130
  except BrokenPipeError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _log_to_stderr() -> None:
  logging.basicConfig(level=logging.INFO, format='%(message)s')
  # These narrate what no user asked for, such as backends that are absent.
  for name in ('jax', 'jax._src.xla_bridge', 'absl', 'orbax', 'grain'):
    logging.getLogger(name).setLevel(logging.WARNING)


def console_main() -> None:
  sys.exit(main())


if __name__ == '__main__':
  console_main()
