"""Rewarded responses of a file become rollouts for a replay."""

import json

import numpy as np
import pytest

from p4lm.errors import UserError
from p4lm.runs.offline_samples import offline_rollouts


class _Vocabulary:
  eos_id = 1

  def encode(self, text):
    return [10 + len(word) for word in text.split()]


def _features(rows):
  """Padded to three rows, as a fixed batch is."""
  tokens = np.zeros((3, 2), np.int32)
  tokens[: len(rows), 0] = [int(row['user_id']) for row in rows]
  return {
    'prompt_tokens': tokens,
    'cf_embeddings': np.zeros((3, 0, 1), np.float32),
    'cf_kind_ids': np.zeros((3, 0), np.int32),
  }


def _read(path):
  return list(
    offline_rollouts(
      path,
      features_of=_features,
      batch_size=3,
      response_length=4,
      vocabulary=_Vocabulary(),
    )
  )


def _write(path, *rows):
  path.write_text('\n'.join(json.dumps(row) for row in rows) + '\n')
  return path


def _row(user, **fields):
  return {'user_id': user, 'item_id': 'i', 'reward': 0.5, **fields}


def test_rows_become_rollouts_of_one_sample_a_prompt(tmp_path):
  path = _write(
    tmp_path / 'samples.jsonl',
    _row('1', text='a bb'),
    _row('2', text='not read', valid=False),
    _row('3', text='a a a a a', reward=-2),
    _row('4', tokens=[7, 1]),
    _row('5', tokens=[7, 8], text='ignored'),
  )
  first, second = _read(path)
  assert first.group_size == 1
  np.testing.assert_array_equal(first.prompt_tokens[:, 0], [1, 3, 4])
  np.testing.assert_array_equal(
    first.response_tokens, [[11, 12, 1, 0], [11, 11, 11, 11], [7, 1, 0, 0]]
  )
  np.testing.assert_array_equal(first.response_mask.sum(axis=1), [3, 4, 2])
  np.testing.assert_array_equal(first.rewards, [0.5, -2, 0.5])
  assert first.valid.all()
  # Tokens without EOS end where they end.
  np.testing.assert_array_equal(second.response_mask.sum(axis=1), [2, 0, 0])
  np.testing.assert_array_equal(second.valid, [True, False, False])


@pytest.mark.parametrize(
  'line,named',
  [
    ('{"user_id"', 'line 1: not JSON'),
    ('[1]', 'line 1: a sample is a JSON object'),
    (json.dumps(_row('1', text='a', reward='good')), "number, got 'good'"),
    (json.dumps(_row('1', text='a', reward=float('nan'))), 'finite, got nan'),
    (json.dumps(_row(1, text='a')), '`user_id` must be a text'),
    (json.dumps(_row('1', tokens=[1, -2])), '`tokens` .* or `text` is missing'),
    (json.dumps(_row('1', text='a', valid=False)), 'no row is valid'),
  ],
)
def test_a_bad_line_is_named(tmp_path, line, named):
  path = tmp_path / 'samples.jsonl'
  path.write_text(line + '\n')
  with pytest.raises(UserError, match=named):
    _read(path)


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(UserError, match='nowhere.jsonl'):
    _read(tmp_path / 'nowhere.jsonl')
