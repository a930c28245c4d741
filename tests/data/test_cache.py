"""SeqIO tasks, run once through the real process that caches them."""

import itertools
import json
import shutil
import subprocess
import sys
import types

import numpy as np
import pyarrow as pa
import pytest
import sentencepiece
import seqio_probe

from p4lm.data import cache, loader, prompts, records, tables
from p4lm.data.features import CFFeatures, LMConverter
from p4lm.data.vocabulary import Vocabulary
from p4lm.errors import UserError
from tasks import movielens

PLOT = 'A tired detective follows a thief through a <i>quiet</i> harbour.'
LONG_PLOT = ' '.join(f'word{i}' for i in range(prompts.MAX_PLOT_WORDS + 30))
ITEMS = [
  (f'i{n}', f'Harbour {n}, The (1994)', LONG_PLOT if n == 3 else PLOT)
  for n in range(40)
] + [('bare', 'No Plot (2001)', '')]
USERS = [
  (f'u{n}', ['likes slow films.', f'avoids {n} songs']) for n in range(9)
]


def write_data(directory):
  """A data directory with a few rows in every table that tasks read."""
  pair = {'user_id': 'u1', 'item_id': 'i2'}
  texts = [
    {'kind': 'pitch', **pair, 'text': 'A slow one, for you.', 'split': 'train'},
    {'kind': 'pitch', **pair, 'text': 'Held out.', 'split': 'validation'},
    {'kind': 'other', **pair, 'text': 'Not a pitch.', 'split': 'train'},
  ]
  pairs = [
    {
      'kind': kind,
      **pair,
      'chosen': f'{split} good',
      'rejected': 'bad',
      'split': split,
    }
    for kind in ('appeal', 'personalization')
    for split in movielens.REWARD_SPLITS
  ]
  entailment = [
    {
      'item_id': 'i2',
      'premise': PLOT,
      'hypothesis': f'h{n}',
      'label': n % 2,
      'split': movielens.REWARD_SPLITS[n % 3],
    }
    for n in range(6)
  ]
  relevance = [
    {**pair, 'text': 'A slow one.', 'target': -0.25, 'split': 'train'},
    {**pair, 'text': 'A fast one.', 'target': 0.5, 'split': 'judge'},
  ]
  items = [
    {
      'item_id': i,
      'title': title,
      'year': 1994,
      'genres': [],
      'tags': [],
      'keywords': [],
      'plot': plot,
    }
    for i, title, plot in ITEMS
  ]
  users = [
    {'user_id': u, 'preferences': bullets, 'num_train_ratings': 3}
    for u, bullets in USERS
  ]
  rows = {
    'items': items,
    'users': users,
    'texts': texts,
    'pairs': pairs,
    'entailment': entailment,
    'relevance': relevance,
  }
  made = {
    name: pa.Table.from_pylist(value, schema=tables.SCHEMAS[name])
    for name, value in rows.items()
  }
  tables.write_tables(directory, made, {'dataset': 'test'})
  corpus = [f'{i[1]} {i[2]}' for i in ITEMS] + seqio_probe.TEXTS
  Vocabulary.train(corpus, directory / 'vocabulary.model', size=500)


@pytest.fixture(scope='module')
def cached(tmp_path_factory):
  """Every task of the module and the probe's, cached by one process."""
  directory = tmp_path_factory.mktemp('cached')
  write_data(directory / 'data')
  partial = directory / 'tasks' / '.partial-of-a-killed-process'
  partial.mkdir(parents=True)
  cache.cache_tasks(
    'seqio_probe',
    [*movielens.CF_KINDS, 'probe'],
    directory / 'data',
    directory / 'tasks',
    tokens_per_vector=2,
  )
  assert not partial.exists()
  return directory


@pytest.fixture(scope='module')
def cached_for_gemma(cached):
  """Two tasks in a vocabulary like Gemma's, and that vocabulary."""
  model = cached / 'tokenizer.model'
  with model.open('wb') as file:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter([f'{i[1]} {i[2]}' for i in ITEMS]),
      model_writer=file,
      vocab_size=300,
      hard_vocab_limit=False,
      pad_id=0,
      eos_id=1,
      bos_id=2,
      unk_id=3,
      user_defined_symbols=['<unused0>', '<unused1>'],
      add_dummy_prefix=False,
      num_threads=1,
      minloglevel=3,
    )
  cache.cache_tasks(
    'tasks.movielens',
    ['movielens_pitch', 'movielens_appeal'],
    cached / 'data',
    cached / 'gemma' / 'tasks',
    vocabulary_path=model,
    tokens_per_vector=2,
  )
  return cached / 'gemma', Vocabulary.load(model)


@pytest.fixture(scope='module')
def vocabulary(cached):
  return Vocabulary.load(cached / 'data' / 'vocabulary.model')


def read(cached, task, split):
  from array_record.python import array_record_module

  path = cached / 'tasks' / task / f'{split}.array_record'
  reader = array_record_module.ArrayRecordReader(str(path))
  found = [records.decode_record(r) for r in reader.read_all()]
  reader.close()
  return found


def check(vocabulary, example, **expected):
  """Texts are compared as the ids that our own vocabulary gives."""
  assert example.keys() == expected.keys() | {'user_id', 'item_id'} | (
    {'label'} & example.keys()
  )
  for name, value in expected.items():
    if name in ('user_id', 'item_id', 'label'):
      assert example[name] == value
    else:
      assert example[name].dtype == np.int32
      assert example[name].tolist() == vocabulary.encode(value)


def test_seqio_and_our_vocabulary_agree_on_every_text(cached, vocabulary):
  found = json.loads((cached / 'data' / 'probe.json').read_text())
  assert found['soft'] == vocabulary.soft_token_id
  for text, ids, again in zip(
    seqio_probe.TEXTS, found['encoded'], found['decoded']
  ):
    assert vocabulary.encode(text) == ids, text
    assert vocabulary.decode(ids) == again, text
  for ids, text in zip(seqio_probe.IDS, found['decoded_ids']):
    assert vocabulary.decode(ids) == text, ids


def test_tensorflows_tokenizer_agrees_too(cached, vocabulary):
  found = read(cached, 'probe', 'train')
  assert [example['inputs'].tolist() for example in found] == [
    vocabulary.encode(text) for text in seqio_probe.TEXTS
  ]


def test_a_pitch_has_soft_tokens_first_and_no_eos(cached, vocabulary):
  (example,) = read(cached, 'movielens_pitch', 'train')
  item = {'title': ITEMS[2][1], 'plot': PLOT}
  check(
    vocabulary,
    example,
    inputs=prompts.pitch_prompt(item, 2).text,
    targets='A slow one, for you.',
    user_id='u1',
    item_id='i2',
  )
  assert example['inputs'].tolist().count(vocabulary.soft_token_id) == 4
  (held_out,) = read(cached, 'movielens_pitch', 'validation')
  assert vocabulary.decode(held_out['targets']) == 'Held out.'


def test_gemma_has_its_own_soft_token_and_beginning(cached_for_gemma):
  cached, vocabulary = cached_for_gemma
  (example,) = read(cached, 'movielens_pitch', 'train')
  item = {'title': ITEMS[2][1], 'plot': PLOT}
  inputs, targets = (example[name].tolist() for name in ('inputs', 'targets'))
  assert inputs == vocabulary.encode_prompt(prompts.pitch_prompt(item, 2).text)
  assert inputs[0] == vocabulary.bos_id == 2
  assert inputs.count(vocabulary.soft_token_id) == 4
  assert targets == vocabulary.encode('A slow one, for you.')
  (pair,) = read(cached, 'movielens_appeal', 'train')
  assert pair['inputs'].tolist() == vocabulary.encode_prompt('appeal:')
  assert pair['targets_chosen'].tolist() == vocabulary.encode('train good')


def test_the_text_pitch_has_the_bullets_instead(cached, vocabulary):
  (example,) = read(cached, 'movielens_pitch_text', 'train')
  check(
    vocabulary,
    example,
    inputs=(
      'likes: likes slow films; avoids 1 songs title: The Harbour 2 (1994) '
      'plot: A tired detective follows a thief through a quiet harbour. pitch:'
    ),
    targets='A slow one, for you.',
  )


def test_plots_are_split_by_item_and_cut(cached, vocabulary):
  train = read(cached, 'movielens_item_plot', 'train')
  validation = read(cached, 'movielens_item_plot', 'validation')
  found = {example['item_id']: example for example in train + validation}
  assert len(found) == len(train) + len(validation) == 40
  assert len(train) > 30 and validation
  check(
    vocabulary,
    found['i5'],
    inputs='item: <extra_id_0> <extra_id_0> plot:',
    targets='A tired detective follows a thief through a quiet harbour.',
    user_id='',
    item_id='i5',
  )
  words = vocabulary.decode(found['i3']['targets']).split()
  assert words == LONG_PLOT.split()[: prompts.MAX_PLOT_WORDS]


def test_preferences_are_the_bullets_in_a_row(cached, vocabulary):
  found = read(cached, 'movielens_user_preferences', 'train')
  example = next(e for e in found if e['user_id'] == 'u7')
  check(
    vocabulary,
    example,
    inputs='user: <extra_id_0> <extra_id_0> likes:',
    targets='likes slow films; avoids 7 songs',
  )


def test_the_base_reads_the_same_texts_without_vectors(cached, vocabulary):
  (example,) = read(cached, 'movielens_pitch_plain', 'train')
  item = {'title': ITEMS[2][1], 'plot': PLOT}
  check(
    vocabulary,
    example,
    inputs=prompts.pitch_plain_prompt(item).text,
    targets='A slow one, for you.',
  )
  for plain, warm, starts in (
    ('title_plot', 'item_plot', 'item: The Harbour'),
    ('preferences', 'user_preferences', 'user: likes:'),
  ):
    plain, warm = (
      read(cached, f'movielens_{task}', 'train') for task in (plain, warm)
    )
    for one, other in zip(plain, warm, strict=True):
      assert vocabulary.decode(one['inputs']).startswith(starts)
      np.testing.assert_array_equal(one['targets'], other['targets'])


def test_pairs_and_labels(cached, vocabulary):
  for split in movielens.REWARD_SPLITS:
    (example,) = read(cached, 'movielens_appeal', split)
    check(
      vocabulary,
      example,
      inputs='appeal:',
      targets_chosen=f'{split} good',
      targets_rejected='bad',
      label=1.0,
    )
    (example,) = read(cached, 'movielens_personalization', split)
    soft = 'user: <extra_id_0> <extra_id_0> item: <extra_id_0> <extra_id_0>'
    plot = prompts.clean_text(PLOT)
    check(
      vocabulary,
      example,
      inputs=f'{soft} title: The Harbour 2 (1994) plot: {plot} pitch:',
      targets_chosen=f'{split} good',
      targets_rejected='bad',
      label=1.0,
      user_id='u1',
      item_id='i2',
    )
  claims = (('h0', 0.0), ('h3', 1.0))
  found = read(cached, 'movielens_nli', 'train')
  for example, (claim, label) in zip(found, claims, strict=True):
    premise = prompts.nli_prompt(PLOT).text
    check(vocabulary, example, inputs=premise, targets=claim, label=label)
  (example,) = read(cached, 'movielens_relevance', 'train')
  check(
    vocabulary,
    example,
    inputs=f'{soft} title: The Harbour 2 (1994) plot: {plot} pitch:',
    targets='A slow one.',
    label=-0.25,
  )
  assert read(cached, 'movielens_relevance', 'validation') == []


def test_info_counts_and_measures(cached, vocabulary):
  info = json.loads(
    (cached / 'tasks' / 'movielens_pitch' / 'info.json').read_text()
  )
  assert info['num_examples'] == {'train': 1, 'validation': 1}
  assert info['cf_kinds'] == ['user', 'item']
  lengths = [
    len(vocabulary.encode(t)) for t in ('A slow one, for you.', 'Held out.')
  ]
  assert info['lengths']['targets']['max'] == max(lengths)
  assert info['lengths']['targets']['mean'] == pytest.approx(
    np.mean(lengths), abs=0.05
  )


def test_seqio_users_get_eos_and_a_mixture_by_size(cached):
  found = json.loads((cached / 'data' / 'probe.json').read_text())
  assert found['eos'] == {
    'pitch': {'inputs': False, 'targets': True},
    'appeal': {
      'inputs': False,
      'targets_chosen': True,
      'targets_rejected': True,
    },
  }
  plots = len(read(cached, 'movielens_item_plot', 'train'))
  users = len(read(cached, 'movielens_user_preferences', 'train'))
  assert found['rates'] == {
    'movielens_item_plot': plots,
    'movielens_user_preferences': users,
  }
  assert len(found['mixed']) == 3


def test_the_loader_reads_what_was_cached(cached, vocabulary):
  ready = cache.ensure_cached(
    'seqio_probe',
    'movielens_warm_start',
    cached / 'data',
    cached / 'tasks',
    tokens_per_vector=2,
  )
  assert ready.cf_kinds == ('item', 'user')
  assert set(ready.tasks) == {
    'movielens_item_plot',
    'movielens_user_preferences',
  }
  vectors = {'user': np.ones(3), 'item': np.full(3, 2.0)}
  cf = CFFeatures(lambda kind, id_: vectors[kind] * len(id_), 3)
  converter = LMConverter(8, 100, vocabulary.eos_id, cf)
  size = sum(len(read(cached, task, 'train')) for task in ready.tasks)
  (batch,) = itertools.islice(
    loader.load_batches(
      ready.directory, ready.tasks, 'train', converter, size, seed=0
    ),
    1,
  )
  kinds = batch['cf_kind_ids'][:, 0]
  assert kinds.sum() == len(read(cached, 'movielens_item_plot', 'train'))
  # User ids are two characters long, as the items below ten.
  assert (batch['cf_embeddings'][kinds == 0] == 2.0).all()
  soft = vocabulary.soft_token_id
  assert ((batch['prompt_tokens'] == soft).sum(axis=1) == 2).all()


@pytest.fixture
def processes(monkeypatch):
  """The requests for which a process would have been started."""
  started = []

  def run(command, **options):
    started.append(json.loads(command[-1]))
    return types.SimpleNamespace(returncode=0)

  monkeypatch.setattr(subprocess, 'run', run)
  return started


def ask(cached, task='movielens_pitch', **options):
  options = {'tokens_per_vector': 2, **options}
  data = options.pop('data', cached / 'data')
  cache.cache_tasks('seqio_probe', [task], data, cached / 'tasks', **options)


def test_nothing_is_done_again(cached, processes, capsys):
  ask(cached)
  ask(cached, 'movielens_warm_start')
  assert processes == []
  assert capsys.readouterr().out == ''


def test_other_tables_vocabulary_or_prompts_are_cached_again(
  cached, processes, tmp_path, capsys
):
  ask(cached, tokens_per_vector=1)
  assert processes[-1]['tasks'] == ['movielens_pitch']
  assert 'caching 1 SeqIO task' in capsys.readouterr().out

  Vocabulary.train(['other words'], tmp_path / 'other.model', size=300)
  ask(cached, vocabulary_path=tmp_path / 'other.model')
  assert len(processes) == 2

  data = shutil.copytree(cached / 'data', tmp_path / 'data')
  ask(cached, data=data)
  assert len(processes) == 2, 'a copy of the data is the same data'
  users = tables.read_table(data, 'users').slice(1)
  tables.save_tables(data, {'users': users})
  ask(cached, data=data)
  assert len(processes) == 3


def test_a_task_that_was_cut_off_is_cached_again(cached, processes, tmp_path):
  shutil.copytree(cached / 'tasks', tmp_path / 'tasks')
  info = tmp_path / 'tasks' / 'movielens_pitch' / 'info.json'
  info.write_text(info.read_text()[:20])
  cache.cache_tasks(
    'seqio_probe',
    list(movielens.CF_KINDS),
    cached / 'data',
    tmp_path / 'tasks',
    tokens_per_vector=2,
  )
  assert [request['tasks'] for request in processes] == [['movielens_pitch']]


def test_a_process_that_fails_says_why(cached, monkeypatch):
  def run(command, *, stderr, **options):
    stderr.write('\n'.join(f'line {n}' for n in range(50)) + '\nno space left')
    return types.SimpleNamespace(returncode=3)

  monkeypatch.setattr(subprocess, 'run', run)
  with pytest.raises(UserError) as error:
    ask(cached, tokens_per_vector=3)
  message = str(error.value)
  assert 'caching movielens_pitch failed (exit status 3)' in message
  assert message.endswith('line 49\nno space left')
  assert 'line 30' not in message


def test_unknown_names_are_refused_with_the_nearest(cached, tmp_path):
  with pytest.raises(UserError, match="'movielens_pich'; did you mean 'movie"):
    ask(cached, 'movielens_pich')
  with pytest.raises(UserError, match="TASK_MODULE 'tasks.absent'"):
    cache.cache_tasks('tasks.absent', ['x'], cached / 'data', tmp_path)
  with pytest.raises(UserError, match="'p4lm.data.prompts' has no CF_KINDS"):
    cache.cache_tasks('p4lm.data.prompts', ['x'], cached / 'data', tmp_path)


def test_missing_data_is_named(cached, tmp_path):
  with pytest.raises(UserError, match='manifest.json'):
    ask(cached, data=tmp_path)
  with pytest.raises(UserError, match='vocabulary .*absent.model'):
    ask(cached, vocabulary_path=tmp_path / 'absent.model')
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='task cache .* cannot be written'):
    cache.cache_tasks(
      'seqio_probe', ['probe'], cached / 'data', tmp_path / 'file' / 'tasks'
    )


def test_no_process_of_training_loads_tensorflow():
  code = (
    'import sys; from p4lm.data import cache, loader, vocabulary; '
    'import tasks.movielens; '
    'print([m for m in ("tensorflow", "seqio") if m in sys.modules])'
  )
  result = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert result.stdout.strip() == '[]'


def test_a_task_module_that_loads_tensorflow_is_refused(tmp_path, monkeypatch):
  (tmp_path / 'eager_tasks.py').write_text(
    'import sys, types\n'
    'sys.modules["tensorflow"] = types.ModuleType("tensorflow")\n'
    'CF_KINDS, MIXTURES = {"x": ()}, {}\n'
    'def register(*arguments): pass\n'
  )
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.delitem(sys.modules, 'tensorflow', raising=False)
  with pytest.raises(UserError, match='import seqio inside its register'):
    cache.cache_tasks('eager_tasks', ['x'], tmp_path, tmp_path / 'tasks')
  sys.modules.pop('tensorflow')  # The stand-in, which others must not see.
