"""Variants of P4LM are stages of their own: its bindings under theirs."""

from __future__ import annotations

import pytest
from village import p4lm

from p4lm.errors import UserError
from p4lm.jobs import pipeline as pipeline_job


@pytest.fixture
def stages(monkeypatch, tmp_path):
  """The stages that a pipeline would run."""

  def plan(**options):
    found = {}

    class Runner:
      def __init__(self, *_):
        pass

      def run(self, stages):
        found.update({stage.name: stage for stage in stages})
        results = tmp_path / 'out' / 'evaluation'
        results.mkdir(parents=True, exist_ok=True)
        (results / 'results.txt').write_text('')

    monkeypatch.setattr(pipeline_job, 'Runner', Runner)
    pipeline_job.pipeline(
      dataset='world', output_dir=str(tmp_path / 'out'), **options
    )
    return found

  return plan


def test_a_variant_differs_by_its_bindings(stages):
  found = stages(
    variants={'NLI alone': {'JointRewardConfig.weights': {'nli': 2.0}}},
    overrides={'p4lm': {'STEPS': 7, 'JointRewardConfig.weights': {}}},
  )
  p4lm, variant = found['p4lm'], found['p4lm_nli_alone']
  assert variant.bindings == {
    **p4lm.bindings,
    'JointRewardConfig.weights': {'nli': 2.0},
  }
  assert (variant.job, variant.after) == (p4lm.job, p4lm.after)
  evaluation = found['evaluation']
  assert 'NLI alone' in evaluation.bindings['SYSTEMS']
  assert ('NLI alone', 'SFT') in evaluation.bindings['CONTRASTS']
  assert ('NLI alone', 'P4LM') in evaluation.bindings['CONTRASTS']
  assert 'p4lm_nli_alone' in evaluation.bindings['RUNS']
  assert 'p4lm_nli_alone' in evaluation.after


def test_own_overrides_of_a_variant_come_last(stages):
  found = stages(
    variants={'S 2': {'STEPS': 3}}, overrides={'p4lm_s_2': {'STEPS': 5}}
  )
  assert found['p4lm_s_2'].bindings['STEPS'] == 5


@pytest.mark.parametrize('name', ['S', 'SFT', 'P4LM'])
def test_taken_names_are_refused(stages, name):
  with pytest.raises(UserError, match='has the name of another system'):
    stages(variants={name: {}})


def test_a_mistyped_path_can_be_mended_in_the_same_directory(tmp_path):
  """The first stage failed: the directory belongs to no experiment yet."""
  paths = ['--gin.DATASET=movielens', f'--gin.OUTPUT_DIR={tmp_path / "run"}']
  for name in ('nowhere', 'nothing'):
    arguments = [*paths, f'--gin.DATA_DIR={tmp_path / name}']
    found = p4lm('pipeline', *arguments, check=False)
    assert found.returncode == 1
    assert f'{name} does not exist' in found.stderr
