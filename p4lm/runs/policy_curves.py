"""Scores that a policy never saw, for the responses of its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from p4lm.data.catalogue import Catalogue
from p4lm.data.world.gold import GoldScorer
from p4lm.evaluation import over_optimisation
from p4lm.evaluation.over_optimisation import SampledText
from p4lm.evaluation.sections import Section
from p4lm.rewards.terms import RewardRequest, RewardTerm, evaluate_term


def policy_sections(
  runs: Mapping[str, str],
  data_dir: str,
  catalogue: Catalogue,
  judges: Sequence[RewardTerm],
) -> list[Section]:
  """The report's part on learned reward and unseen scores; [] without runs.

  A world's gold scores where there is its truth, else the judging reward
  models.

  Args:
    runs: {name: directory}; those with `samples.jsonl` are shown.
    data_dir: tables of `make_data`.
    catalogue: of the same.
    judges: reward models that no policy was paid by.
  """
  sampled = over_optimisation.read_runs(runs)
  if not sampled:
    return []
  if (Path(data_dir) / 'truth.npz').exists():
    judge, score_fn = 'gold', _gold(data_dir)
  elif judges:
    judge, score_fn = 'judges', _judged(judges, catalogue)
  else:
    return []
  curves = {
    name: over_optimisation.windows(samples, score_fn)
    for name, samples in sampled.items()
  }
  return [over_optimisation.section(curves, judge)]


def _gold(data_dir: str):
  scorer = GoldScorer.load(data_dir)

  def score(samples: Sequence[SampledText]) -> Mapping[str, np.ndarray]:
    return scorer.score(
      [sample.text for sample in samples],
      [sample.user_id for sample in samples],
      [sample.item_id for sample in samples],
    )

  return score


def _judged(judges: Sequence[RewardTerm], catalogue: Catalogue):
  def score(samples: Sequence[SampledText]) -> Mapping[str, np.ndarray]:
    requests = [
      RewardRequest(s.text, s.item_id, s.user_id, catalogue.item(s.item_id))
      for s in samples
    ]
    answers = {term.name: evaluate_term(term, requests) for term in judges}
    return {
      name: np.where(answer.valid, answer.values, np.nan)
      for name, answer in answers.items()
    }

  return score
