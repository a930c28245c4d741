"""P4LM's SeqIO tasks over the tables that `make_data` writes.

A task reads rows as texts, tokenizes them with the data's SentencePiece model
and keeps the ids whose CF vectors fill the prompt's soft tokens. Before and
after, for `movielens_pitch`:

  inputs   'user: <extra_id_0> item: <extra_id_0> title: ... plot: ... pitch:'
  targets  'If you love a slow mystery, ...'
  user_id  '42'                 item_id  '7'
  ->
  inputs   int32 [P]  targets  int32 [L]  user_id, item_id unchanged
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow.compute as pc

from p4lm.data import prompts, tables
from p4lm.data.catalogue import Catalogue
from p4lm.data.judgements import TIE
from p4lm.data.vocabulary import EXTRA_IDS, PLACEHOLDER, Vocabulary

_VALIDATION_PERCENT = 5
_PREFIX = 'movielens_'
_LM = (
  'title_plot',
  'preferences',
  'pitch_plain',
  'item_plot',
  'user_preferences',
  'pitch',
  'pitch_text',
)
_IDS = ('user_id', 'item_id')
_PAIRS = ('appeal', 'personalization')
_LABELLED = ('nli', 'relevance')
# The label of a pair whose chosen text won.
_WON = 1.0

LM_SPLITS = ('train', 'validation')
# Judged texts of files have a test split too; those of the world do not.
REWARD_SPLITS = ('train', 'judge', 'validation', 'test')

# The kinds of CF vectors of each task's prompt, in order.
CF_KINDS = {
  'movielens_title_plot': (),
  'movielens_preferences': (),
  'movielens_pitch_plain': (),
  'movielens_item_plot': ('item',),
  'movielens_user_preferences': ('user',),
  'movielens_pitch': ('user', 'item'),
  'movielens_pitch_text': (),
  'movielens_nli': (),
  'movielens_appeal': (),
  'movielens_personalization': ('user', 'item'),
  'movielens_relevance': ('user', 'item'),
}
# `base` teaches a language model the words of all texts without any CF vector;
# `warm_start` then puts the vectors where the base read a title, or nothing.
MIXTURES = {
  'movielens_base': (
    'movielens_title_plot',
    'movielens_preferences',
    'movielens_pitch_plain',
  ),
  'movielens_warm_start': ('movielens_item_plot', 'movielens_user_preferences'),
}


def register(
  data_dir: str, vocabulary_path: str, tokens_per_vector: int = 1
) -> None:
  """Registers every task and mixture over the tables in `data_dir`.

  Again for another directory, it replaces them. Responses (`targets`) end with
  EOS, as SeqIO's users expect; CF vectors do not pass through SeqIO, which
  cannot pack them, but the ids that name them do.
  """
  import seqio  # Inside: a training job reads the names above without it.

  ours = Vocabulary.load(vocabulary_path)
  is_t5 = ours.placeholder == PLACEHOLDER
  vocabulary = seqio.SentencePieceVocabulary(
    vocabulary_path, extra_ids=EXTRA_IDS if is_t5 else 0
  )
  rows = _Rows(data_dir, tokens_per_vector)
  for name in CF_KINDS:
    kind = name.removeprefix(_PREFIX)
    seqio.TaskRegistry.remove(name)
    seqio.TaskRegistry.add(
      name,
      source=seqio.FunctionDataSource(
        functools.partial(_dataset, rows, kind),
        splits=LM_SPLITS if kind in _LM else REWARD_SPLITS,
      ),
      preprocessors=[
        functools.partial(_with_placeholder, placeholder=ours.placeholder),
        functools.partial(
          seqio.preprocessors.tokenize, copy_pretokenized=False
        ),
        functools.partial(_begun, bos_id=ours.bos_id),
        seqio.preprocessors.append_eos,
      ],
      output_features={
        text: seqio.Feature(vocabulary, add_eos=text != 'inputs')
        for text in _texts(kind)
      },
    )
  for name, members in MIXTURES.items():
    seqio.MixtureRegistry.remove(name)
    seqio.MixtureRegistry.add(
      name, list(members), default_rate=functools.partial(_rate, rows)
    )


def _with_placeholder(dataset, placeholder: str):
  """Writes soft tokens as the vocabulary does: Gemma has no sentinels."""
  if placeholder == PLACEHOLDER:
    return dataset
  import tensorflow as tf

  return dataset.map(
    lambda example: {
      name: tf.strings.regex_replace(value, PLACEHOLDER, placeholder)
      if value.dtype == tf.string and name not in _IDS
      else value
      for name, value in example.items()
    }
  )


def _begun(dataset, bos_id: int | None):
  """Prompts behind the id that begins a text, where there is one."""
  if bos_id is None:
    return dataset
  import tensorflow as tf

  return dataset.map(
    lambda example: {
      **example,
      'inputs': tf.concat([[bos_id], example['inputs']], axis=0),
    }
  )


def _texts(kind: str) -> tuple[str, ...]:
  """Names of the texts that are tokenized."""
  if kind in _PAIRS:
    return ('inputs', 'targets_chosen', 'targets_rejected')
  return ('inputs', 'targets')


def _rate(rows: _Rows, task) -> float:
  """Tasks are mixed in proportion to their examples."""
  return float(len(rows.of(task.name.removeprefix(_PREFIX), 'train')))


def _dataset(rows: _Rows, kind: str, split, shuffle_files, seed=None):
  """tf.data of one split: texts and ids, and a label where there is one."""
  del shuffle_files, seed  # Training shuffles globally, by index.
  import tensorflow as tf

  dtypes = dict.fromkeys((*_texts(kind), *_IDS), tf.string)
  if kind in _LABELLED + _PAIRS:
    dtypes['label'] = tf.float32
  examples = rows.of(kind, split)
  columns = {
    name: tf.constant(
      [row.get(name, '') for row in examples], dtype, [len(examples)]
    )
    for name, dtype in dtypes.items()
  }
  return tf.data.Dataset.from_tensor_slices(columns)


class _Rows:
  """The examples of each task as texts; a method is named for its task."""

  def __init__(self, data_dir: str, tokens_per_vector: int):
    self._data_dir = data_dir
    self._soft = {'tokens_per_vector': tokens_per_vector}

  @functools.cached_property
  def _catalogue(self) -> Catalogue:
    return Catalogue.load(self._data_dir)

  @functools.cache  # noqa: B019 - lives as long as the registered tasks
  def of(self, kind: str, split: str) -> list[dict]:
    """Examples of a task's split, each {feature: text or number}."""
    return list(getattr(self, kind)(split))

  def _ties(self, kind: str, split: str) -> list[dict]:
    """Ties as rows of pairs; a data directory may have none."""
    if not (Path(self._data_dir) / 'ties.parquet').exists():
      return []
    return [
      {**row, 'chosen': row['first'], 'rejected': row['second']}
      for row in self._read('ties', kind=kind, split=split)
    ]

  def _read(self, name: str, **equal: str) -> list[dict]:
    table = tables.read_table(self._data_dir, name)
    for column, value in equal.items():
      table = table.filter(pc.equal(table[column], value))
    return table.to_pylist()

  def item_plot(self, split: str) -> Iterator[dict]:
    prompt = prompts.plot_prompt(**self._soft)
    return self._plots(split, lambda item: prompt)

  def title_plot(self, split: str) -> Iterator[dict]:
    return self._plots(split, prompts.title_plot_prompt)

  def _plots(self, split: str, prompt_of) -> Iterator[dict]:
    for row in self._read('items'):
      if row['plot'] and _split_of(row['item_id']) == split:
        plot = prompts.clean_text(row['plot'])
        yield {
          'inputs': prompt_of(row).text,
          'targets': prompts.shorten(plot, prompts.MAX_PLOT_WORDS),
          'item_id': row['item_id'],
        }

  def user_preferences(self, split: str) -> Iterator[dict]:
    return self._bullets(split, prompts.preferences_prompt(**self._soft))

  def preferences(self, split: str) -> Iterator[dict]:
    return self._bullets(split, prompts.preferences_plain_prompt())

  def _bullets(self, split: str, prompt: prompts.Prompt) -> Iterator[dict]:
    for row in self._read('users'):
      if row['preferences'] and _split_of(row['user_id']) == split:
        yield {
          'inputs': prompt.text,
          'targets': prompts.preferences_text(row['preferences']),
          'user_id': row['user_id'],
        }

  def pitch_plain(self, split: str) -> Iterator[dict]:
    return self._pitches(
      split, lambda item, row: prompts.pitch_plain_prompt(item)
    )

  def pitch(self, split: str) -> Iterator[dict]:
    return self._pitches(
      split, lambda item, row: prompts.pitch_prompt(item, **self._soft)
    )

  def pitch_text(self, split: str) -> Iterator[dict]:
    bullets = self._catalogue.preferences
    return self._pitches(
      split,
      lambda item, row: prompts.pitch_text_prompt(
        item, bullets(row['user_id'])
      ),
    )

  def _pitches(self, split: str, prompt_of) -> Iterator[dict]:
    for row in self._read('texts', kind='pitch', split=split):
      item = self._catalogue.item(row['item_id'])
      yield {
        'inputs': prompt_of(item, row).text,
        'targets': prompts.clean_text(row['text']),
        **_ids(row),
      }

  def nli(self, split: str) -> Iterator[dict]:
    for row in self._read('entailment', split=split):
      yield {
        'inputs': prompts.nli_prompt(row['premise']).text,
        'targets': prompts.clean_text(row['hypothesis']),
        'label': float(row['label']),
        'item_id': row['item_id'],
      }

  def appeal(self, split: str) -> Iterator[dict]:
    inputs = prompts.appeal_prompt().text
    for row in self._read('pairs', kind='appeal', split=split):
      yield {'inputs': inputs, 'label': _WON, **_sides(row), **_ids(row)}
    for row in self._ties('appeal', split):
      yield {'inputs': inputs, 'label': TIE, **_sides(row), **_ids(row)}

  def personalization(self, split: str) -> Iterator[dict]:
    for row in self._read('pairs', kind='personalization', split=split):
      item = self._catalogue.item(row['item_id'])
      yield {
        'inputs': prompts.personalization_prompt(item, **self._soft).text,
        'label': _WON,
        **_sides(row),
        **_ids(row),
      }

  def relevance(self, split: str) -> Iterator[dict]:
    for row in self._read('relevance', split=split):
      item = self._catalogue.item(row['item_id'])
      yield {
        'inputs': prompts.relevance_prompt(item, **self._soft).text,
        'targets': prompts.clean_text(row['text']),
        'label': float(row['target']),
        **_ids(row),
      }


def _sides(row: dict) -> dict[str, str]:
  return {
    'targets_chosen': prompts.clean_text(row['chosen']),
    'targets_rejected': prompts.clean_text(row['rejected']),
  }


def _ids(row: dict) -> dict[str, str]:
  return {'user_id': row['user_id'] or '', 'item_id': row['item_id'] or ''}


def _split_of(id_: str) -> str:
  """A fixed 5% of ids by their hash are for validation."""
  percent = zlib.crc32(id_.encode()) % 100
  return 'validation' if percent < _VALIDATION_PERCENT else 'train'
