"""The layout of a run: checked before any work, told in `model-info.txt`."""

from __future__ import annotations

import dataclasses
import re

import jax
import pytest
from flax import nnx
from tiny_models import CONFIG, tiny

from p4lm.errors import UserError
from p4lm.models.recommender import Recommender
from p4lm.models.selection import parameter_name
from p4lm.partitioning.mesh import make_mesh
from p4lm.pods import topologies
from p4lm.runs import fitting
from p4lm.runs.fitting import FitConfig, check_layout
from p4lm.runs.model_info import write_model_info
from p4lm.training.optimizers import OptimizerConfig

TRAINING = FitConfig('full', OptimizerConfig('adamw'), steps=1, seed=0)


@pytest.fixture
def eight(monkeypatch):
  """Eight chips that are not here."""
  monkeypatch.setattr(topologies.importlib.util, 'find_spec', lambda name: None)
  devices = topologies.get_topology('v5e:2x4').devices
  make = lambda shape: make_mesh(shape, devices=devices)
  monkeypatch.setattr(fitting, 'make_mesh', make)
  return make


def test_a_layout_that_fits(eight):
  training = dataclasses.replace(TRAINING, mesh_shape='data=4,model=2')
  check_layout(training, CONFIG, 8)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'mesh_shape': 'model=8'}, 'cannot be split over model=8'),
    ({'mesh_shape': 'data=3'}, 'needs 3 devices'),
    ({'mesh_shape': 'data=8'}, r'BATCH_SIZE: .* 12 rows, .* multiple of 8'),
    ({'mesh_shape': 'data=4', 'accumulate': 5}, 'accumulate=5 does not divide'),
    (
      {'axis_rules': {'mlp': 'tensor'}},
      "'mlp' -> 'tensor' names the mesh axis",
    ),
    ({'axis_rules': {'vocabs': None}}, "'vocabs'.*did you mean 'vocab'"),
    ({'axis_rules': {'batch': 'data'}}, "'batch', which is no axis of a para"),
  ],
)
def test_what_cannot_be_laid_out_is_said_at_once(eight, changes, message):
  with pytest.raises(UserError, match=message):
    check_layout(dataclasses.replace(TRAINING, **changes), CONFIG, 12)


def described(mesh, **changes):
  module = nnx.eval_shape(lambda: Recommender(CONFIG, rngs=nnx.Rngs(0)))
  training = dataclasses.replace(TRAINING, **changes)
  return fitting.prepare_abstract(module, training, mesh).state


def test_rules_can_be_changed(eight):
  mesh = eight('fsdp=4,model=2')
  spec = lambda state: (
    state.params['lm']['token_embedder']['embedding'].get_value().sharding.spec
  )
  assert tuple(spec(described(mesh))) == ('model', 'fsdp')
  changed = {'vocab': ('fsdp', 'model'), 'embed': None}
  assert tuple(spec(described(mesh, axis_rules=changed))) == (
    ('fsdp', 'model'),
    None,
  )


def test_model_info_tells_every_parameter_and_the_totals(eight, tmp_path):
  mesh = eight('fsdp=4,model=2')
  state = described(mesh, stage='adapters')
  write_model_info(tmp_path, state, mesh)
  lines = (tmp_path / 'model-info.txt').read_text().splitlines()
  rows = [re.split(r'\s{2,}', line) for line in lines[1 : lines.index('')]]
  names = {
    parameter_name(path): part
    for part, tree in (('yes', state.params), ('frozen', state.frozen))
    for path, _ in nnx.to_flat_state(tree)
  }
  assert {row[0]: row[5] for row in rows} == names
  # [layers, embed, mlp] of the encoder's feed-forward: 2 x 16 x 24.
  [found] = [r for r in rows if r[0] == 'lm/encoder/layers/ffn/wi_0/kernel']
  assert found[1:] == [
    '2x16x24',
    'layers, embed, mlp',
    '-, fsdp, model',
    '768',
    'frozen',
  ]
  count = lambda trains: sum(
    int(row[4].replace(',', '')) for row in rows if row[5] == trains
  )
  trained, frozen = count('yes'), count('frozen')
  # adamw keeps two moments of what trains, and two counters.
  assert lines[-3] == (
    f'trained: {trained:,}  frozen: {frozen:,}  optimizer: {2 * trained + 2:,}'
  )
  assert lines[-2] == 'mesh: replica 1, data 1, fsdp 4, model 2'
  assert lines[-1].startswith('on one device: ')


def test_a_run_that_is_here_writes_the_same_file(tmp_path):
  fit = fitting.prepare(tiny().model, tmp_path, TRAINING)
  lines = (tmp_path / 'model-info.txt').read_text().splitlines()
  whole = sum(leaf.size for leaf in jax.tree.leaves(tiny().state))
  assert lines[-3].startswith(f'trained: {whole:,}  frozen: 0  ')
  assert lines[-2] == 'mesh: replica 1, data 1, fsdp 1, model 1'
  mib = 4 * whole / 2**20
  assert lines[-1].startswith(f'on one device: {mib:,.1f} MiB of parameters')
  assert {leaf.sharding.mesh for leaf in jax.tree.leaves(fit.state)} == {
    fit.sharding.mesh
  }
