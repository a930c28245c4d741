"""Names are checked before work starts; values need no inner quotes."""

import pathlib
import subprocess
import sys
import time

import pytest

from p4lm import configuration, main, output_directory
from p4lm.errors import UserError


@pytest.mark.parametrize(
  'binding, expected',
  [
    ('DATA_DIR=/data/ml-25m', "DATA_DIR = '/data/ml-25m'"),
    ('DATASET=25m', "DATASET = '25m'"),
    ('STEPS=10', 'STEPS = 10'),
    ('LEARNING_RATE=1e-3', 'LEARNING_RATE = 1e-3'),
    ('MESH_SHAPE=data=2,model=2', "MESH_SHAPE = 'data=2,model=2'"),
    ('CHECKPOINT=None', 'CHECKPOINT = None'),
    ('X=%STEPS', 'X = %STEPS'),
    ("NAME='quoted'", "NAME = 'quoted'"),
    ('NAME=a "b" \'c\'', "NAME = 'a \"b\" \\'c\\''"),
  ],
)
def test_values_that_gin_cannot_parse_are_strings(binding, expected):
  assert configuration._quote(binding) == expected


@pytest.mark.parametrize(
  'binding, message',
  [
    ('STEPS=ten', r"--gin.STEPS='ten': \S*FitConfig.steps must be a whole"),
    ('STEPS=1e3', '--gin.STEPS=1000.0: .* must be a whole number'),
    ('DATA_DIR=7', '--gin.DATA_DIR=7: .*data_dir must be a text'),
    ('CHECKPOINT=0', 'checkpoint must be a text or None'),
    ('LEARNING_RATE=low', 'OptimizerConfig.learning_rate must be a number'),
    ('train_lm.lora_rank=2.5', 'train_lm.lora_rank must be a whole number'),
    ('FitConfig.seed=None', 'FitConfig.seed must be a whole number'),
  ],
)
def test_a_value_of_another_kind_is_told_before_any_work(binding, message):
  paths = ['DATA_DIR=here', 'OUTPUT_DIR=there']
  configuration.resolve('train_lm', [], [*paths, 'LEARNING_RATE=1'])
  with pytest.raises(UserError, match=message):
    configuration.resolve('train_lm', [], [*paths, binding])


def test_required_macros_are_named():
  with pytest.raises(UserError, match='--gin.DATA_DIR=.*--gin.OUTPUT_DIR='):
    configuration.resolve('fit_cf', [], [])


@pytest.mark.parametrize(
  'binding, hint',
  [
    ('DATA_DIRR=x', 'did you mean DATA_DIR'),
    ('fit_cf.data_dirr=x', 'did you mean fit_cf.data_dir'),
  ],
)
def test_a_typing_mistake_offers_the_nearest_name(binding, hint):
  bindings = ['DATA_DIR=/d', 'OUTPUT_DIR=/o', binding]
  with pytest.raises(UserError, match=hint):
    configuration.resolve('fit_cf', [], bindings)


def test_a_missing_gin_file_offers_the_nearest_file():
  with pytest.raises(UserError, match='runs/fit_cf.gin'):
    configuration.resolve('fit_cf', ['runs/fit_fc.gin'], [])


def test_a_command_line_override_wins_over_files(tmp_path):
  extra = tmp_path / 'extra.gin'
  extra.write_text("include 'runs/cache_tasks.gin'\nTASKS = ('a',)\n")
  import gin

  configuration.resolve(
    'cache_tasks',
    [str(extra)],
    ['DATA_DIR=/d', 'OUTPUT_DIR=/o', 'TASK_MODULE=my.tasks'],
  )
  assert gin.query_parameter('TASKS/macro.value') == ('a',)
  assert gin.query_parameter('TASK_MODULE/macro.value') == 'my.tasks'


@pytest.mark.parametrize(
  'arguments, status, message',
  [
    ([], 2, 'no job was named'),
    (['fit_fc'], 2, "did you mean 'fit_cf'"),
    (['fit_cf', '--STEPS=3'], 2, r'did you mean --gin\.STEPS='),
    (['fit_cf', '--gin_fille=x'], 2, 'did you mean --gin_file'),
    (['fit_cf', '--gin_file'], 2, 'needs a value'),
    (['fit_cf', 'train_lm'], 2, 'one job at a time'),
    (['fit_cf'], 1, 'needs a value for'),
    (['fit_cf', '--gin_file=nowhere.gin'], 1, 'no gin file'),
  ],
)
def test_exit_status(arguments, status, message, capsys):
  import re

  assert main.main(arguments) == status
  assert re.search(message, capsys.readouterr().err)


def test_help_of_a_job_lists_its_macros(capsys):
  assert main.main(['fit_cf', '--help']) == 0
  assert 'OUTPUT_DIR' in capsys.readouterr().out


def test_a_directory_belongs_to_one_configuration(tmp_path):
  first = "STEPS = 10\nDATASET = 'world'\n"
  output_directory.claim(tmp_path)
  output_directory.record(tmp_path, 'make_data', first)
  output_directory.check(tmp_path, 'make_data', first)
  # Nothing was made yet: a corrected command may have the directory.
  output_directory.check(tmp_path, 'fit_cf', first)
  for made in ('logs/data.log', 'compiled/a/program', 'data/config.gin'):
    (tmp_path / made).parent.mkdir(parents=True)
    (tmp_path / made).write_text('')
  output_directory.check(tmp_path, 'fit_cf', first)
  (tmp_path / 'data' / 'metrics.jsonl').write_text('')
  longer = first.replace('10', '20')
  output_directory.check(tmp_path, 'make_data', longer)
  other = first.replace('world', 'movielens')
  with pytest.raises(UserError, match="DATASET: 'world' there, 'movielens'"):
    output_directory.check(tmp_path, 'make_data', other)
  with pytest.raises(UserError, match='job: make_data there, fit_cf now'):
    output_directory.check(tmp_path, 'fit_cf', first)


@pytest.mark.parametrize(
  'before, now, data, same',
  [
    ('/a/run/sft', '/b/run/sft', '/b/run/data', True),
    ('/a/run/sft', '/b/other/sft', '/b/other/data', True),
    ('/a/run/sft', '/b/run/sft', '/c/run/data', False),
    ('runs/x', 'runs/y', 'runs/x/data', False),
    ('runs/run/sft', '/b/run/sft', '/b/run/data', True),
    # What did not lie beside it is where it was.
    ('/z/sft', '/b/sft', '/a/run/data', True),
    ('/z/sft', '/b/sft', '/b/run/data', False),
  ],
)
def test_a_directory_may_be_moved_with_what_lies_beside_it(
  tmp_path, before, now, data, same
):
  """Only the text says where it was: nothing needs to be there."""
  old_data = 'runs/run/data' if before.startswith('runs') else '/a/run/data'
  output_directory.claim(tmp_path)
  text = "OUTPUT_DIR = '{}'\nDATA_DIR = '{}'\nTASKS = ('{}/tasks', 'a')\n"
  output_directory.record(
    tmp_path, 'train_lm', text.format(before, old_data, old_data)
  )
  (tmp_path / 'metrics.jsonl').touch()
  moved = text.format(now, data, data)
  if same:
    output_directory.check(tmp_path, 'train_lm', moved)
  else:
    with pytest.raises(UserError, match='DATA_DIR: .*; TASKS: '):
      output_directory.check(tmp_path, 'train_lm', moved)


VARIANTS = """VARIANTS = \\
    {'One': {'THRESHOLDS': {'nli': 0.5}},
     'Two': {'STEPS': 3}}
"""


@pytest.mark.parametrize(
  'job, first, second',
  [
    ('pipeline', '', VARIANTS),
    ('pipeline', 'VARIANTS = {}\n', VARIANTS),
    ('pipeline', "VARIANTS = {'Two': {'STEPS': 3}}\n", VARIANTS),
    (
      'evaluate',
      "CONTRASTS = (('a', 'b'),)\n",
      "CONTRASTS = [('b', 'c'), ('a', 'b')]\n",
    ),
  ],
)
def test_what_is_compared_may_become_more_and_not_less_or_other(
  job, first, second, tmp_path
):
  output_directory.claim(tmp_path)
  output_directory.record(tmp_path, job, first)
  (tmp_path / 'data').mkdir()
  (tmp_path / 'data' / 'manifest.json').write_text('{}')
  output_directory.check(tmp_path, job, second)
  output_directory.record(tmp_path, job, second)
  name = second.split()[0]
  changed = second.replace('3', '4').replace("'c'", "'d'")
  for other in (changed, f'{name} = 7\n', f'{name} = {{}}\n'):
    with pytest.raises(UserError, match=f'{name}: .* there'):
      output_directory.check(tmp_path, job, other)


def test_what_a_policy_is_told_is_no_list_of_what_is_compared(tmp_path):
  output_directory.claim(tmp_path)
  output_directory.record(tmp_path, 'infer', 'WEIGHTS = None\n')
  (tmp_path / 'outputs.jsonl').write_text('')
  with pytest.raises(UserError, match='WEIGHTS: None there'):
    output_directory.check(tmp_path, 'infer', "WEIGHTS = {'nli': 1.0}\n")


def test_an_unwritable_directory_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='cannot be written'):
    output_directory.claim(tmp_path / 'file' / 'below')


HOLDER = """
import sys, time
from p4lm import output_directory
output_directory.claim(sys.argv[1])
output_directory.claim(sys.argv[1])
print('claimed', flush=True)
time.sleep(60)
"""


def test_a_directory_has_one_writer_at_a_time(tmp_path):
  holder = subprocess.Popen(
    [sys.executable, '-c', HOLDER, str(tmp_path)], stdout=subprocess.PIPE
  )
  try:
    assert holder.stdout.readline() == b'claimed\n'
    with pytest.raises(
      UserError, match=f'another process .process {holder.pid}'
    ):
      output_directory.claim(tmp_path)
  finally:
    holder.kill()
    holder.communicate()
  # Its lock went with it, without a file to remove.
  assert output_directory.claim(tmp_path) == tmp_path


CHILD = """
import time
from p4lm import child_process
child_process.end_with_parent()
print('up', flush=True)
time.sleep(60)
"""
PARENT = """
import os, subprocess, sys, time
from p4lm import child_process
child = subprocess.Popen(
  [sys.executable, '-c', sys.argv[1]],
  env=os.environ | child_process.environment(),
  stdout=subprocess.PIPE,
)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_child_ends_with_its_parent():
  parent = subprocess.Popen(
    [sys.executable, '-c', PARENT, CHILD], stdout=subprocess.PIPE
  )
  child = int(parent.stdout.readline())
  parent.kill()
  parent.communicate()
  end = time.monotonic() + 10
  while _is_running(child):
    assert time.monotonic() < end, 'the child outlived its parent'
    time.sleep(0.01)


def _is_running(pid):
  try:
    state = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2]
  except OSError:
    return False
  return state.split()[0] != 'Z'
