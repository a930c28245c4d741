"""Several evaluations as one, through the job."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from p4lm.errors import UserError
from p4lm.evaluation.score_tables import ScoreTable
from p4lm.jobs.evaluate import BASELINE, evaluate

CRITERIA = ('precision', 'personalization', 'appeal', 'relevance')


@pytest.fixture(scope='module')
def evaluations(tmp_path_factory):
  """Two seeds in which P4LM is above SFT by 0.5 and by 0.1 everywhere."""
  root = tmp_path_factory.mktemp('evaluations')
  found = {}
  for seed, gain in (('one', 0.5), ('two', 0.1)):
    generator = np.random.default_rng(len(found))
    start = generator.normal(size=(4, 40))
    scores = {
      judge: {
        system: {c: start[k] + bonus for k, c in enumerate(CRITERIA)}
        for system, bonus in (
          (BASELINE, 0.0), ('SFT', 1.0), ('P4LM', 1.0 + gain),
          ('P4LM (shuffled users)', 0.0),
        )
      }
      for judge in ('learned', 'gold')
    }  # fmt: skip
    directory = root / seed
    directory.mkdir()
    users = [str(user) for user in range(40)]
    ScoreTable(users, users, scores).save(directory)
    found[seed] = str(directory)
  return found


def test_differences_are_those_of_all_pairs(evaluations, tmp_path, capsys):
  evaluate(
    output_dir=str(tmp_path),
    evaluations=evaluations,
    contrasts=(('P4LM', 'SFT'),),
  )
  results = json.loads((tmp_path / 'results.json').read_text())
  first = results['contrasts'][0]
  assert (first['judge'], first['criterion']) == ('gold', 'precision')
  assert first['absolute_increase']['estimate'] == pytest.approx(0.3)
  alone = results['by_evaluation']['differences'][0]
  assert alone['differences'] == pytest.approx([0.5, 0.1])
  assert alone['deviation'] == pytest.approx(0.4 / np.sqrt(2))
  assert results['facts']['pairs'] == '80'
  shown = capsys.readouterr().out
  assert 'Differences by evaluation' in shown
  assert 'P4LM (shuffled users)' not in shown.split('Contrasts')[0]


def test_without_contrasts_those_of_all_evaluations(evaluations, tmp_path):
  lists = {
    'one': [('P4LM', 'SFT'), ('SFT', BASELINE)],
    'two': [('P4LM', 'SFT')],
  }
  copies = {}
  for name, source in evaluations.items():
    copies[name] = str(shutil.copytree(source, tmp_path / name))
    rows = [
      {'judge': judge, 'first': first, 'second': second}
      for judge in ('gold', 'learned')
      for first, second in lists[name]
    ]
    path = tmp_path / name / 'results.json'
    path.write_text(json.dumps({'contrasts': rows}))
  evaluate(output_dir=str(tmp_path / 'out'), evaluations=copies)
  results = json.loads((tmp_path / 'out' / 'results.json').read_text())
  found = {(row['first'], row['second']) for row in results['contrasts']}
  assert found == {('P4LM', 'SFT')}
  assert len(results['contrasts']) == 2 * len(CRITERIA)


@pytest.mark.parametrize('given', ["('P4LM', 'SFT'", ('P4LM', 'SFT'), [('a',)]])
def test_contrasts_are_pairs(evaluations, tmp_path, given):
  with pytest.raises(UserError, match='CONTRASTS must be pairs'):
    evaluate(
      output_dir=str(tmp_path / 'x'), evaluations=evaluations, contrasts=given
    )


def test_one_task_at_a_time(evaluations, tmp_path):
  for more in ({'rankers': {'a': 'b'}}, {'systems': {'a': 'b'}}, {}):
    options = {'evaluations': evaluations, **more} if more else {}
    with pytest.raises(UserError, match='give one of the three'):
      evaluate(output_dir=str(tmp_path / 'x'), data_dir='d', **options)
  with pytest.raises(UserError, match='needs DATA_DIR'):
    evaluate(output_dir=str(tmp_path / 'x'), rankers={'a': 'b'})
