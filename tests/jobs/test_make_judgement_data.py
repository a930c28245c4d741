"""make_data on files of judged texts: tables, splits, vocabulary, errors."""

import json

import pytest

from p4lm.data import tables
from p4lm.data.judgements import PreferenceColumns
from p4lm.data.vocabulary import Vocabulary
from p4lm.errors import UserError
from p4lm.jobs.make_data import make_data
from p4lm.runs.judgement_data import JudgementConfig

UKP = JudgementConfig(
  preferences=PreferenceColumns(group='topic', group_pattern='(.*)_')
)


def made(tmp_path, dataset, path, **options):
  make_data(
    output_dir=str(tmp_path / 'out'),
    dataset=dataset,
    data_dir=str(path),
    vocabulary_size=1500,
    **options,
  )
  return tmp_path / 'out'


@pytest.mark.parametrize(
  ('name', 'rows', 'dropped', 'entailed'),
  [
    # Counted in the files by hand (with `sort | uniq -d`).
    ('snli_dev', 9842, 2, 3329),
    ('sick', 9927, 85, 2857),
    ('rte_train', 2490, 2, 1249),
  ],
)
def test_published_nli_files(data_dir, tmp_path, name, rows, dropped, entailed):
  out = made(tmp_path, 'nli', data_dir / 'nli' / f'{name}.jsonl')
  table = tables.read_table(out, 'entailment').to_pylist()
  manifest = tables.read_manifest(out)
  assert manifest['dropped'] == {'repeated pair': dropped}
  assert len(table) == rows - dropped == manifest['counts']['entailment']
  positive = sum(row['label'] for row in table)
  assert entailed - dropped <= positive <= entailed
  counts = manifest['counts']['splits']
  assert abs(counts['test'] / len(table) - 0.2) < 0.005
  assert abs(counts['validation'] / len(table) - 0.1) < 0.005
  texts = {split: set() for split in counts}
  for row in table:
    texts[row['split']] |= {row['premise'], row['hypothesis']}
  assert not texts['train'] & texts['test']
  assert not texts['train'] & texts['validation']
  assert not texts['validation'] & texts['test']


def test_arguments_are_divided_by_debate(data_dir, tmp_path):
  path = data_dir / 'preferences' / 'ukpconvarg1_strict.jsonl'
  shares = {'test_share': 0.25, 'validation_share': 0.15}
  out = made(tmp_path, 'preferences', path, judgements=UKP, **shares)
  table = tables.read_table(out, 'pairs').to_pylist()
  assert len(table) == 6094
  debate_of = {}
  for line in path.read_text().splitlines():
    row = json.loads(line)
    for name in ('argument1', 'argument2'):
      debate_of[row[name]] = row['topic'].rpartition('_')[0]
  debates = {}
  for row in table:
    # The tables hold cleaned texts; most of them are the file's own.
    debates.setdefault(debate_of.get(row['chosen']), set()).add(row['split'])
  debates.pop(None, None)
  assert len(debates) == 8
  assert all(len(splits) == 1 for splits in debates.values())
  assert {next(iter(s)) for s in debates.values()} == {
    'train', 'validation', 'test',
  }  # fmt: skip


ROWS = [
  {
    'premise': f'A man walks {i} dogs.',
    'hypothesis': f'{i} animals are {word}.',
    'label': label,
  }
  for i in range(30)
  for word, label in (('out', 'entailment'), ('asleep', 'contradiction'))
]


@pytest.fixture(name='file')
def _file(tmp_path):
  path = tmp_path / 'nli.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in ROWS))
  return path


def test_the_order_of_lines_changes_no_split(file, tmp_path):
  out = made(tmp_path, 'nli', file)
  mixed = tmp_path / 'mixed.jsonl'
  mixed.write_text(''.join(json.dumps(row) + '\n' for row in ROWS[::-1]))
  again = made(tmp_path / 'again', 'nli', mixed)
  first, second = tables.read_manifest(out), tables.read_manifest(again)
  assert first['split_hash'] == second['split_hash']
  assert first['counts']['groups'] == 30
  assert first['split_check'].startswith('none of')


def test_again_it_does_nothing_and_another_one_is_kept(file, tmp_path, capsys):
  out = made(tmp_path, 'nli', file)
  before = {p: p.stat().st_mtime_ns for p in out.rglob('*')}
  made(tmp_path, 'nli', file)
  assert 'already made' in capsys.readouterr().out
  with pytest.raises(UserError, match='seed: 0 there, 1 now'):
    made(tmp_path, 'nli', file, seed=1)
  labels = JudgementConfig(preferences=PreferenceColumns(), judge_share=0.1)
  with pytest.raises(UserError, match='shares.judge: 0.0 there, 0.1 now'):
    made(tmp_path, 'nli', file, judgements=labels)
  assert before == {p: p.stat().st_mtime_ns for p in out.rglob('*')}


def test_a_given_vocabulary_is_copied(file, tmp_path, data_dir):
  t5 = data_dir / 'tokenizers' / 't5' / 'spiece.model'
  out = made(tmp_path, 'nli', file, vocabulary=str(t5))
  assert Vocabulary.load(out / 'vocabulary.model').size == 32100


def test_bad_input_leaves_nothing(file, tmp_path):
  with pytest.raises(UserError, match='needs DATA_DIR'):
    make_data(output_dir=str(tmp_path / 'out'), dataset='nli')
  file.write_text(file.read_text() + '{"premise": "a", "hypothesis": "b"\n')
  with pytest.raises(UserError, match='line 61 is no JSON'):
    made(tmp_path, 'nli', file)
  assert not (tmp_path / 'out').exists()
