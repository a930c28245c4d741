"""A trained reward model on held-out examples: all that its report says.

The split `test` judges where the task has one; the temperature is then fitted
on `validation`. Otherwise `validation` judges, with a temperature that is
fitted crosswise on its halves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import jax.numpy as jnp
import numpy as np
from scipy import special, stats

from p4lm.data.judgements import TIE
from p4lm.ops import best_of_n, calibration, preference
from p4lm.rewards import baselines, outputs, report
from p4lm.rewards.baselines import TokenExamples
from p4lm.rewards.kinds import CLASSIFIED, PAIRWISE

MODEL = 'model'
# The curve's choices are among 1, 2, 4... texts.
_MOST_CHOICES = 64

Scores = tuple[np.ndarray, ...]
Figures = dict[str, float]


@dataclasses.dataclass(frozen=True)
class ScoredSplit:
  """A split with what the model makes of it.

  Attributes:
    examples: tokens and labels.
    scores: float [n] for each side; [n, K] while they are points of a general
      preference.
    gaps: float [n], log-odds of the chosen side where they are not the
      difference of the scores, else None.
  """

  examples: TokenExamples
  scores: Scores
  gaps: np.ndarray | None = None

  @property
  def log_odds(self) -> np.ndarray:
    """float [n], of the chosen side of each pair."""
    if self.gaps is not None:
      return self.gaps
    return np.subtract(*self.scores)

  @property
  def prompt_numbers(self) -> np.ndarray:
    """int [n], equal where the prompts are."""
    _, numbers = np.unique(self.examples.prompts, axis=0, return_inverse=True)
    return numbers.ravel()


def read_split(
  batches: Iterable[Mapping[str, np.ndarray]],
  kind: str,
  score: Callable[[Mapping, np.ndarray], np.ndarray] | None = None,
) -> ScoredSplit:
  """Reads and scores the examples of a split; ties between texts are left out.

  Args:
    batches: of `loader.iterate_once`.
    kind: of the reward.
    score: (batch, response tokens [B, L]) -> [B]; None leaves out scores.
  """
  sides = ('chosen_tokens', 'rejected_tokens')
  names = sides if kind in PAIRWISE else ('response_tokens',)
  columns: list[list] = [[] for _ in range(2 + 2 * len(names))]
  for batch in batches:
    mask = batch['example_mask']
    if kind in PAIRWISE and 'labels' in batch:
      mask = mask & (batch['labels'] != TIE)
    found = [batch['prompt_tokens'], batch.get('labels', mask)]
    found += [batch[name] for name in names]
    if score is not None:
      found += [np.asarray(score(batch, batch[name])) for name in names]
    for column, values in zip(columns, found):
      column.append(np.asarray(values)[mask])
  prompts, labels, *rest = (
    np.concatenate(column) for column in columns if column
  )
  examples = TokenExamples(
    prompts, tuple(rest[: len(names)]), labels.astype(np.float64)
  )
  return ScoredSplit(examples, tuple(rest[len(names) :]))


def against_population(
  splits: Mapping[str, ScoredSplit],
) -> tuple[dict[str, ScoredSplit], np.ndarray]:
  """Turns the points of a general preference into scores and gaps.

  The population is that of the validation split: the mean [K] of its points.

  Args:
    splits: with points [n, K] as scores.
  Returns:
    The splits with scores against the population, and the population.
  """
  population = np.concatenate(splits['validation'].scores).mean(axis=0)
  found = {}
  for name, split in splits.items():
    scores = [outputs.against_population(s, population) for s in split.scores]
    gaps = preference.general_preference(*map(jnp.asarray, split.scores))
    found[name] = dataclasses.replace(
      split, scores=tuple(scores), gaps=np.asarray(gaps)
    )
  return found, population


def evaluate_reward(
  kind: str, train: TokenExamples, held_out: Mapping[str, ScoredSplit]
) -> dict:
  """Figures of a reward model and of what it must beat.

  Args:
    kind: of the reward.
    train: training examples, for the baselines.
    held_out: 'validation', and 'test' where there is one.
  Returns:
    JSON values: `judged_by` (the split), the figures of each split by its
    name, `baselines` {name: figures}, `best_of_n` and, of binary judgements,
    `reliability`.
  """
  judged_by = 'test' if 'test' in held_out else 'validation'
  judged = held_out[judged_by]
  content: dict = {'judged_by': judged_by}
  figures = _Figures(kind)
  temperature = None
  for name in ('validation', 'test'):
    if name in held_out:
      content[name] = figures.of(held_out[name], temperature)
      temperature = content[name].get('temperature')
  content['baselines'] = _baselines(figures, train, held_out, judged_by)
  content['best_of_n'] = _best_of_n(kind, judged)
  if kind in CLASSIFIED + PAIRWISE:
    scale = content[judged_by]['temperature']
    content['reliability'] = _reliability(kind, judged, scale)
  return content


@dataclasses.dataclass(frozen=True)
class _Figures:
  """The figures of a kind, of the model's scores or of others."""

  kind: str

  def of(self, split: ScoredSplit, temperature=None) -> Figures:
    lengths = split.examples.lengths
    if self.kind in PAIRWISE:
      scores = split.scores
      if split.gaps is not None:
        scores = (split.gaps, np.zeros_like(split.gaps))
      found = report.pairwise_report(*scores, *lengths, temperature=temperature)
      if split.gaps is not None:
        # Against the mean of its own points a population scores 0.
        found['mean_score'] = 0.0
      return found
    if self.kind in CLASSIFIED:
      return report.classification_report(
        split.scores[0],
        split.examples.labels,
        lengths[0],
        groups=split.prompt_numbers,
        temperature=temperature,
      )
    return report.regression_report(
      split.scores[0], split.examples.labels, lengths[0]
    )

  def of_logits(self, split: ScoredSplit, logits, temperature=None) -> Figures:
    """Of log-odds, or of score gaps for pairs."""
    scores = (logits,)
    if self.kind in PAIRWISE:
      scores = (logits, np.zeros_like(logits))
    return self.of(
      dataclasses.replace(split, scores=scores, gaps=None), temperature
    )


def _baselines(figures, train, held_out, judged_by) -> dict[str, Figures]:
  kind, judged = figures.kind, held_out[judged_by]
  if kind not in CLASSIFIED + PAIRWISE:
    mean = np.full(len(judged.examples.labels), train.labels.mean())
    return {'mean of the targets': figures.of_logits(judged, mean)}
  fit = (
    baselines.pairwise_baselines
    if kind in PAIRWISE
    else baselines.classification_baselines
  )
  examples = {n: held_out[n].examples for n in ('validation', judged_by)}
  found = {}
  for name, logits in fit(train, examples).items():
    temperature = None
    if judged_by == 'test':
      tuning = figures.of_logits(held_out['validation'], logits['validation'])
      temperature = tuning['temperature']
    found[name] = figures.of_logits(judged, logits[judged_by], temperature)
  return found


def _reliability(kind, judged: ScoredSplit, temperature: float) -> dict:
  """Bins before and after scaling, as lists."""
  logits, labels = judged.scores[0], judged.examples.labels
  if kind in PAIRWISE:
    logits, labels = report.both_orders(judged.log_odds)
  found = {}
  for name, scale in (('before', 1.0), ('after', temperature)):
    bins = calibration.reliability(
      special.expit(np.asarray(logits, np.float64) / scale), labels
    )
    found[name] = {
      field.name: getattr(bins, field.name).tolist()
      for field in dataclasses.fields(bins)
    }
  return found


def _best_of_n(kind, judged: ScoredSplit) -> dict:
  """What the best of n random held-out texts is worth, by n.

  Scores of entailment and relevance can be compared across prompts, so the
  texts of all prompts are drawn from. Preferences compare responses to one
  prompt; a text is worth the share of its comparisons that it won, and a curve
  goes as far as the prompt with the fewest texts.
  """
  groups = [_candidates(judged)] if kind not in PAIRWISE else _texts(judged)
  fewest = min(len(scores) for scores, _, _ in groups)
  ns = [n for n in (1 << k for k in range(10)) if n <= fewest]
  ns = [n for n in ns if n <= _MOST_CHOICES]
  curves = {'n': ns, 'model': [], 'longest': []}
  for n in ns:
    for name, place in (('model', 0), ('longest', 2)):
      values = [
        best_of_n.best_of_n_curve(group[place][None], group[1][None], (n,))[0]
        for group in groups
      ]
      curves[name].append(float(np.mean(values)))
  return curves


def _candidates(judged: ScoredSplit):
  """(scores, worth, lengths) of all texts."""
  examples = judged.examples
  return judged.scores[0], examples.labels, examples.lengths[0]


def _texts(judged: ScoredSplit) -> list[tuple[np.ndarray, ...]]:
  """(scores, share of comparisons won, lengths) of each prompt's texts."""
  examples = judged.examples
  prompts = np.tile(judged.prompt_numbers, 2)
  texts = np.concatenate(examples.sides)
  scores, lengths = np.concatenate(judged.scores), (texts != 0).sum(axis=1)
  won = np.repeat([1.0, 0.0], len(prompts) // 2)
  keys = np.concatenate([prompts[:, None], texts], axis=1)
  _, first, numbers, counts = np.unique(
    keys, axis=0, return_index=True, return_inverse=True, return_counts=True
  )
  worth = np.bincount(numbers.ravel(), weights=won) / counts
  return [
    (scores[first[kept]], worth[kept], lengths[first[kept]])
    for kept in (
      np.flatnonzero(prompts[first] == prompt) for prompt in np.unique(prompts)
    )
  ]


def agreement(
  kind: str, judged: ScoredSplit, values: np.ndarray, valid: np.ndarray
) -> Figures:
  """How far another reward agrees with the model on the held-out texts.

  Args:
    kind: of the model.
    judged: its split.
    values: float [sides * n] of the other reward, the first sides first.
    valid: bool [sides * n].
  Returns:
    `correlation`, `rank_correlation` over the texts that the other reward can
    judge, their `count`, and for pairs `same_choice`, the share of pairs of
    which both prefer the same text (ties half).
  """
  scores = np.concatenate(judged.scores).astype(np.float64)
  found: Figures = {'count': int(valid.sum())}
  if valid.sum() >= 2:
    first, second = scores[valid], np.asarray(values, np.float64)[valid]
    ranks = stats.rankdata(first), stats.rankdata(second)
    found['correlation'] = calibration.correlation(first, second)
    found['rank_correlation'] = calibration.correlation(*ranks)
  if kind in PAIRWISE:
    both = valid.reshape(2, -1).all(axis=0)
    if both.any():
      gaps = [
        np.sign(np.subtract(*side.reshape(2, -1)))[both]
        for side in (scores, np.asarray(values, np.float64))
      ]
      found['same_choice'] = float(np.mean((gaps[0] * gaps[1] + 1) / 2))
  return found
