"""The whole run on a world of a village: every job, in order, as a user."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

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
  'sft': {'STEPS': 4, 'BATCH_SIZE': 8, 'train_lm.checkpoint_every': 2},
  'sft_s': {'STEPS': 4, 'BATCH_SIZE': 8},
  'p4lm': {
    'STEPS': 4,
    'BATCH_SIZE': 4,
    'NUM_SAMPLES': 2,
    'train_rl.checkpoint_every': 2,
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


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  root = tmp_path_factory.mktemp('whole') / 'run'
  found = p4lm(*pipeline_arguments(root))
  (root.parent / 'screen.txt').write_text(found.stdout)
  return root


def parameters(directory):
  """{name: array} of the newest checkpoint."""
  from p4lm.runs.model_directory import load_model
  from p4lm.training.leaf_names import named_leaves

  model = load_model(directory)
  return model.step, {
    name: np.asarray(leaf) for name, leaf in named_leaves(model.params).items()
  }


def assert_same(first, second):
  assert first[0] == second[0]
  assert first[1].keys() == second[1].keys()
  for name, array in first[1].items():
    np.testing.assert_array_equal(array, second[1][name], err_msg=name)


def test_it_ends_with_the_table_and_the_report(root):
  screen = (root.parent / 'screen.txt').read_text()
  for system in ('Text-only writer', 'SFT-Text', 'SFT', 'P4LM', 'P4LM-S'):
    assert system in screen
  assert (root / 'evaluation' / 'report' / 'index.html').exists()
  results = json.loads((root / 'evaluation' / 'results.json').read_text())
  assert results['gold'] and results['table_one'] and results['user_match']


def test_every_stage_records_its_configuration(root):
  for stage in ('data', 'cf', 'sft', 'reward_nli', 'p4lm', 'evaluation'):
    assert (root / stage / 'config.gin').exists(), stage
  for stage in ('sft', 'p4lm', 'reward_nli'):
    assert 'trained:' in (root / stage / 'model-info.txt').read_text()


def test_a_second_start_keeps_every_stage(root):
  found = p4lm(*pipeline_arguments(root))
  assert 'done in' not in found.stdout
  assert found.stdout.count('finished before, kept') == 19


def test_the_adapters_stage_leaves_everything_else_bit_identical(root):
  _, before = parameters(root / 'base')
  _, after = parameters(root / 'adapters')
  added = {name for name in after if name.startswith('adapters/')}
  assert added and after.keys() - added == before.keys()
  for name in before:
    np.testing.assert_array_equal(before[name], after[name], err_msg=name)


def stage_command(root, stage, output_dir):
  """The command line of a stage, with another OUTPUT_DIR."""
  from p4lm.jobs.pipeline import _with_overrides, p4lm_stages

  stages = p4lm_stages(
    root,
    dataset='world',
    data_dir=None,
    plots_file=None,
    vocabulary=None,
    model='t5_mini_s',
    small_model='t5_mini_s',
    seed=0,
  )
  chosen = {s.name: s for s in _with_overrides(stages, OVERRIDES)}[stage]
  return chosen.arguments(str(output_dir))


@pytest.mark.parametrize('stage', ['sft', 'p4lm'])
def test_kill_and_go_on_ends_bit_for_bit_the_same(root, stage, tmp_path):
  # Both runs use all cores; stages of a pipeline are pinned to their share.
  whole, halves = tmp_path / 'whole', tmp_path / 'halves'
  p4lm(*stage_command(root, stage, whole))
  process = subprocess.Popen(
    [sys.executable, '-m', 'p4lm.main', *stage_command(root, stage, halves)],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  wait_for(halves / 'checkpoints' / '2', process)
  os.kill(process.pid, signal.SIGKILL)
  process.wait()
  p4lm(*stage_command(root, stage, halves))
  assert_same(parameters(whole), parameters(halves))
  metrics = [
    [row['step'] for row in read(d / 'metrics.jsonl')] for d in (whole, halves)
  ]
  assert metrics[0] == metrics[1]
  if stage == 'p4lm':
    assert (whole / 'samples.jsonl').read_text() == (
      halves / 'samples.jsonl'
    ).read_text()


def wait_for(path: Path, process, secs=120):
  end = time.monotonic() + secs
  while not path.exists():
    assert time.monotonic() < end, f'{path} did not appear'
    if process.poll() is not None:
      return
    time.sleep(0.01)


@pytest.fixture
def requests_file(tmp_path):
  path = tmp_path / 'requests.jsonl'
  rows = [
    {'custom_id': f'r{i}', 'user_id': str(i + 1), 'item_id': str(2 * i + 1)}
    for i in range(5)
  ]
  rows.insert(2, {'custom_id': 'bad', 'user_id': '1', 'item_id': 'nowhere'})
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_infer_generates_in_order_and_resumes(root, requests_file, tmp_path):
  arguments = (
    'infer',
    f'--gin.INPUT={requests_file}',
    f'--gin.CHECKPOINT={root / "p4lm"}',
    f'--gin.DATA_DIR={root / "data"}',
    '--gin.BATCH_SIZE=2',
  )
  p4lm(*arguments, f'--gin.OUTPUT_DIR={tmp_path / "a"}')
  answers = read(tmp_path / 'a' / 'outputs.jsonl')
  ids = [answer['custom_id'] for answer in answers]
  assert ids == ['r0', 'r1', 'bad', 'r2', 'r3', 'r4']
  assert 'nowhere' in answers[2]['error']
  for answer in answers[:2] + answers[3:]:
    assert answer['error'] is None
    assert len(answer['tokens']) == len(answer['logps']) > 0
  # As if it had been killed in the middle of the fourth line.
  whole = (tmp_path / 'a' / 'outputs.jsonl').read_bytes()
  lines = whole.splitlines(keepends=True)
  (tmp_path / 'a' / 'outputs.jsonl').write_bytes(
    b''.join(lines[:3]) + lines[3][:10]
  )
  p4lm(*arguments, f'--gin.OUTPUT_DIR={tmp_path / "a"}')
  assert (tmp_path / 'a' / 'outputs.jsonl').read_bytes() == whole


def test_scores_of_generated_texts_are_their_log_probabilities(
  root, requests_file, tmp_path
):
  common = (
    f'--gin.CHECKPOINT={root / "sft"}',
    f'--gin.DATA_DIR={root / "data"}',
  )
  p4lm(
    'infer', *common, f'--gin.INPUT={requests_file}',
    f'--gin.OUTPUT_DIR={tmp_path / "a"}',
  )  # fmt: skip
  generated = read(tmp_path / 'a' / 'outputs.jsonl')
  rows = read(requests_file)
  scoring = tmp_path / 'scoring.jsonl'
  scoring.write_text(
    ''.join(
      json.dumps({**row, 'response_tokens': answer.get('tokens')}) + '\n'
      for row, answer in zip(rows, generated)
      if answer['error'] is None
    )
  )
  p4lm(
    'infer', *common, f'--gin.INPUT={scoring}', '--gin.MODE=score',
    f'--gin.OUTPUT_DIR={tmp_path / "b"}',
  )  # fmt: skip
  scored = {a['custom_id']: a for a in read(tmp_path / 'b' / 'outputs.jsonl')}
  for answer in generated:
    if answer['error'] is None:
      np.testing.assert_allclose(
        scored[answer['custom_id']]['logps'], answer['logps'], atol=2e-5
      )


def test_infer_rewards(root, requests_file, tmp_path):
  rows = [{**row, 'response': 'it is a comedy.'} for row in read(requests_file)]
  judged = tmp_path / 'judged.jsonl'
  judged.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  rewards = {k: str(root / f'reward_{k}') for k in ('nli', 'personalization')}
  p4lm(
    'infer', f'--gin.INPUT={judged}', '--gin.MODE=reward',
    f'--gin.REWARDS={rewards!r}', f'--gin.DATA_DIR={root / "data"}',
    f'--gin.OUTPUT_DIR={tmp_path / "c"}',
  )  # fmt: skip
  for answer in read(tmp_path / 'c' / 'outputs.jsonl'):
    if answer['error'] is None:
      assert set(answer['rewards']) == {'nli', 'personalization'}
      assert 0 <= answer['rewards']['nli'] <= 1


@pytest.mark.parametrize(
  'arguments, message',
  [
    (('train_lm', '--gin.TASK=movielens_pich'), 'mean .movielens_pitch'),
    (('train_lm', '--gin.TASK=movielens_pitch'), 'CF_DIR'),
    (('train_lm', '--gin.STAGE=adaptors'), "Stage 'adaptors' is unknown"),
    (('train_lm', '--gin.CHECKPOINT=/nowhere'), 'holds no model'),
    (('train_lm', '--gin.MODEL=t5_tinny'), 'did you mean models/t5_tiny.gin'),
  ],
)
def test_mistakes_get_one_message(root, arguments, message, tmp_path):
  import re

  job, *rest = arguments
  defaults = {
    'DATA_DIR': root / 'data',
    'TASKS_DIR': root / 'tasks',
    'OUTPUT_DIR': tmp_path / 'out',
    'TASK': 'movielens_pitch_text',
  }
  flags = [f'--gin.{name}={value}' for name, value in defaults.items()]
  found = p4lm(job, *flags, *rest, check=False)
  assert found.returncode == 1
  assert 'Traceback' not in found.stderr
  assert re.search(message, found.stderr), found.stderr


def test_a_directory_of_another_run_is_left_alone(root):
  before = (root / 'sft' / 'config.gin').read_text()
  command = stage_command(root, 'sft', root / 'sft')
  found = p4lm(*command, '--gin.LEARNING_RATE=0.5', check=False)
  assert found.returncode == 1
  assert 'holds another experiment' in found.stderr
  assert 'LEARNING_RATE' in found.stderr
  assert (root / 'sft' / 'config.gin').read_text() == before


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(
  root, tmp_path
):
  command = stage_command(root, 'sft', tmp_path / 'nan')
  p4lm(*command)
  found = p4lm(
    *command, '--gin.STEPS=200', '--gin.train_lm.log_every=1',
    '--gin.OptimizerConfig.learning_rate=1e30', check=False,
  )  # fmt: skip
  assert found.returncode == 1
  assert 'holds another experiment' in found.stderr
  fresh = p4lm(
    *stage_command(root, 'sft', tmp_path / 'fresh'), '--gin.STEPS=200',
    '--gin.LEARNING_RATE=1e30', '--gin.train_lm.log_every=1', check=False,
  )  # fmt: skip
  assert fresh.returncode == 1
  assert 'at step' in fresh.stderr and 'Traceback' not in fresh.stderr


@pytest.mark.parametrize('stage', ['sft', 'reward_personalization'])
def test_four_devices_give_one_devices_losses(root, stage, tmp_path):
  losses = {}
  for name, devices, mesh in (
    ('one', 1, 'data=1'),
    ('four', 4, 'data=2,model=2'),
  ):
    flags = f'--xla_force_host_platform_device_count={devices}'
    p4lm(
      *stage_command(root, stage, tmp_path / name),
      f'--gin.MESH_SHAPE={mesh}',
      '--gin.train_lm.log_every=1'
      if stage == 'sft'
      else '--gin.train_reward.log_every=1',
      env={**os.environ, 'XLA_FLAGS': flags},
    )
    losses[name] = [
      row['loss'] for row in read(tmp_path / name / 'metrics.jsonl')
    ]
  assert len(losses['one']) == 4
  np.testing.assert_allclose(losses['four'], losses['one'], rtol=1e-5)
