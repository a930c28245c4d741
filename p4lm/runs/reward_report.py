"""What a reward model's held-out examples say of it, beside its checkpoints.

OUTPUT_DIR/report.json   {"kind", "split", "validation": {figure: number}}
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from p4lm.errors import UserError

FILE = 'report.json'


def write_reward_report(
  directory: Path, kind: str, split: str, figures: Mapping[str, float]
) -> None:
  """Writes the report, whole, and one line of it to the screen.

  Args:
    directory: of the reward model.
    kind: of the reward.
    split: that it was trained on.
    figures: of the validation split, see `rewards.report`.
  """
  content = {'kind': kind, 'split': split, 'validation': dict(figures)}
  partial = directory / f'.{FILE}.partial'
  partial.write_text(json.dumps(content, indent=2))
  os.replace(partial, directory / FILE)
  shown = ', '.join(f'{name} {value:.3f}' for name, value in figures.items())
  print(f'{kind} reward on held-out texts: {shown}')


def population_mean(directory: str | os.PathLike) -> float:
  """Mean score over the held-out texts; 0.0 for a kind that reports none.

  Preferences fix a score up to a constant, which this one is.

  Raises:
    UserError: the report is missing (the training did not end) or damaged.
  """
  path = Path(directory) / FILE
  try:
    figures = json.loads(path.read_text())['validation']
    return float(figures.get('mean_score', 0.0))
  except OSError as error:
    raise UserError(
      f'reward model {directory} has no {FILE}: its training has not ended; '
      'start its train_reward again, it goes on where it stopped'
    ) from error
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(
      f'{path} is damaged ({error}); remove it and start its train_reward again'
    ) from error
