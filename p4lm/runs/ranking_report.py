"""`fit_cf` directories beside popularity and chance on held-out ratings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tqdm

from p4lm.data import tables
from p4lm.errors import UserError
from p4lm.evaluation import ranking
from p4lm.evaluation.ranking_table import RankingReport
from p4lm.runs.held_out import HeldOut, read_held_out
from p4lm.runs.rankers import (
  Fit,
  popularity_ranker,
  random_lists,
  ranker_of_tables,
  same_splits,
)

POPULARITY = 'Popularity'
RECENT = 'Recent popularity'
RANDOM = 'Random'
# What contrasts are about; the table has all metrics.
_CONTRASTED = ('ndcg', 'recall', 'hr')
_FEW_USERS = 30


@dataclasses.dataclass(frozen=True)
class RankingConfig:
  """What is ranked and how it is judged.

  Attributes:
    cutoffs: lengths of the lists that are judged.
    split: whose ratings judge: 'test', or 'validation' to tune.
    relevant_rating: lower held-out ratings are not relevant; 0 takes every
      rating as a hit.
    half_life_days: of the reference 'Recent popularity', in which a rating
      counts half as much for every so many days of age; None leaves it out.
    samples: of the bootstrap.
  """

  cutoffs: Sequence[int] = (20,)
  split: str = 'test'
  relevant_rating: float = 0.0
  half_life_days: float | None = 365.0
  samples: int = ranking.SAMPLES

  def __post_init__(self):
    ranking.check_cutoffs(self.cutoffs)
    if self.samples < 1:
      raise UserError(f'samples is {self.samples}; it must be at least 1')


def ranking_report(
  data_dir: str,
  rankers: Mapping[str, str],
  config: RankingConfig,
  *,
  contrasts: Sequence[tuple[str, str]] = (),
  mesh=None,
  seed: int = 0,
) -> RankingReport:
  """Ranks the held-out ratings with every ranker and compares them.

  Args:
    data_dir: tables of `make_data`.
    rankers: {name: OUTPUT_DIR of `fit_cf`}, at least one.
    config: see RankingConfig.
    contrasts: (first, second) names, references among them; empty compares the
      first ranker with every other row.
    mesh: shares the catalogue among devices, or None.
    seed: of the random reference and of the bootstrap.
  Returns:
    The report.
  Raises:
    UserError: a directory of other ratings, or one that read the ratings that
      judge; no user to rank for; a contrast that names no ranker.
  """
  manifest = tables.read_manifest(data_dir)
  fits = _load(data_dir, rankers)
  held_out = read_held_out(
    data_dir,
    fitted_splits=same_splits(fits),
    split=config.split,
    relevant_rating=config.relevant_rating,
  )
  names = [*rankers, *_references(config)]
  contrasts = list(contrasts) or [(names[0], name) for name in names[1:]]
  _check_contrasts(contrasts, names)
  results, unknown = _results(held_out, fits, config, mesh, seed)
  return RankingReport(
    title='Ranking of held-out ratings',
    lead=f'The catalogue ranked for {len(held_out.user_ids):,} users by '
    f'{", ".join(rankers)} and by references.',
    facts={
      'data': manifest.get('dataset', data_dir),
      'split rule': manifest.get('parameters', {}).get('split_rule', 'unknown'),
      **held_out.facts(),
      'relevant': f'held-out ratings >= {config.relevant_rating:g}',
      'seed': seed,
    },
    results=results,
    unknown_users=unknown,
    cutoffs=config.cutoffs,
    contrasts=ranking.contrasts(
      results,
      contrasts,
      [f'{metric}@{k}' for k in config.cutoffs for metric in _CONTRASTED],
      samples=config.samples,
      seed=seed,
    ),
    notes=_notes(held_out, unknown),
    samples=config.samples,
    seed=seed,
  )


def _load(data_dir, rankers: Mapping[str, str]) -> dict[str, Fit]:
  taken = {POPULARITY, RECENT, RANDOM} & set(rankers)
  if taken:
    raise UserError(
      f'RANKERS has the name {min(taken)!r}, which is a reference row; choose '
      'another'
    )
  path = Path(data_dir) / 'ratings.parquet'
  if not path.is_file():
    raise UserError(
      f'{path} does not exist; DATA_DIR must be a directory that make_data '
      'wrote'
    )
  sha256 = tables.hash_file(path)
  return {name: Fit.load(source, sha256) for name, source in rankers.items()}


def _references(config: RankingConfig) -> list[str]:
  recent = [RECENT] if config.half_life_days is not None else []
  return [POPULARITY, *recent, RANDOM]


def _check_contrasts(contrasts, names: Sequence[str]) -> None:
  for pair in contrasts:
    wrong = [name for name in pair if name not in names]
    if wrong:
      raise UserError(
        f'CONTRASTS names {wrong[0]!r}, which is no row of the table; rows: '
        f'{", ".join(names)}'
      )


def _results(held_out: HeldOut, fits: Mapping[str, Fit], config, mesh, seed):
  """{ranker: RankingResult} and {ranker: users without a vector}."""
  rankers = {
    name: ranker_of_tables(held_out, fit.tables, fit.item_biases)
    for name, fit in fits.items()
  }
  rankers[POPULARITY] = popularity_ranker(held_out)
  if config.half_life_days is not None:
    rankers[RECENT] = popularity_ranker(held_out, config.half_life_days)
  longest, results = max(config.cutoffs), {}

  def judge(name: str, top: np.ndarray) -> None:
    results[name] = ranking.evaluate_lists(
      top, held_out.truth, config.cutoffs, num_items=len(held_out.item_ids)
    )

  with _bar(len(rankers) * len(held_out.user_ids)) as bar:
    for name, ranker in rankers.items():
      judge(name, ranker.top(held_out, longest, mesh=mesh, on_users=bar.update))
  drawn = random_lists(
    held_out.seen, len(held_out.item_ids), longest, seed=seed
  )
  judge(RANDOM, drawn)
  return results, {name: r.unknown_users for name, r in rankers.items()}


def _bar(total: int) -> tqdm.tqdm:
  return tqdm.tqdm(total=total, desc='rank', unit='user', disable=None)


def _notes(held_out: HeldOut, unknown: Mapping[str, int]) -> list[str]:
  users, cold = len(held_out.user_ids), held_out.cold_users
  notes = [
    f'{name} has no vector of {count} of the {users} users: their lists are '
    'empty, which counts as misses.'
    for name, count in unknown.items()
    if count
  ]
  if cold > users:
    notes.append(
      f'{cold} of the {cold + users} users with held-out ratings have none '
      f'before: the table is about the other {users}.'
    )
  if users < _FEW_USERS:
    notes.append(
      f'{users} users are few: a bootstrap interval over less than '
      f'{_FEW_USERS} is rough.'
    )
  return notes
