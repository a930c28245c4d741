"""What a reward model's held-out examples say of it, beside its checkpoints.

OUTPUT_DIR/report.json         {"kind", "split", "judged_by", "validation":
                               {figure: number}, "test", "baselines", ...}
OUTPUT_DIR/report/index.html   the same to look at
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from p4lm.errors import UserError
from p4lm.evaluation import reward_page

FILE = 'report.json'


def write_reward_report(
  directory: Path, kind: str, split: str, content: Mapping
) -> None:
  """Writes the report, each file whole, and its table to the screen.

  Args:
    directory: of the reward model.
    kind: of the reward.
    split: that it was trained on.
    content: see `reward_evaluation.evaluate_reward`.
  """
  content = {'kind': kind, 'split': split, **content}
  index = directory / 'report' / 'index.html'
  index.parent.mkdir(parents=True, exist_ok=True)
  _replace(index, reward_page.to_html(content))
  # Last: who finds it finds a training that has ended.
  _replace(
    directory / FILE, json.dumps(content, indent=2, allow_nan=False) + '\n'
  )
  print(reward_page.to_text(content))
  print(f'Report: {index}')


def population_mean(directory: str | os.PathLike) -> float:
  """Mean score over the held-out texts; 0.0 for a kind that reports none.

  Preferences fix a score up to a constant, which this one is.

  Raises:
    UserError: the report is missing (the training did not end) or damaged.
  """
  return _read(
    directory, lambda found: float(found['validation'].get('mean_score', 0.0))
  )


def population(directory: str | os.PathLike) -> tuple[float, ...] | None:
  """The mean point of the held-out texts, of rewards whose heads are points.

  Raises:
    UserError: the report is missing or damaged.
  """
  return _read(
    directory,
    lambda found: (
      tuple(map(float, found['population'])) if 'population' in found else None
    ),
  )


def temperature(directory: str | os.PathLike) -> float:
  """The temperature that the report's scaled figures are about.

  Raises:
    UserError: the report is missing, damaged, or of a reward whose scores are
      no log-odds.
  """
  return _read(
    directory, lambda found: float(found[found['judged_by']]['temperature'])
  )


def _read(directory, wanted: Callable[[Mapping], object]):
  path = Path(directory) / FILE
  try:
    return wanted(json.loads(path.read_text()))
  except OSError as error:
    raise UserError(
      f'reward model {directory} has no {FILE}: its training has not ended; '
      'start its train_reward again, it goes on where it stopped'
    ) from error
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(
      f'{path} is damaged or of another kind or version ({error!r}); remove it '
      'and start its train_reward again'
    ) from error


def _replace(path: Path, text: str) -> None:
  partial = path.with_name(f'.{path.name}.partial')
  partial.write_text(text, encoding='utf-8')
  os.replace(partial, path)
