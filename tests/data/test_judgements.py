"""NLI and preference files: labels by an explicit map, nothing lost unseen."""

import gzip
import json

import pytest

from p4lm.data.judgements import (
  JudgementFiles,
  NLIColumns,
  PreferenceColumns,
  read_nli,
  read_preferences,
)
from p4lm.errors import UserError


def written(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return JudgementFiles(path)


def nli(premise, hypothesis, label):
  return {'premise': premise, 'hypothesis': hypothesis, 'label': label}


def preference(first, second, winner, **more):
  return {'argument1': first, 'argument2': second, 'winner': winner, **more}


def test_labels_follow_the_map(tmp_path):
  files = written(
    tmp_path / 'a.jsonl',
    [
      nli('A dog runs.', 'An animal moves.', 'entailment'),
      nli('A dog runs.', 'A cat runs.', 'contradiction'),
      nli('A dog runs.', 'A dog is glad.', 'neutral'),
    ],
  )
  found = read_nli(files, NLIColumns())
  assert found.first == ['A dog runs.'] * 3
  assert found.second[1] == 'A cat runs.'
  assert found.labels == [1.0, 0.0, 0.0]
  assert found.dropped == {}
  lenient = read_nli(
    files,
    NLIColumns(labels={'entailment': 1, 'neutral': 1, 'contradiction': 0}),
  )
  assert lenient.labels == [1.0, 0.0, 1.0]


def test_a_file_may_say_who_judged(tmp_path):
  files = written(
    tmp_path / 'a.jsonl',
    [
      preference('one', 'two', 'a2', rater=7),
      preference('one', 'two', 'a1', rater='Ann '),
      preference('one', 'three', 'tie'),
    ],
  )
  found = read_preferences(files, PreferenceColumns(user='rater'))
  assert found.users == ['7', 'Ann', '']
  assert found.first == ['two', 'one', 'one']
  assert read_preferences(files, PreferenceColumns()).users == [''] * 3


def test_keys_and_labels_of_published_files(tmp_path):
  """SNLI says gold_label and '-', and others number their labels."""
  snli = written(
    tmp_path / 'snli.jsonl',
    [
      {'gold_label': '-', 'sentence1': 'a', 'sentence2': 'b', 'label': 'x'},
      {'gold_label': 'entailment', 'sentence1': 'c', 'sentence2': 'd'},
    ],
  )
  found = read_nli(snli, NLIColumns())
  assert (found.first, found.second) == (['c'], ['d'])
  assert found.dropped == {'no gold label': 1}
  numbered = written(
    tmp_path / 'numbered.jsonl',
    [nli('a', 'b', 0), nli('c', 'd', 2), nli('e', 'f', -1)],
  )
  found = read_nli(numbered, NLIColumns(labels={'0': 1, '1': 0, '2': 0}))
  assert found.labels == [1.0, 0.0] and found.dropped == {'no gold label': 1}


def test_what_is_dropped_is_counted(tmp_path):
  files = written(
    tmp_path / 'a.jsonl',
    [
      nli('one', 'two', 'entailment'),
      nli('one', ' two <b></b>', 'entailment'),
      nli('one', 'three', 'entailment'),
      nli('one', 'three', 'neutral'),
      nli('one', '', 'neutral'),
      nli('one', 'four', None),
      {'premise': 'one', 'hypothesis': 'five'},
      nli('one', 'six', ''),
    ],
  )
  found = read_nli(files, NLIColumns())
  assert (found.second, found.labels) == (['two'], [1.0])
  assert found.dropped == {
    'repeated pair': 1,
    'pair with two labels': 2,
    'empty premise or hypothesis': 1,
    'no gold label': 3,
  }
  assert len(found.first) + sum(found.dropped.values()) == 8


def test_the_winner_comes_first(tmp_path):
  files = written(
    tmp_path / 'a.jsonl',
    [
      preference('x', 'y', 'a1', topic='tv_yes'),
      preference('x', 'z', 'a2', topic='tv_no'),
      preference('x', 'z', 'tie', topic='tv_no'),
      preference('x', ' x', 'a2', topic='tv_no'),
      preference('x', 'z', None, topic='tv_no'),
      preference('', 'z', 'a1', topic='tv_no'),
    ],
  )
  columns = PreferenceColumns(group='topic', group_pattern='(.*)_')
  found = read_preferences(files, columns)
  assert found.first == ['x', 'z', 'x'] and found.second == ['y', 'x', 'z']
  assert found.labels == [1.0, 1.0, 0.5]
  assert found.groups == ['tv'] * 3
  assert found.dropped == {
    'a text against itself': 1,
    'no winner': 1,
    'empty text': 1,
  }


def test_files_whose_first_text_always_won(tmp_path):
  files = written(tmp_path / 'a.jsonl', [{'chosen': 'x', 'rejected': 'y'}])
  found = read_preferences(files, PreferenceColumns(winner=()))
  assert (found.first, found.second) == (['x'], ['y'])
  with pytest.raises(UserError, match=r'no winner: 1.*where \(\) says'):
    read_preferences(files, PreferenceColumns())


def test_a_zero_can_be_a_verdict(tmp_path):
  files = written(tmp_path / 'a.jsonl', [preference('x', 'y', 0)])
  columns = PreferenceColumns(winners={'0': 'second'})
  assert read_preferences(files, columns).first == ['y']


@pytest.mark.parametrize(
  ('row', 'message'),
  [
    (nli('a', 'b', 'maybe'), r"line 2: the label 'maybe' is not in NLIColumns"),
    (nli('a', 'b', True), 'line 2: label must be a label'),
    (nli('a', 7, 'neutral'), 'line 2: hypothesis must be a string, got 7'),
    ({'premise': 'a', 'label': 'neutral'}, 'line 2: key .hypothesis. or'),
    (['a', 'b'], 'line 2: expected a JSON object'),
  ],
)
def test_a_bad_line_is_named(tmp_path, row, message):
  files = written(tmp_path / 'a.jsonl', [nli('a', 'c', 'neutral'), row])
  with pytest.raises(UserError, match=message):
    read_nli(files, NLIColumns())


def test_bad_arguments_are_named(tmp_path):
  files = written(tmp_path / 'a.jsonl', [preference('x', 'y', 'a1', topic='t')])
  for pattern, message in (('(', 'no regular'), ('.*', 'parenthesis')):
    with pytest.raises(UserError, match=message):
      read_preferences(
        files, PreferenceColumns(group='topic', group_pattern=pattern)
      )
  with pytest.raises(UserError, match="line 1: the group 't' does not match"):
    read_preferences(
      files, PreferenceColumns(group='topic', group_pattern='(.*)_')
    )
  with pytest.raises(UserError, match='NLIColumns.labels maps each label to 1'):
    NLIColumns(labels={'entailment': 2})
  with pytest.raises(UserError, match="'first', 'second' or 'tie'"):
    PreferenceColumns(winners={'a1': 'third'})
  with pytest.raises(UserError, match='does not exist'):
    JudgementFiles(tmp_path / 'nowhere')
  (tmp_path / 'empty').mkdir()
  with pytest.raises(UserError, match='holds no file'):
    JudgementFiles(tmp_path / 'empty')


def test_a_directory_of_files_plain_and_gzip(tmp_path):
  written(tmp_path / 'a.jsonl', [nli('a', 'b', 'neutral')])
  row = json.dumps(nli('c', 'd', 'entailment')) + '\n'
  (tmp_path / 'b.jsonl.gz').write_bytes(gzip.compress(row.encode()))
  (tmp_path / 'README').write_text('of another kind')
  files = JudgementFiles(tmp_path)
  assert read_nli(files, NLIColumns()).first == ['a', 'c']
  assert set(files.fingerprint()) == {'a.jsonl', 'b.jsonl.gz'}
