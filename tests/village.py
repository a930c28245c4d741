"""A village: the smallest world on which every stage has work to do."""

import json
import subprocess
import sys

import numpy as np

OVERRIDES = {
  'data': {
    'NUM_EVALUATION_PAIRS': 12,
    'WorldConfig.num_users': 40,
    'WorldConfig.num_items': 40,
    'WorldConfig.num_archive_items': 20,
    'WorldConfig.num_ratings': 700,
    'WorldConfig.num_pitches': 300,
    'WorldConfig.num_pairs': 150,
    'WorldConfig.num_entailment': 150,
    'WorldConfig.num_relevance': 150,
    'WorldConfig.num_rl_prompts': 60,
  },
  'cf': {'fit_cf.width': 8, 'fit_cf.epochs': 3},
  'base': {'STEPS': 4, 'BATCH_SIZE': 8},
  'sft_text': {'STEPS': 4, 'BATCH_SIZE': 8, 'PROMPT_LENGTH': 192},
  'adapters': {'STEPS': 4, 'BATCH_SIZE': 8},
  'sft': {'STEPS': 4, 'BATCH_SIZE': 8, 'FitConfig.checkpoint_every': 2},
  'sft_s': {'STEPS': 4, 'BATCH_SIZE': 8},
  'p4lm': {
    'STEPS': 4,
    'BATCH_SIZE': 4,
    'NUM_SAMPLES': 2,
    'FitConfig.checkpoint_every': 2,
  },
  'p4lm_s': {'STEPS': 2, 'BATCH_SIZE': 4, 'NUM_SAMPLES': 2},
  **{
    f'{who}_{kind}': {'STEPS': 4, 'BATCH_SIZE': 8}
    for who in ('reward', 'judge')
    for kind in ('nli', 'appeal', 'personalization', 'relevance')
  },
  'evaluation': {'NUM_PAIRS': 8, 'BATCH_SIZE': 8},
}


def p4lm(*arguments, check=True, **options):
  found = subprocess.run(
    [sys.executable, '-m', 'p4lm.main', *map(str, arguments)],
    capture_output=True,
    text=True,
    **options,
  )
  if check:
    assert found.returncode == 0, found.stdout + found.stderr
  return found


def pipeline_arguments(root):
  return (
    'pipeline',
    f'--gin.OUTPUT_DIR={root}',
    '--gin.MODEL=t5_mini_s',
    f'--gin.OVERRIDES={OVERRIDES!r}',
  )


def stage_command(root, stage, output_dir):
  """The command line of a stage, with another OUTPUT_DIR."""
  from p4lm.jobs.pipeline import p4lm_stages, with_overrides

  data = dict.fromkeys(('DATA_DIR', 'PLOTS_FILE', 'VOCABULARY'))
  stages = p4lm_stages(
    root, {'DATASET': 'world', **data}, 't5_mini_s', 't5_mini_s', seed=0
  )
  chosen = {s.name: s for s in with_overrides(stages, OVERRIDES)}[stage]
  return chosen.arguments(str(output_dir))


def parameters(directory):
  """{name: array} of the newest checkpoint."""
  from p4lm.runs.model_directory import load_model
  from p4lm.training.leaf_names import named_leaves

  model = load_model(directory)
  return model.step, {
    name: np.asarray(leaf) for name, leaf in named_leaves(model.params).items()
  }


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same_arrays(first, second):
  assert first.keys() == second.keys()
  for name, array in first.items():
    np.testing.assert_array_equal(array, second[name], err_msg=name)
