r"""What a policy's learned reward is worth as RL goes on, along sqrt(KL).

A policy is paid by learned rewards; what they stand for is measured by scores
that it never sees: gold scores of a world, or reward models trained apart.
Iterations are put together in windows of equal length; each gives the mean KL
to the anchor, the mean reward and the mean of each unseen score of the
responses sampled in it. Against d = sqrt(KL) a reward that is over-optimised
goes on rising where the unseen score turns (Gao et al. 2023, "Scaling laws for
reward model overoptimization", plot the same).

The early-stopping rule is the window whose unseen score is highest: a later one
is only said to have fallen if its difference to that is apart from zero.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from p4lm.errors import UserError
from p4lm.evaluation import charts
from p4lm.evaluation.sections import Section
from p4lm.evaluation.statistics import finite_or_none

NOTE = (
  'Windows of iterations; means over the responses sampled in them, ± one '
  'standard error. Best: the window where the unseen score is highest; fallen: '
  'the last window lies below it by more than twice the standard error of '
  'their difference.'
)


@dataclasses.dataclass(frozen=True)
class SampledText:
  """A response of a run's `samples.jsonl`."""

  step: int
  user_id: str
  item_id: str
  text: str
  kl: float
  reward: float


@dataclasses.dataclass(frozen=True)
class Window:
  """Means over some iterations.

  Attributes:
    steps: first and last iteration.
    kl: mean of sampled log-ratios, nats a response.
    reward: mean and standard error of the learned joint reward.
    unseen: {score: (mean, standard error)}.
  """

  steps: tuple[int, int]
  kl: float
  reward: tuple[float, float]
  unseen: Mapping[str, tuple[float, float]]

  @property
  def distance(self) -> float:
    """sqrt(KL), 0 where the sampled KL came out negative."""
    return math.sqrt(max(self.kl, 0.0))

  def as_dict(self) -> dict:
    """JSON values."""
    return {
      'steps': list(self.steps),
      'kl': self.kl,
      'reward': [finite_or_none(value) for value in self.reward],
      'unseen': {
        name: [finite_or_none(value) for value in values]
        for name, values in self.unseen.items()
      },
    }


def read_samples(path) -> list[SampledText]:
  """Valid responses of a `samples.jsonl`, in its order.

  Raises:
    UserError: a line is no sample.
  """
  found = []
  with open(path, encoding='utf-8') as lines:
    for number, line in enumerate(lines, start=1):
      try:
        row = json.loads(line)
        if row['valid']:
          found.append(
            SampledText(
              int(row['step']), row['user_id'], row['item_id'], row['text'],
              float(row['kl']), float(row['reward']),
            )
          )  # fmt: skip
      except (ValueError, KeyError, TypeError) as error:
        raise UserError(
          f'{path}, line {number}: no sample of train_rl ({error})'
        ) from error
  return found


def windows(
  samples: Sequence[SampledText],
  score_fn: Callable[[Sequence[SampledText]], Mapping[str, np.ndarray]],
  *,
  count: int = 10,
  most: int = 256,
) -> list[Window]:
  """Means by window of iterations.

  Args:
    samples: of one run.
    score_fn: unseen scores of B samples, {name: float [B]}; NaN is left out.
    count: windows, at most one an iteration.
    most: samples of a window that are scored; more are thinned evenly.
  Returns:
    Windows in running order; none without samples.
  """
  steps = sorted({sample.step for sample in samples})
  parts = np.array_split(np.array(steps), max(1, min(count, len(steps))))
  found = []
  for part in (p for p in parts if len(p)):
    inside = [s for s in samples if part[0] <= s.step <= part[-1]]
    thinned = inside[:: -(-len(inside) // most)]
    found.append(
      Window(
        (int(part[0]), int(part[-1])),
        float(np.mean([s.kl for s in inside])),
        _mean([s.reward for s in inside]),
        {name: _mean(values) for name, values in score_fn(thinned).items()},
      )
    )
  return found


def best_window(found: Sequence[Window], score: str) -> int:
  """Where an unseen score is highest; the first of equals."""
  means = [window.unseen[score][0] for window in found]
  return int(np.nanargmax(means)) if np.isfinite(means).any() else 0


def has_fallen(found: Sequence[Window], score: str) -> bool:
  """Whether the last window lies clearly below the best one.

  By more than twice the standard error of their difference.
  """
  best, last = found[best_window(found, score)], found[-1]
  gap = best.unseen[score][0] - last.unseen[score][0]
  return gap > 2 * math.hypot(best.unseen[score][1], last.unseen[score][1])


def section(curves: Mapping[str, Sequence[Window]], judge: str) -> Section:
  """The report's part on policies {system: windows}, by an unseen judge."""
  rows = []
  for system, found in curves.items():
    for score in found[0].unseen:
      best = found[best_window(found, score)]
      rows.append(
        [
          system,
          score,
          *(_cell(found[place].unseen[score]) for place in (0, -1)),
          _cell(best.unseen[score]),
          f'{best.steps[0]} to {best.steps[1]}',
          f'{best.distance:.2f}',
          f'{found[-1].distance:.2f}',
          f'{found[0].reward[0]:.2f} to {found[-1].reward[0]:.2f}',
          'fallen' if has_fallen(found, score) else '',
        ]
      )
  header = [
    'System', f'Score ({judge})', 'First window', 'Last', 'Best', 'Best at',
    'sqrt(KL) there', 'sqrt(KL) at last', 'Reward', 'Verdict',
  ]  # fmt: skip
  return Section(
    'over_optimisation',
    'Learned reward and unseen scores along RL',
    header,
    rows,
    NOTE,
    {
      f'{system}: reward and {judge} scores along sqrt(KL)': (
        charts.distance_chart(found)
      )
      for system, found in curves.items()
    },
    {
      system: [window.as_dict() for window in found]
      for system, found in curves.items()
    },
  )


def read_runs(runs: Mapping[str, str]) -> dict[str, list[SampledText]]:
  """Samples of the runs that have any."""
  paths = {name: Path(run) / 'samples.jsonl' for name, run in runs.items()}
  found = {
    name: read_samples(path) for name, path in paths.items() if path.exists()
  }
  return {name: samples for name, samples in found.items() if samples}


def _mean(values) -> tuple[float, float]:
  values = np.asarray(values, np.float64)
  values = values[np.isfinite(values)]
  if not len(values):
    return math.nan, math.nan
  error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else 0
  return float(values.mean()), float(error)


def _cell(value: tuple[float, float]) -> str:
  return f'{value[0]:.3f} ± {value[1]:.3f}'
