"""`p4lm compile_pod`, as a user runs it."""

from __future__ import annotations

import importlib.util
import json

import pytest

from p4lm import main
from p4lm.pods import topologies

SMALL = ['--gin.MODEL=t5_tiny', '--gin.PROMPT_LENGTH=32']


@pytest.fixture
def on_paper(monkeypatch):
  """As if libtpu were not installed."""
  monkeypatch.setattr(topologies.importlib.util, 'find_spec', lambda name: None)


def compile_pod(output_dir, *arguments):
  given = [f'--gin.OUTPUT_DIR={output_dir}', *arguments]
  return main.main(['compile_pod', *given])


def results(output_dir):
  return json.loads((output_dir / 'results.json').read_text())


def test_several_meshes_and_the_best(tmp_path, capsys, on_paper):
  status = compile_pod(
    tmp_path,
    '--gin_file=runs/train_lm.gin',
    *SMALL,
    '--gin.TOPOLOGY=v5e:2x4',
    "--gin.MESHES=['data=8', 'fsdp=4,model=2']",
  )
  out = capsys.readouterr().out
  assert status == 0, out
  found = results(tmp_path)
  rows = found['steps']
  assert [row['mesh'] for row in rows] == ['data=8', 'fsdp=4,model=2']
  assert {row['source'] for row in rows} == {'paper'}
  assert all(row['fits'] for row in rows)
  best = min(rows, key=lambda row: row['secs']['compiled'])
  assert found['best'] == {'train_lm': best['mesh']}
  assert f'{best["mesh"]} is best' in out and 'libtpu is not installed' in out
  assert best['mesh'] in (tmp_path / 'results.md').read_text()
  # The file of the job that was planned is recorded too.
  assert 'train_lm.train_lm' in (tmp_path / 'config.gin').read_text()


def test_all_jobs_and_all_meshes_without_any_data(tmp_path, capsys, on_paper):
  files = [f'runs/train_{job}.gin' for job in ('lm', 'reward', 'rl')]
  status = compile_pod(
    tmp_path,
    *(f'--gin_file={file}' for file in files),
    *SMALL,
    '--gin.TOPOLOGY=v5p:2x2x1',
    '--gin.MESHES=all',
    '--gin.BATCH_SIZE=8',
    '--gin.KIND=appeal',
  )
  assert status == 0
  # Six meshes, and not one of them is left out of what is shown.
  assert 'planning on paper: 100%' in capsys.readouterr().err
  rows = results(tmp_path)['steps']
  parts = {(row['job'], row['step']) for row in rows}
  assert parts == {
    ('train_lm', 'update'),
    ('train_reward appeal', 'update'),
    *(('train_rl', part) for part in ('prefill', 'decode', 'anchor', 'update')),
  }
  meshes = {row['mesh'] for row in rows}
  # Four chips: every product of powers of two that four heads allow.
  assert meshes == {
    'fsdp=4',
    'fsdp=2,model=2',
    'model=4',
    'data=2,fsdp=2',
    'data=2,model=2',
    'data=4',
  }


def test_gpus_are_planned_on_paper(tmp_path, capsys):
  status = compile_pod(
    tmp_path,
    '--gin_file=runs/train_lm.gin',
    '--gin.MODEL=t5_1_1_xl',
    '--gin.TOPOLOGY=h100:2x8',
    '--gin.MESH_SHAPE=data=2,fsdp=8',
  )
  assert status == 0
  assert 'JAX compiles for GPUs only where one is' in capsys.readouterr().out
  [row] = results(tmp_path)['steps']
  secs = {c['axes']: c['secs'] for c in row['collectives']}
  # Weights are gathered within a machine; gradients cross between two.
  assert secs.keys() == {'fsdp', 'data'} and row['source'] == 'paper'


def test_a_model_that_fits_nowhere_is_status_one(tmp_path, capsys, on_paper):
  status = compile_pod(
    tmp_path,
    '--gin_file=runs/train_lm.gin',
    '--gin.MODEL=t5_1_1_xxl',
    '--gin.TOPOLOGY=v5e:2x2',
    '--gin.MESH_SHAPE=fsdp=4',
  )
  error = capsys.readouterr().err
  assert status == 1 and error.count('\n') == 1
  assert 'train_lm does not fit on v5e:2x2: its update needs' in error
  # What was found is there all the same.
  assert not results(tmp_path)['steps'][0]['fits']


@pytest.mark.parametrize(
  'arguments, message',
  [
    ([], 'needs the job that it is to plan'),
    (['--gin.TOPOLOGY=v5e'], 'is no pod'),
    (['--gin.MESH_SHAPE=data=2'], 'uses 2 chips, and v5e:2x2 has 4'),
    (['--gin.MESH_SHAPE=data=3'], 'needs 3 devices, which does not divide'),
    (['--gin.MESH_SHAPE=tensor=4'], "the axis 'tensor'"),
    (['--gin.BATCH_SIZE=6'], 'make BATCH_SIZE a multiple of 4'),
    (['--gin.MESHS=all'], 'did you mean MESHES'),
  ],
)
def test_what_is_wrong_is_said_in_one_line(
  tmp_path, capsys, on_paper, arguments, message
):
  given = ['--gin.TOPOLOGY=v5e:2x2', *SMALL]
  files = ['--gin_file=runs/train_lm.gin'] if arguments else []
  status = compile_pod(tmp_path / 'out', *files, *given, *arguments)
  error = capsys.readouterr().err
  assert status == 1 and message in error and 'Traceback' not in error


@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason="libtpu is not installed: pip install 'p4lm[tpu]'",
)
def test_a_real_program_for_a_pod_that_is_not_here(tmp_path, capsys):
  arguments = (
    '--gin_file=runs/train_lm.gin',
    *SMALL,
    '--gin.TOPOLOGY=v5e:2x2',
    '--gin.MESH_SHAPE=fsdp=2,model=2',
  )
  assert compile_pod(tmp_path, *arguments) == 0
  assert '1 of 1: compiling train_lm update' in capsys.readouterr().out
  [row] = results(tmp_path)['steps']
  assert row['source'] == 'compiled' and row['fits']
  assert row['flops'] == pytest.approx(row['paper_flops'], rel=0.05)
  assert {'fsdp', 'model'} <= {c['axes'] for c in row['collectives']}
  # A second start has nothing left to compile.
  assert compile_pod(tmp_path, *arguments) == 0
  assert 'compiling' not in capsys.readouterr().out
  assert results(tmp_path)['steps'] == [row]
