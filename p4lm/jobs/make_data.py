"""make_data: ratings and texts -> tables, splits, vocabulary, manifest."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from p4lm.data import datasets, movielens, splits, tables
from p4lm.data.atomic import atomic_directory
from p4lm.data.rating_data import RatingData
from p4lm.data.vocabulary import Vocabulary
from p4lm.data.vocabulary_corpus import training_texts
from p4lm.errors import UserError
from p4lm.runs import judgement_data
from p4lm.runs.data_directory import (
  FORMAT,
  VOCABULARY_FILE,
  Steps,
  already_made,
  megabytes,
)
from p4lm.writers.template import TemplateConfig, TemplateWriter

if TYPE_CHECKING:
  from p4lm.data.world import WorldConfig

RAW = 'raw'
# The world has some 700 words; a release has tens of thousands.
_WORLD_VOCABULARY_SIZE, _VOCABULARY_SIZE = 2048, 8192

_WORLD_FILES = (RAW, 'truth.npz', 'lexicon.json')
_TEXT_TABLES = ('texts', 'pairs', 'relevance', 'rl_prompts')


def make_data(
  *,
  output_dir: str,
  dataset: str = 'world',
  data_dir: str | None = None,
  plots_file: str | None = None,
  vocabulary: str | None = None,
  vocabulary_size: int | None = None,
  seed: int = 0,
  split_rule: str = 'random_by_user',
  test_share: float = 0.2,
  validation_share: float = 0.1,
  num_evaluation_pairs: int = 200,
  write_texts: bool = True,
  drop_unknown_items: bool = False,
  keep_unknown_items: bool = False,
  world: WorldConfig | None = None,
  writer: TemplateConfig | None = None,
  judgements: judgement_data.JudgementConfig | None = None,
) -> dict:
  """Makes the data directory that every other job reads.

  All or nothing: the tables appear together, and `manifest.json` last. Run
  again with the same parameters and inputs it does nothing.

  Args:
    output_dir: directory to make.
    dataset: 'world' (synthetic, embedded), 'movielens', the name of a release
      such as 'ml-25m', which picks it out of several in data_dir,
      'tfds:movielens/25m' (or 100k, 1m, 20m, latest-small) as TensorFlow
      Datasets prepared it, 'amazon-2018', 'amazon-2023' or 'regen'; or 'nli' or
      'preferences', which have no ratings: judged texts to train a reward model
      on.
    data_dir: directory or zip archive of the data set, or TFDS' data directory;
      for judged texts, a file of JSON lines or a directory of them; None for
      the world.
    plots_file: JSON lines with `movieId` and `overview`; None takes
      `plots.jsonl` or `overviews.jsonl` beside the release (not beside TFDS'
      data: there it must be named).
    vocabulary: a SentencePiece model to use; None trains one on the texts.
    vocabulary_size: of a trained one, 100 sentinels included; None takes 2048
      for the world, 8192 otherwise.
    seed: of the world, the splits and the texts.
    split_rule: how ratings are divided, see `data.split_rules`.
    test_share: share of the ratings (or users) held out to judge.
    validation_share: share held out to tune.
    num_evaluation_pairs: held-out (user, film) pairs to write about.
    write_texts: False makes ratings, items and splits alone (for fit_cf), which
      is all that there is for data sets of other things than films.
    drop_unknown_items: count ratings of unlisted films instead of failing.
    keep_unknown_items: keep Amazon reviews of items without metadata or title,
      which are dropped and counted otherwise.
    world: size and noise of the world; its seed is `seed`.
    writer: sizes and manner of the texts about a release.
    judgements: columns and labels of judged texts.
  Returns:
    The manifest.
  Raises:
    UserError: bad input, or output_dir holds something else.
  """
  started = time.monotonic()
  if dataset in judgement_data.DATASETS:
    return judgement_data.make_judgement_data(
      dataset,
      data_dir,
      output_dir,
      judgements or judgement_data.JudgementConfig(),
      vocabulary=vocabulary,
      vocabulary_size=vocabulary_size or _VOCABULARY_SIZE,
      test_share=test_share,
      validation_share=validation_share,
      seed=seed,
    )
  kind = datasets.kind_of(dataset, data_dir)
  _check_rule(split_rule, write_texts)
  release = datasets.find(
    dataset,
    data_dir,
    drop_unknown_items=drop_unknown_items,
    keep_unknown_items=keep_unknown_items,
  )
  default_size = _VOCABULARY_SIZE if release else _WORLD_VOCABULARY_SIZE
  size = vocabulary_size or default_size
  config = _config_of(release, world, writer, seed)
  if release is not None:
    plots_file = plots_file or release.plots_file
    _check_plots(release, plots_file, write_texts)
  parameters = {
    'dataset': kind,
    'seed': seed,
    'split_rule': split_rule,
    'test_share': test_share,
    'validation_share': validation_share,
    'num_evaluation_pairs': num_evaluation_pairs,
    'write_texts': write_texts,
    'drop_unknown_items': drop_unknown_items,
    'vocabulary_size': None if vocabulary else size,
    'texts': _json_of(config),
    'inputs': _fingerprint(release, plots_file, vocabulary),
  }
  if keep_unknown_items:
    parameters['keep_unknown_items'] = True
  manifest = already_made(output_dir, parameters, _WORLD_FILES)
  if manifest is not None:
    print(f'{output_dir}: already made, nothing to do')
    return manifest
  with atomic_directory(output_dir) as staging:
    steps = Steps()
    data, source = _read(
      staging, release, plots_file, config, parameters, steps
    )
    made = _tables(data, source, parameters, steps)
    _make_vocabulary(staging, made, vocabulary, size, seed, steps)
    tables.save_tables(staging, made)
    manifest = tables.save_manifest(
      staging, _manifest(made, data.dropped, parameters)
    )
    steps.done('save', f'{megabytes(manifest)}, {len(manifest["files"])} files')
  _report(output_dir, manifest, time.monotonic() - started)
  return manifest


def _config_of(release, world, writer, seed):
  if release is not None:
    return writer or TemplateConfig()
  from p4lm.data.world import WorldConfig

  return dataclasses.replace(world or WorldConfig(), seed=seed)


def _check_plots(release, plots_file, write_texts: bool) -> None:
  if not release.is_of_films:
    if write_texts or plots_file is not None:
      raise UserError(
        f'{release.describe()} is not of films, the only things that texts are '
        'written about: set make_data.write_texts = False, and no PLOTS_FILE'
      )
    return
  if plots_file is None and write_texts:
    raise UserError(
      'no plots: give PLOTS_FILE (JSON lines with movieId and overview), or '
      'set make_data.write_texts = False to make the rating tables alone'
    )
  if plots_file is not None and not Path(plots_file).is_file():
    raise UserError(f'PLOTS_FILE {plots_file} does not exist')


def _check_rule(split_rule: str, write_texts: bool) -> None:
  if split_rule == 'user_disjoint' and write_texts:
    raise UserError(
      "split_rule 'user_disjoint' leaves held-out users without training "
      'ratings, so nothing can be written for them: set '
      'make_data.write_texts = False, or choose another SPLIT_RULE'
    )


def _fingerprint(release, plots_file, vocabulary) -> dict[str, str]:
  inputs = release.fingerprint(plots_file) if release else {}
  if vocabulary is not None:
    inputs['vocabulary'] = Vocabulary.load(vocabulary).sha256
  return inputs


def _json_of(config) -> dict:
  """The dataclass as JSON reads it back (tuples are lists there)."""
  return {
    name: list(value) if isinstance(value, tuple) else value
    for name, value in dataclasses.asdict(config).items()
  }


class _WorldSource:
  """Writes about a world; the plots are the world's own."""

  def __init__(self, world, items: pa.Table):
    self._world, self.items = world, items

  def build(self, train_ratings, evaluation_pairs) -> dict[str, pa.Table]:
    from p4lm.data.world import build_text_tables

    plain = pa.table(
      {
        name: train_ratings[name].cast(pa.string())
        for name in ('user_id', 'item_id')
      }
    )
    return build_text_tables(self._world, plain, evaluation_pairs)


def _read(staging, release, plots_file, config, parameters, steps):
  """The ratings and items, and what writes about them (None for no texts)."""
  if release is None:
    return _make_world(staging, config, steps)
  data = release.read(plots_file)
  steps.done('read', _about_ratings(release.describe(), data))
  if not parameters['write_texts']:
    return data, None
  return data, TemplateWriter(data.items, config, parameters['seed'])


def _make_world(staging: Path, config, steps):
  """Builds a world, writes it as a MovieLens release, reads it back."""
  from p4lm.data.world import build_world, save_truth, write_movielens_files

  world = build_world(config)
  write_movielens_files(world, staging / RAW)
  save_truth(world, staging)
  steps.done('world', f'{config.num_users:,} users, {config.num_items:,} items')
  data = movielens.read_movielens(staging / RAW, staging / RAW / 'plots.jsonl')
  steps.done('read', _about_ratings('its MovieLens files', data))
  return data, _WorldSource(world, data.items)


def _tables(data, source, parameters: Mapping, steps) -> dict[str, pa.Table]:
  """Splits the ratings and writes the texts from the train split."""
  shares = {
    name: parameters[name]
    for name in ('seed', 'test_share', 'validation_share')
  }
  ratings = splits.split_ratings(
    data.ratings, rule=parameters['split_rule'], **shares
  )
  steps.done('split', _about_splits(ratings))
  made = {'items': data.items, 'ratings': ratings}
  if not parameters['write_texts']:
    return made
  rule = splits.EvaluationRule(count=parameters['num_evaluation_pairs'])
  evaluation_pairs = splits.choose_evaluation_pairs(
    ratings, source.items, seed=parameters['seed'], rule=rule
  )
  is_train = splits.split_codes(ratings) == splits.TRAIN
  written = source.build(ratings.filter(pa.array(is_train)), evaluation_pairs)
  splits.check_leakage(
    ratings, evaluation_pairs, {name: written[name] for name in _TEXT_TABLES}
  )
  steps.done('texts', _about_texts(written))
  return made | written


def _make_vocabulary(staging, made, given, size, seed, steps) -> None:
  path = staging / VOCABULARY_FILE
  if given is not None:
    shutil.copyfile(given, path)
    steps.done('vocabulary', f'{Vocabulary.load(path).size:,} pieces, given')
  elif 'texts' in made:
    trained = Vocabulary.train(training_texts(made), path, size=size, seed=seed)
    steps.done('vocabulary', f'{trained.size:,} pieces, trained')


def _manifest(made, dropped, parameters: Mapping) -> dict:
  return {
    'format': FORMAT,
    'dataset': parameters['dataset'],
    'seed': parameters['seed'],
    'parameters': parameters,
    'counts': _counts(made),
    'dropped': dropped,
    'split_hash': splits.split_hash(made['ratings']),
    'split_check': splits.check_split(made['ratings'], parameters),
  }


def _counts(made: Mapping[str, pa.Table]) -> dict[str, int]:
  counts = {name: len(table) for name, table in made.items()}
  counts['rated_items'] = _num_ids(made['ratings'], 'item_id')
  counts['rating_users'] = _num_ids(made['ratings'], 'user_id')
  described = sum(1 for plot in made['items']['plot'].to_pylist() if plot)
  counts['items_with_plot'] = described
  return counts


def _num_ids(table: pa.Table, column: str) -> int:
  return len(tables.encode_ids(table[column]).ids)


def _about_ratings(what: str, data: RatingData) -> str:
  return (
    f'{what}: {len(data.ratings):,} ratings, '
    f'{_num_ids(data.ratings, "user_id"):,} users, {len(data.items):,} items'
  )


def _about_splits(ratings: pa.Table) -> str:
  codes = splits.split_codes(ratings)
  return ', '.join(
    f'{name} {int((codes == code).sum()):,}'
    for code, name in enumerate(tables.SPLITS)
  )


def _about_texts(made: Mapping[str, pa.Table]) -> str:
  return ', '.join(
    f'{name} {len(table):,}' for name, table in made.items() if name != 'items'
  )


def _report(output_dir: str | os.PathLike, manifest: Mapping, seconds: float):
  counts, dropped = manifest['counts'], manifest['dropped']
  print(
    f'{output_dir}: {counts["ratings"]:,} ratings of '
    f'{counts["rating_users"]:,} users, {counts["items"]:,} items '
    f'({counts["items_with_plot"]:,} with a plot), in {seconds:.1f} s'
  )
  for reason, number in sorted(dropped.items()):
    print(f'  dropped {number:,}: {reason}')
  if not dropped:
    print('  nothing was dropped')
