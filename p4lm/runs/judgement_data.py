"""Judged texts of any file as the tables that reward models train on.

`make_data` with DATASET 'nli' writes an `entailment` table, with 'preferences'
a `pairs` table of kind `appeal` (and `ties`, if there are any): what the world
and the template's judges write, so that tasks and `train_reward` do not tell
them apart.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from p4lm.data import group_splits, judgements, prompts, tables
from p4lm.data.atomic import atomic_directory
from p4lm.data.judgements import JudgementFiles, NLIColumns, PreferenceColumns
from p4lm.data.vocabulary import Vocabulary
from p4lm.data.vocabulary_corpus import judged_texts
from p4lm.errors import UserError
from p4lm.runs.data_directory import (
  FORMAT,
  VOCABULARY_FILE,
  Steps,
  already_made,
  megabytes,
)

DATASETS = ('nli', 'preferences')


@dataclasses.dataclass(frozen=True)
class JudgementConfig:
  """How files of judged texts are read and divided.

  Attributes:
    nli: columns and label map of DATASET 'nli'.
    preferences: columns and verdicts of DATASET 'preferences'.
    judge_share: of the rows, for judges that are trained apart from the
      rewards of RL (`train_reward` with SPLIT 'judge').
  """

  nli: NLIColumns = NLIColumns()
  preferences: PreferenceColumns = PreferenceColumns()
  judge_share: float = 0.0


def make_judgement_data(
  dataset: str,
  data_dir: str | None,
  output_dir: str,
  config: JudgementConfig,
  *,
  vocabulary: str | None,
  vocabulary_size: int,
  test_share: float,
  validation_share: float,
  seed: int,
) -> dict:
  """Makes a data directory of judged texts, all or nothing.

  Args:
    dataset: 'nli' or 'preferences'.
    data_dir: a file of JSON lines, or a directory of them.
    output_dir: directory to make.
    config: columns, labels, share of the judges.
    vocabulary: a SentencePiece model to use; None trains one on `train`.
    vocabulary_size: of a trained one.
    test_share, validation_share: of the rows.
    seed: of the splits and the vocabulary.
  Returns:
    The manifest.
  Raises:
    UserError: bad input, shares that cannot be had, or output_dir holds
      something else.
  """
  if data_dir is None:
    raise UserError(
      f'dataset {dataset!r} needs DATA_DIR: a file with one JSON object a '
      'line, or a directory of such files'
    )
  files = JudgementFiles(data_dir)
  shares = group_splits.Shares(test_share, validation_share, config.judge_share)
  columns = config.nli if dataset == 'nli' else config.preferences
  parameters = {
    'dataset': dataset,
    'seed': seed,
    'columns': json.loads(json.dumps(dataclasses.asdict(columns))),
    'shares': dataclasses.asdict(shares),
    'vocabulary_size': None if vocabulary else vocabulary_size,
    'inputs': _fingerprint(files, vocabulary),
  }
  manifest = already_made(output_dir, parameters)
  if manifest is not None:
    print(f'{output_dir}: already made, nothing to do')
    return manifest
  with atomic_directory(output_dir) as staging:
    steps = Steps()
    made, facts = _tables(dataset, files, columns, shares, seed, steps)
    path = staging / VOCABULARY_FILE
    if vocabulary is not None:
      shutil.copyfile(vocabulary, path)
      pieces, how = Vocabulary.load(path), 'given'
    else:
      texts = judged_texts(next(iter(made.values())))
      pieces = Vocabulary.train(texts, path, size=vocabulary_size, seed=seed)
      how = 'trained'
    steps.done('vocabulary', f'{pieces.size:,} pieces, {how}')
    tables.save_tables(staging, made)
    manifest = tables.save_manifest(
      staging,
      {
        'format': FORMAT,
        'dataset': dataset,
        'seed': seed,
        'parameters': parameters,
        **facts,
      },
    )
    steps.done('save', f'{megabytes(manifest)}, {len(manifest["files"])} files')
  rows = sum(len(table) for table in made.values())
  _report(output_dir, rows, manifest['dropped'])
  return manifest


def _fingerprint(files: JudgementFiles, vocabulary) -> dict[str, str]:
  inputs = files.fingerprint()
  if vocabulary is not None:
    inputs['vocabulary'] = Vocabulary.load(vocabulary).sha256
  return inputs


def _tables(dataset, files, columns, shares, seed, steps):
  """({name: table}, what the manifest says of them)."""
  is_nli = dataset == 'nli'
  read = judgements.read_nli if is_nli else judgements.read_preferences
  found = read(files, columns)
  steps.done('read', f'{files.describe()}: {len(found.first):,} judgements')
  linking = [found.first, found.second]
  if any(found.groups):
    linking.append([f'group: {group}' for group in found.groups])
  groups = group_splits.linked(linking)
  # By content: the smallest text, whatever the order of the rows.
  names = [''] * (int(groups.max()) + 1)
  for column in linking:
    for group, text in zip(groups.tolist(), column):
      names[group] = min(names[group] or text, text)
  splits = group_splits.split_groups(groups, names, shares, seed)
  steps.done('split', _shown(group_splits.counts(splits)))
  rows = (found, [f'g{group}' for group in groups.tolist()], splits)
  made = {'entailment': _entailment(*rows)} if is_nli else _pairs(*rows)
  facts = {
    'counts': {
      **{name: len(table) for name, table in made.items()},
      **_counts(found, groups, splits, is_nli),
    },
    'dropped': dict(found.dropped),
    'split_hash': group_splits.split_hash(linking, splits),
    'split_check': group_splits.check(linking, splits),
  }
  return made, facts


def _entailment(found, groups, splits) -> pa.Table:
  columns = {
    'item_id': groups,
    'premise': found.first,
    'hypothesis': found.second,
    'label': [int(label) for label in found.labels],
    'split': splits,
  }
  return pa.table(columns, schema=tables.SCHEMAS['entailment'])


def _pairs(found, groups, splits) -> dict[str, pa.Table]:
  """`pairs`, and `ties` if there are any."""
  shared = {
    'kind': ['appeal'] * len(found.first),
    'user_id': found.users,
    'item_id': groups,
  }
  is_tie = np.array(found.labels) == judgements.TIE
  made = {}
  for name, sides, kept in (
    ('pairs', ('chosen', 'rejected'), ~is_tie),
    ('ties', ('first', 'second'), is_tie),
  ):
    texts = dict(zip(sides, (found.first, found.second)))
    table = pa.table(
      {**shared, **texts, 'split': splits}, schema=tables.SCHEMAS[name]
    )
    if name == 'pairs' or kept.any():
      made[name] = table.filter(pa.array(kept))
  return made


def _counts(found, groups, splits, is_nli) -> dict[str, object]:
  counts: dict[str, object] = {
    'groups': int(groups.max()) + 1,
    'largest_group': int(np.bincount(groups).max()),
    'splits': dict(group_splits.counts(splits)),
  }
  if is_nli:
    entailed = zip(splits, found.labels)
    yes = collections.Counter(split for split, label in entailed if label)
    counts['entailed'] = dict(yes)
    limit = prompts.MAX_PLOT_WORDS
    counts[f'premises_over_{limit}_words'] = sum(
      len(premise.split()) > limit for premise in found.first
    )
  return counts


def _shown(counts: Mapping[str, int]) -> str:
  return ', '.join(f'{split} {count:,}' for split, count in counts.items())


def _report(output_dir: str | Path, rows: int, dropped: Mapping) -> None:
  print(f'{output_dir}: {rows:,} judgements')
  for reason, number in sorted(dropped.items()):
    print(f'  dropped {number:,}: {reason}')
  if not dropped:
    print('  nothing was dropped')
