"""The whole run on a world of a village: every job, in order, as a user."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from village import (
  assert_same_arrays,
  p4lm,
  parameters,
  pipeline_arguments,
  read,
  stage_command,
)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  root = tmp_path_factory.mktemp('whole') / 'run'
  found = p4lm(*pipeline_arguments(root))
  (root.parent / 'screen.txt').write_text(found.stdout)
  return root


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


# A stage, and a file whose appearance tells that it is at work.
MOMENTS = {
  'tasks': 'tasks/movielens_pitch/info.json',
  'sft': 'sft/checkpoints/2',
  'reward_nli': 'reward_nli/model.json',
  'p4lm': 'p4lm/checkpoints/2',
  'evaluation': 'evaluation/generations/sft.jsonl',
}
# P4LM_KILL_EVERY_STAGE=1 kills each of the 19 a random while after its start.
EVERY_STAGE = os.environ.get('P4LM_KILL_EVERY_STAGE')


def moments(root):
  """(file to wait for, seconds to wait then) of each kill."""
  if not EVERY_STAGE:
    return [(name, 0.0) for name in MOMENTS.values()]
  stages = sorted(
    (root / 'logs').iterdir(), key=lambda log: log.stat().st_mtime
  )
  generator = np.random.default_rng(int(EVERY_STAGE))
  return [(f'logs/{log.name}', generator.uniform(0, 8)) for log in stages]


def test_kills_in_every_kind_of_stage_change_no_bit(root, tmp_path):
  """Stages are pinned to their cores, so both runs compute alike."""
  again = tmp_path / 'again'
  command = [sys.executable, '-m', 'p4lm.main', *pipeline_arguments(again)]
  for name, secs in moments(root):
    process = subprocess.Popen(
      command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(again / name, process)
    time.sleep(secs)
    process.kill()  # The stages that it runs end with it.
    process.wait()
  p4lm(*pipeline_arguments(again))

  assert_same_arrays(cf_arrays(root), cf_arrays(again))
  for stage in sorted(path.parent.name for path in root.glob('*/model.json')):
    first, second = parameters(root / stage), parameters(again / stage)
    assert first[0] == second[0], stage
    assert_same_arrays(first[1], second[1])
    assert steps(root / stage) == steps(again / stage), stage
  for name in ('p4lm/samples.jsonl', 'data/manifest.json'):
    assert (root / name).read_bytes() == (again / name).read_bytes(), name
  assert results(root) == results(again)


def cf_arrays(root):
  return {
    path.name: np.load(path) for path in (root / 'cf').glob('*_embeddings.npy')
  }


def steps(directory):
  return [row['step'] for row in read(directory / 'metrics.jsonl')]


def results(root):
  return json.loads((root / 'evaluation' / 'results.json').read_text())


def wait_for(path: Path, process, secs=600):
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


def test_a_history_stands_for_the_user_who_has_it(
  root, requests_file, tmp_path
):
  import pyarrow.parquet as pq

  ratings = pq.read_table(root / 'data' / 'ratings.parquet').to_pylist()
  by_history = tmp_path / 'histories.jsonl'
  rows = read(requests_file)
  for row in rows:
    user = row.pop('user_id')
    row['history'] = [
      {'item_id': r['item_id'], 'rating': r['rating']}
      for r in ratings
      if r['user_id'] == user and r['split'] == 'train'
    ]
  rows[-1]['history'][0]['rating'] = 'good'
  by_history.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  for name, source in (('ids', requests_file), ('histories', by_history)):
    p4lm(
      'infer', f'--gin.CHECKPOINT={root / "sft"}', f'--gin.INPUT={source}',
      f'--gin.DATA_DIR={root / "data"}', f'--gin.OUTPUT_DIR={tmp_path / name}',
    )  # fmt: skip
  known = read(tmp_path / 'ids' / 'outputs.jsonl')
  new = read(tmp_path / 'histories' / 'outputs.jsonl')
  for first, second in zip(known[:2] + known[3:-1], new[:2] + new[3:-1]):
    assert first['tokens'] == second['tokens']
    np.testing.assert_allclose(first['logps'], second['logps'], atol=1e-3)
  assert 'nowhere' in new[2]['error']
  assert "must be a number, got 'good'" in new[-1]['error']


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
    *command, '--gin.STEPS=200', '--gin.FitConfig.log_every=1',
    '--gin.OptimizerConfig.learning_rate=1e30', check=False,
  )  # fmt: skip
  assert found.returncode == 1
  assert 'holds another experiment' in found.stderr
  fresh = p4lm(
    *stage_command(root, 'sft', tmp_path / 'fresh'), '--gin.STEPS=200',
    '--gin.LEARNING_RATE=1e30', '--gin.FitConfig.log_every=1', check=False,
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
    found = p4lm(
      *stage_command(root, stage, tmp_path / name),
      f'--gin.MESH_SHAPE={mesh}',
      '--gin.FitConfig.log_every=1',
      env={**os.environ, 'XLA_FLAGS': flags, 'JAX_LOG_COMPILES': '1'},
    )
    losses[name] = [
      row['loss'] for row in read(tmp_path / name / 'metrics.jsonl')
    ]
    assert compilations(found.stderr, 'update') == 1
  assert len(losses['one']) == 4
  np.testing.assert_allclose(losses['four'], losses['one'], rtol=1e-5)


def test_reinforcement_compiles_once_and_reads_rewards_as_told(root, tmp_path):
  found = p4lm(
    *stage_command(root, 'p4lm', tmp_path / 'once'),
    '--gin.STEPS=4',
    "--gin.train_rl.reward_outputs={'personalization': 'log_probability'}",
    env={**os.environ, 'JAX_LOG_COMPILES': '1'},
  )
  assert len(read(tmp_path / 'once' / 'metrics.jsonl')) == 4
  for program in ('sample', 'update'):
    assert compilations(found.stderr, program) == 1, program
  samples = read(tmp_path / 'once' / 'samples.jsonl')
  assert all(row['terms']['personalization'] < 0 for row in samples)


def compilations(log: str, program: str) -> int:
  """How often JAX says that it compiled a program, or fetched it compiled."""
  line = rf'Finished XLA compilation of jit\({program}\) in [\d.]+'
  return len(set(re.findall(line, log)))  # Two handlers write every line.


def test_a_finished_run_may_be_moved_and_takes_further_policies(root):
  """The last test: the directory is another one from here on."""
  root = root.rename(root.with_name('moved'))
  texts = {
    path.name: path.read_bytes()
    for path in (root / 'evaluation' / 'generations').iterdir()
  }
  contrasts = results(root)['contrasts']
  variants = {'NLI alone': {'JointRewardConfig.weights': {'nli': 1.0}}}
  found = p4lm(*pipeline_arguments(root), f'--gin.VARIANTS={variants!r}')
  assert found.stdout.count('finished before, kept') == 18
  assert found.stdout.count('done in') == 2
  for name, before in texts.items():
    path = root / 'evaluation' / 'generations' / name
    assert path.read_bytes() == before, name
  systems = [row['system'] for row in results(root)['gold']['rows']]
  assert systems[-1] == 'NLI alone'
  assert len(results(root)['contrasts']) > len(contrasts)
  # Not the other way: that run has more than this command asks for.
  fewer = p4lm(*pipeline_arguments(root), check=False)
  assert fewer.returncode == 1 and 'VARIANTS' in fewer.stderr
