"""Files that runs share: answers, samples, orders, and who is whose other."""

import json

import numpy as np
import pytest

from p4lm.data.order import epoch_rows
from p4lm.errors import UserError
from p4lm.runs.jsonl import AnswerFile, read_requests
from p4lm.runs.sample_log import SampleLog
from p4lm.runs.system_texts import other_users


@pytest.mark.parametrize(
  'content, message',
  [
    ('{"custom_id": 1}\nnot json\n', 'line 2: not JSON'),
    ('{"prompt": "x"}\n', 'line 1: a request is a JSON object with a custom'),
    ('[1]\n', 'line 1: a request is a JSON object'),
    ('{"custom_id": 1}\n\n{"custom_id": "1"}\n', "line 3: custom_id '1' was"),
    ('', 'has no requests'),
  ],
)
def test_a_bad_request_file_is_refused_by_line(tmp_path, content, message):
  path = tmp_path / 'requests.jsonl'
  path.write_text(content)
  with pytest.raises(UserError, match=message):
    read_requests(path)


def test_a_missing_request_file_is_named(tmp_path):
  with pytest.raises(UserError, match='nowhere.jsonl'):
    read_requests(tmp_path / 'nowhere.jsonl')


def test_answers_go_on_after_a_cut_line(tmp_path):
  path = tmp_path / 'outputs.jsonl'
  requests = [{'custom_id': id_} for id_ in 'abc']
  path.write_text('{"custom_id": "a"}\n{"custom_id": "b", "te')
  answers = AnswerFile(path, requests)
  assert answers.count == 1
  answers.append([{'custom_id': 'b'}, {'custom_id': 'c'}])
  ids = [
    json.loads(line)['custom_id'] for line in path.read_text().splitlines()
  ]
  assert ids == ['a', 'b', 'c']
  assert AnswerFile(path, requests).count == 3


def test_answers_to_other_requests_are_left_alone(tmp_path):
  path = tmp_path / 'outputs.jsonl'
  path.write_text('{"custom_id": "x"}\n')
  with pytest.raises(UserError, match='answers other requests'):
    AnswerFile(path, [{'custom_id': 'a'}])
  assert path.read_text() == '{"custom_id": "x"}\n'


def test_samples_of_steps_to_come_are_dropped(tmp_path):
  log = SampleLog(tmp_path / 'samples.jsonl')
  for step in range(4):
    log.append(step, [{'text': f'{step}a'}, {'text': f'{step}b'}])
  with (tmp_path / 'samples.jsonl').open('a') as stream:
    stream.write('{"step": 4, "te')
  log = SampleLog(tmp_path / 'samples.jsonl')
  log.drop_from(2)
  log.append(2, [{'text': 'again'}])
  lines = (tmp_path / 'samples.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  assert [row['text'] for row in rows] == ['0a', '0b', '1a', '1b', 'again']


def test_every_epoch_has_every_row_once_and_steps_are_addressed():
  rows = epoch_rows(10, 4, seed=3)
  whole = [next(rows) for _ in range(10)]
  flat = np.concatenate(whole)
  for epoch in range(4):
    assert sorted(flat[10 * epoch : 10 * epoch + 10]) == list(range(10))
  later = epoch_rows(10, 4, seed=3, start_step=7)
  np.testing.assert_array_equal(next(later), whole[7])
  other = epoch_rows(10, 4, seed=4)
  assert not np.array_equal(next(other), whole[0])


@pytest.mark.parametrize('size', [1, 4, 10, 23])
def test_batches_cut_the_permutations_written_one_after_the_other(size):
  shuffles = [np.random.default_rng([5, e]).permutation(10) for e in range(12)]
  whole = np.concatenate(shuffles)
  for start, rows in zip(
    range(1, 5), epoch_rows(10, size, seed=5, start_step=1)
  ):
    assert rows.dtype == np.int64
    np.testing.assert_array_equal(rows, whole[start * size :][:size])


def test_the_other_user_is_never_the_own_one():
  users = ['a', 'b', 'a', 'c', 'd', 'c']
  others = other_users(users, seed=0)
  assert all(own != other for own, other in zip(users, others))
  assert sorted(set(others)) == ['a', 'b', 'c', 'd']
  with pytest.raises(UserError, match='single user'):
    other_users(['a', 'a'], seed=0)
