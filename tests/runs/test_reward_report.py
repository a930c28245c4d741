import json

import pytest

from p4lm.errors import UserError
from p4lm.runs.reward_report import population_mean, write_reward_report


def test_what_is_written_is_read(tmp_path, capsys):
  write_reward_report(
    tmp_path, 'appeal', 'judge', {'accuracy': 0.75, 'mean_score': -4.5}
  )
  assert json.loads((tmp_path / 'report.json').read_text()) == {
    'kind': 'appeal',
    'split': 'judge',
    'validation': {'accuracy': 0.75, 'mean_score': -4.5},
  }
  assert population_mean(tmp_path) == -4.5
  assert 'accuracy 0.750' in capsys.readouterr().out
  assert [path.name for path in tmp_path.iterdir()] == ['report.json']


def test_kinds_without_a_free_constant_are_not_moved(tmp_path):
  write_reward_report(tmp_path, 'nli', 'train', {'accuracy': 0.75})
  assert population_mean(tmp_path) == 0.0


def test_a_training_that_has_not_ended_is_told(tmp_path):
  with pytest.raises(UserError, match='training has not ended'):
    population_mean(tmp_path)


@pytest.mark.parametrize('content', ['{"vali', '{}', '[]', '{"validation": 1}'])
def test_a_damaged_report_is_told(tmp_path, content):
  (tmp_path / 'report.json').write_text(content)
  with pytest.raises(UserError, match='damaged'):
    population_mean(tmp_path)
