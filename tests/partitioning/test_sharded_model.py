"""Eight devices compute what one device computes, on every mesh."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest
from sharded_training import MODELS, SHAPES, UPDATES

HERE = pathlib.Path(__file__).parent


@pytest.fixture(scope='module')
def report():
  """Differences from one device, by what was computed and how."""
  paths = [str(HERE.parent), os.environ.get('PYTHONPATH', '')]
  environment = {
    **os.environ,
    'XLA_FLAGS': '--xla_force_host_platform_device_count=8',
    'PYTHONPATH': os.pathsep.join(paths),
  }
  done = subprocess.run(
    [sys.executable, str(HERE / 'sharded_training.py')],
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout)


def test_every_mesh_of_eight_devices_is_there():
  assert len(SHAPES) == 10


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('model', MODELS)
def test_a_mesh_changes_no_loss_and_no_gradient(report, model, shape):
  found = report[model][shape]
  assert found['parameters'] == 0
  assert found['loss'] < 1e-5
  assert found['gradient'] < 1e-5
  # Whatever is not on data alone splits most of the parameters.
  assert (found['split_parameters'] > 20) == ('data=8' not in shape)


@pytest.mark.parametrize('model', MODELS)
def test_parameters_are_drawn_where_they_belong(report, model):
  assert report[f'{model} born']['parameters'] == 0
  assert report[f'{model} born']['split_parameters'] > 20


@pytest.mark.parametrize('model', [*MODELS, 'decoder'])
def test_a_mesh_changes_no_sample(report, model):
  found = report[f'{model} samples']
  assert found['tokens'] == 0
  assert found['logps'] < 1e-5


@pytest.mark.parametrize('model', [*MODELS, 'decoder'])
def test_no_weight_is_gathered_for_each_token(report, model):
  """Weights that fsdp splits are gathered before the loop."""
  assert report[f'{model} samples']['loop_axes'] == ['model']


def test_split_heads_that_share_a_key_head_stay_apart(report):
  """Two samples a prompt: no query is gathered to be matched with its keys."""
  assert report['shared key head']['context'] < 1e-6
  assert report['shared key head']['collectives'] == []


@pytest.mark.parametrize('optimizer', [name for name, _ in UPDATES])
@pytest.mark.parametrize('model', MODELS)
def test_sharded_optimizers_and_microbatches_change_no_update(
  report, model, optimizer
):
  """Two updates of two microbatches each, against whole ones."""
  found = report[f'{model} updates'][optimizer]
  for name in ('loss', 'grad_norm', 'updated', 'moments'):
    assert found[name] < 1e-5, name
  assert found['split_moments'] > 20
