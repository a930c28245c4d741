"""Tokenizes and caches SeqIO tasks, so that no training job needs SeqIO."""

from __future__ import annotations

from collections.abc import Sequence

from p4lm import output_directory
from p4lm.data import cache


def cache_tasks(
  *,
  data_dir: str,
  output_dir: str,
  tasks: Sequence[str],
  task_module: str = 'tasks.movielens',
) -> None:
  """Runs each task's SeqIO pipeline once and writes ArrayRecord files.

  Args:
    data_dir: tables and vocabulary of `make_data`.
    output_dir: gets `<task>/<split>.array_record` and `<task>/info.json`.
    tasks: names registered by `task_module`.
    task_module: module with `register(data_dir, vocabulary_path)`.
  Raises:
    UserError: a task fails; the message holds its last lines.
  """
  directory = output_directory.claim(output_dir)
  cache.cache_tasks(task_module, list(tasks), data_dir, directory)
