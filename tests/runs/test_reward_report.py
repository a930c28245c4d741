import json

import pytest

from p4lm.errors import UserError
from p4lm.runs.reward_report import population_mean, write_reward_report

FIGURES = {'accuracy': 0.75, 'mean_score': -4.5, 'count': 12}


def test_what_is_written_is_read(tmp_path, capsys):
  content = {'judged_by': 'validation', 'validation': FIGURES}
  write_reward_report(tmp_path, 'appeal', 'judge', content)
  assert json.loads((tmp_path / 'report.json').read_text()) == {
    'kind': 'appeal',
    'split': 'judge',
    **content,
  }
  assert population_mean(tmp_path) == -4.5
  screen = capsys.readouterr().out
  assert '0.750' in screen and '12 held-out examples (validation)' in screen
  names = sorted(p.name for p in tmp_path.rglob('*') if p.is_file())
  assert names == ['index.html', 'report.json']


def test_kinds_without_a_free_constant_are_not_moved(tmp_path):
  content = {
    'judged_by': 'test',
    'validation': {'accuracy': 0.75},
    'test': {'accuracy': 0.5, 'count': 3},
  }
  write_reward_report(tmp_path, 'nli', 'train', content)
  assert population_mean(tmp_path) == 0.0


def test_a_number_that_is_none_is_refused_before_it_is_written(tmp_path):
  content = {
    'judged_by': 'validation',
    'validation': {'accuracy': float('nan'), 'count': 3},
  }
  with pytest.raises(ValueError, match='JSON'):
    write_reward_report(tmp_path, 'nli', 'train', content)
  assert not (tmp_path / 'report.json').exists()


def test_a_training_that_has_not_ended_is_told(tmp_path):
  with pytest.raises(UserError, match='training has not ended'):
    population_mean(tmp_path)


@pytest.mark.parametrize('content', ['{"vali', '{}', '[]', '{"validation": 1}'])
def test_a_damaged_report_is_told(tmp_path, content):
  (tmp_path / 'report.json').write_text(content)
  with pytest.raises(UserError, match='damaged'):
    population_mean(tmp_path)
