"""Held-out data judge: texts of language models, or lists of CF embeddings.

The paper's Table 1 has systems side by side on held-out user-item pairs. Every
system writes one text a pair. Judging reward models, trained apart from
those of RL, score them; in a synthetic world the truth does too. Held-out
ratings, which no model saw, say whether a text fits its user better than
another one.

The ranking table has `fit_cf` directories beside popularity and chance. It is
made here and not by `fit_cf`, so that nothing which is tuned reads test
ratings, and so that several fits are compared user by user.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from p4lm import output_directory
from p4lm.data import tables
from p4lm.data.catalogue import Catalogue
from p4lm.data.world.gold import GoldScorer
from p4lm.errors import UserError
from p4lm.evaluation import table_one
from p4lm.evaluation.report import Report, write_report
from p4lm.evaluation.report_samples import Sample, SampleText
from p4lm.evaluation.score_tables import ScoreTable
from p4lm.evaluation.sections import Section
from p4lm.evaluation.text import text_statistics
from p4lm.evaluation.user_match import HeldOutJudge, UserMatch, user_match
from p4lm.partitioning.mesh import make_mesh
from p4lm.rewards.terms import RewardRequest, RewardTerm, evaluate_term
from p4lm.runs.conditioning import check_weights
from p4lm.runs.policy_curves import policy_sections
from p4lm.runs.pooled_evaluation import comparing_sections, pooled_report
from p4lm.runs.ranking_report import RankingConfig, ranking_report
from p4lm.runs.reward_sources import check_reward_sources
from p4lm.runs.reward_terms import load_reward_terms
from p4lm.runs.system_texts import SHUFFLED, system_texts
from p4lm.training.metric_writers import MetricWriter

# The paper's criteria and the reward kinds that measure them.
CRITERIA = {
  'precision': 'nli',
  'personalization': 'personalization',
  'appeal': 'appeal',
  'relevance': 'relevance',
}
BASELINE = 'Text-only writer'
_SHOWN_SAMPLES = 12
_NO_MATCH = (
  'No matched-versus-shuffled-user test: users have too few held-out ratings '
  'to be told apart by; random_by_user with a larger test_share gives more.'
)

Texts = Mapping[str, Sequence[str]]


@dataclasses.dataclass(frozen=True)
class _Judged:
  """What a report is about.

  Attributes:
    pairs: rows of `evaluation_pairs` in the table.
    subjects: item, user and preferences of each pair.
    texts: of every system, shuffled users included, one a pair.
    scores: {judge: {system: {criterion: float [M]}}}.
    matches: the matched-versus-shuffled-user test of every shown system.
    sections: further parts of the report.
  """

  pairs: Sequence[dict]
  subjects: Sequence[RewardRequest]
  texts: Texts
  scores: Mapping[str, table_one.Scores]
  matches: Mapping[str, UserMatch]
  sections: Sequence[Section]


def evaluate(
  *,
  output_dir: str,
  data_dir: str | None = None,
  systems: Mapping[str, str] | None = None,
  judges: Mapping[str, str] | None = None,
  rankers: Mapping[str, str] | None = None,
  ranking: RankingConfig | None = None,
  evaluations: Mapping[str, str] | None = None,
  runs: Mapping[str, str] | None = None,
  weights: Mapping[str, Mapping[str, float]] | None = None,
  contrasts: Sequence[tuple[str, str]] = (),
  num_pairs: int | None = None,
  temperature: float = 1.0,
  greedy: bool = False,
  batch_size: int = 100,
  seed: int = 0,
) -> None:
  """Generates, judges, compares; writes results.json, .md, .txt and a report.

  Either `systems` (with `judges`) are compared by their texts, or `rankers` by
  their lists, or finished `evaluations` of the same systems become one.

  Args:
    output_dir: gets the results, `generations/`, `scores.parquet` (every score
      of every pair) and `report/index.html`.
    data_dir: tables of `make_data`; for texts, with `evaluation_pairs`; not
      needed for `evaluations`.
    systems: {name: directory of train_lm or train_rl}.
    judges: {kind: directory of train_reward}, trained apart from RL's.
    rankers: {name: directory of fit_cf}.
    ranking: how rankers are judged.
    evaluations: {name: directory of evaluate}, such as one a seed.
    runs: {name: training directory} whose curves the report shows; of policies
      also what their responses were worth by scores that they never saw.
    weights: {system: {term: number}} that policies of
      `runs/train_rl_conditioned.gin` are told. One directory under several
      names is as many systems.
    contrasts: (first, second) systems to compare in pairs; a name with
      ' (shuffled users)' is that system reading another user's vector. For
      rankers none means the first one against every other row; for evaluations
      what all of them contrast.
    num_pairs: pairs of the table, the first so many evaluation pairs; all by
      default. The matched-versus-shuffled-user test, which needs no reward
      model, is over all of them in any case.
    temperature, greedy: how systems write.
    batch_size: texts at a time.
    seed: of sampling, of the permutation of users and of the bootstrap.
  Raises:
    UserError: a directory that holds no model, judges of another vocabulary or
      of other CF embeddings, a contrast that names no system, rankers of other
      ratings, or nothing to compare.
  """
  _check_one_task(systems, rankers, evaluations, judges, data_dir)
  _check_contrasts(contrasts)
  directory = output_directory.claim(output_dir)
  if rankers:
    config = ranking or RankingConfig()
    _rank(directory, data_dir, rankers, config, contrasts, seed)
    return
  if evaluations:
    report = pooled_report(
      evaluations, baseline=BASELINE, shuffled=SHUFFLED, contrasts=contrasts,
      seed=seed,
    )  # fmt: skip
    _publish(report, directory)
    return
  _check_judges(judges or {}, systems)
  check_weights(systems, weights or {})
  catalogue = Catalogue.load(data_dir)
  every_pair = _pairs(data_dir)
  every_text = {BASELINE: [pair['writer_text'] for pair in every_pair]}
  every_text |= system_texts(
    systems,
    every_pair,
    catalogue,
    directory,
    temperature,
    greedy,
    batch_size,
    seed,
    weights or {},
  )
  shown = [BASELINE, *systems]
  matches = _user_matches(data_dir, every_pair, every_text, shown, seed)

  pairs = every_pair[:num_pairs]
  texts = {name: written[:num_pairs] for name, written in every_text.items()}
  subjects = [_subject(pair, catalogue) for pair in pairs]
  terms = load_reward_terms(judges or {}, batch_size=batch_size)
  scores = {'learned': _learned_scores(terms, subjects, texts)}
  if (Path(data_dir) / 'truth.npz').exists():
    scores['gold'] = _gold_scores(data_dir, subjects, texts)
  ScoreTable(
    [pair['user_id'] for pair in pairs],
    [pair['item_id'] for pair in pairs],
    scores,
  ).save(directory)

  sections = policy_sections(runs or {}, data_dir, catalogue, terms)
  sections += comparing_sections(scores, shown)
  judged = _Judged(pairs, subjects, texts, scores, matches, sections)
  report = _report(judged, shown, contrasts, data_dir, seed, runs)
  _publish(report, directory)


def _publish(report: Report, directory: Path) -> None:
  """Writes a report and shows it."""
  index = write_report(report, directory)
  _write_text(directory / 'results.txt', report.to_text() + '\n')
  print(report.to_text())
  print(f'\nReport: {index}')


def _check_one_task(systems, rankers, evaluations, judges, data_dir) -> None:
  if sum(map(bool, (systems, rankers, evaluations))) != 1 or (
    judges and not systems
  ):
    raise UserError(
      'evaluate compares either SYSTEMS {name: directory} by JUDGES, or '
      'RANKERS {name: directory of fit_cf}, or puts EVALUATIONS {name: '
      'directory of evaluate} together; give one of the three, each with an '
      'OUTPUT_DIR of its own'
    )
  if data_dir is None and not evaluations:
    raise UserError('evaluate needs DATA_DIR, the tables of make_data')


def _check_contrasts(contrasts: object) -> None:
  """A value that could not be read is a string by now."""
  pairs = (
    list(contrasts) if isinstance(contrasts, list | tuple) else [contrasts]
  )
  for pair in pairs:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
      raise UserError(
        "CONTRASTS must be pairs of systems, such as (('P4LM', 'SFT'),), got "
        f'{contrasts!r:.120}'
      )


def _check_judges(judges, systems) -> None:
  """Before the systems write, which takes long."""
  missing = sorted(set(CRITERIA.values()) - set(judges))
  if missing:
    raise UserError(f'JUDGES lack {", ".join(missing)}')
  check_reward_sources(judges, systems)


def _rank(directory, data_dir, rankers, config, contrasts, seed) -> None:
  """The ranking table of CF embeddings."""
  mesh = make_mesh() if jax.device_count() > 1 else None
  report = ranking_report(
    data_dir, rankers, config, contrasts=contrasts, mesh=mesh, seed=seed
  )
  index = report.write(directory)
  _write_text(directory / 'results.txt', report.to_text() + '\n')
  with MetricWriter(directory) as writer:
    writer.drop_after(-1)
    writer.write(0, report.metrics())
  print(report.to_text())
  print(f'\nReport: {index}')


def _pairs(data_dir: str) -> list[dict]:
  pairs = tables.read_table(data_dir, 'evaluation_pairs').to_pylist()
  if not pairs:
    raise UserError(f'{data_dir}: evaluation_pairs.parquet has no rows')
  return pairs


def _subject(pair: dict, catalogue: Catalogue) -> RewardRequest:
  return RewardRequest(
    text='',
    item_id=pair['item_id'],
    user_id=pair['user_id'],
    item=catalogue.item(pair['item_id']),
    preferences=tuple(pair['preferences']),
  )


def _learned_scores(judges: Sequence[RewardTerm], subjects, texts: Texts):
  """{system: {criterion: float [M]}}; NaN where a judge has no answer."""
  terms = {term.name: term for term in judges}
  scores = {}
  for name, written in texts.items():
    requests = [
      RewardRequest(text, s.item_id, s.user_id, s.item, s.preferences)
      for text, s in zip(written, subjects)
    ]
    scores[name] = {}
    for criterion, kind in CRITERIA.items():
      found = evaluate_term(terms[kind], requests)
      scores[name][criterion] = np.where(found.valid, found.values, np.nan)
  return scores


def _gold_scores(data_dir, subjects, texts: Texts):
  scorer = GoldScorer.load(data_dir)
  users = [subject.user_id for subject in subjects]
  items = [subject.item_id for subject in subjects]
  return {
    name: scorer.score(written, users, items) for name, written in texts.items()
  }


def _report(judged: _Judged, shown, contrasts, data_dir, seed, runs) -> Report:
  users = np.array([pair['user_id'] for pair in judged.pairs])
  options = {'clusters': users, 'seed': seed}
  tables_by_judge = {
    judge: table_one.table_one(
      {name: by_system[name] for name in shown},
      baseline=BASELINE,
      judge=judge,
      **options,
    )
    for judge, by_system in judged.scores.items()
  }
  compared = []
  for judge, by_system in reversed(judged.scores.items()):
    compared += table_one.contrasts(
      by_system, contrasts, judge=judge, **options
    )
  manifest = tables.read_manifest(data_dir)
  return Report(
    title='P4LM',
    lead=f'{len(shown)} systems on {len(users)} held-out user-item pairs.',
    facts={
      'data': manifest.get('dataset', data_dir),
      'pairs': len(users),
      'users': len(set(users.tolist())),
      'seed': seed,
    },
    table=tables_by_judge['learned'],
    gold=tables_by_judge.get('gold'),
    contrasts=compared,
    user_matches=judged.matches,
    texts={name: text_statistics(judged.texts[name]) for name in shown},
    runs={
      name: Path(source) / 'metrics.jsonl'
      for name, source in (runs or {}).items()
    },
    samples=_samples(judged, shown),
    sections=judged.sections,
    notes=() if judged.matches else (_NO_MATCH,),
  )


def _user_matches(data_dir, pairs, texts: Texts, shown, seed):
  """The matched-versus-shuffled-user test of every system.

  Nothing where users have too few held-out ratings to be told apart by.
  """
  judge = HeldOutJudge(
    tables.read_table(data_dir, 'items'), tables.read_table(data_dir, 'ratings')
  )
  if len(judge.eligible) < 2:  # Such as one held-out rating a user.
    return {}
  users = [pair['user_id'] for pair in pairs]
  items = [pair['item_id'] for pair in pairs]
  return {
    name: user_match(
      judge,
      texts[name],
      users,
      items,
      counterfactual_texts=texts.get(name + SHUFFLED),
      seed=seed,
    )
    for name in shown
  }


def _samples(judged: _Judged, shown) -> list[Sample]:
  return [
    Sample(
      user_id=pair['user_id'],
      item_id=pair['item_id'],
      title=subject.item['title'],
      preferences=pair['preferences'],
      plot=subject.item['plot'],
      texts={
        name: SampleText(
          judged.texts[name][row],
          {
            f'{judge} {criterion}': float(values[row])
            for judge, by_system in judged.scores.items()
            for criterion, values in by_system[name].items()
          },
        )
        for name in shown
      },
    )
    for row, (pair, subject) in enumerate(
      zip(judged.pairs[:_SHOWN_SAMPLES], judged.subjects)
    )
  ]


def _write_text(path: Path, text: str) -> None:
  partial = path.with_name(f'.{path.name}.partial')
  partial.write_text(text, encoding='utf-8')
  os.replace(partial, path)
