"""Mesh shapes, axis rules, and their messages."""

from __future__ import annotations

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from tiny_models import tiny

from p4lm.errors import UserError
from p4lm.partitioning import mesh as mesh_module
from p4lm.partitioning.mesh import MESH_AXES, make_mesh
from p4lm.partitioning.rules import (
  STANDARD_RULES,
  check_rules,
  constrain,
  partition_spec,
)
from p4lm.partitioning.shardings import (
  batch_sharding,
  param_shardings,
  put_batch,
  put_state,
)
from p4lm.pods import topologies


def test_mesh_example():
  result = doctest.testmod(mesh_module)
  assert result.attempted and not result.failed


def abstract(**sizes):
  shape = tuple(sizes.get(axis, 1) for axis in MESH_AXES)
  types = (AxisType.Auto,) * len(MESH_AXES)
  return AbstractMesh(shape, MESH_AXES, axis_types=types)


@pytest.mark.parametrize('shape', [None, '', 'data=1', {'data': -1}])
def test_every_mesh_has_every_axis(shape):
  mesh = make_mesh(shape, devices=jax.devices()[:1])
  assert dict(mesh.shape) == dict.fromkeys(MESH_AXES, 1)
  assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
  'shape, message',
  [
    ('data=2,model=2', 'data=2,.*model=2 needs 4 devices.* the 1 present'),
    ('data', "cannot read 'data'; write axis=size"),
    ('data=two', "cannot read 'data=two'"),
    ('tensor=2', "axis 'tensor'; the axes are replica, data, fsdp, model"),
    ('data=0', 'data the size 0'),
    ({'data': 1.5}, 'data the size 1.5'),
    ('data=-1,model=-1', '-1 to data and model'),
    ('data=1,data=1', "names the axis 'data' twice"),
  ],
)
def test_bad_shapes_are_named(shape, message):
  with pytest.raises(UserError, match=message):
    make_mesh(shape, devices=jax.devices()[:1])


def test_names_become_mesh_axes():
  mesh = abstract(data=2, fsdp=2, model=2)
  spec = lambda names, shape: partition_spec(names, shape, mesh)
  assert spec(('layers', 'embed', 'heads', 'kv'), (3, 8, 4, 5)) == (
    PartitionSpec(None, 'fsdp', 'model', None)
  )
  assert spec(('batch', 'length'), (8, 3)) == PartitionSpec(
    ('replica', 'data', 'fsdp'), None
  )
  # The second of two names for one mesh axis stays whole.
  assert spec(('mlp', 'mlp'), (4, 4)) == PartitionSpec('model', None)
  # Key heads are split where they can be.
  assert spec(('kv_heads', 'kv'), (4, 4)) == PartitionSpec('model', None)
  assert spec(('kv_heads', 'kv'), (3, 4)) == PartitionSpec(None, None)


def test_what_cannot_be_split_is_named():
  mesh = abstract(model=4)
  with pytest.raises(UserError, match="query: its 'heads' axis of size 6.*mo"):
    partition_spec(('embed', 'heads'), (8, 6), mesh, path='query')
  with pytest.raises(UserError, match="'colour', which no rule maps"):
    partition_spec(('colour',), (8,), mesh)
  with pytest.raises(UserError, match='but 1 logical axis names'):
    partition_spec(('embed',), (8, 6), mesh)
  rules = {**STANDARD_RULES, 'mlp': 'tensor'}
  with pytest.raises(UserError, match="'mlp' -> 'tensor' names the mesh axis"):
    check_rules(rules, mesh)


def test_an_unmapped_name_fails_before_any_work():
  mesh = make_mesh(devices=jax.devices()[:1])
  rules = {k: v for k, v in STANDARD_RULES.items() if k != 'relpos_buckets'}
  with pytest.raises(UserError, match='relative_bias/embedding.*relpos_buck'):
    param_shardings(tiny().state, mesh, rules)


def test_every_parameter_has_names_that_the_rules_map():
  mesh = abstract()
  for path, variable in nnx.to_flat_state(tiny().state):
    names = variable.get_metadata()['logical_axes']
    partition_spec(names, variable.get_value().shape, mesh, path=str(path))


@pytest.mark.parametrize('name', ['adamw', 'adafactor'])
def test_optimizer_states_follow_their_parameters(name):
  mesh = make_mesh(devices=jax.devices()[:1])
  optimizer = getattr(optax, name)(1e-3)
  if name == 'adafactor':
    optimizer = optax.adafactor(1e-3, min_dim_size_to_factor=8)
  moments = jax.eval_shape(optimizer.init, tiny().state)
  shardings = param_shardings(moments, mesh)
  assert jax.tree.structure(shardings) == jax.tree.structure(moments)
  if name == 'adamw':
    own = param_shardings(tiny().state, mesh)
    assert jax.tree.leaves(shardings[0].mu) == jax.tree.leaves(own)
  placed = put_state(optimizer.init(tiny().state), mesh)
  assert jax.tree.leaves(placed)[0].sharding.mesh == mesh


def test_batches_are_split_by_rows():
  mesh = make_mesh(devices=jax.devices()[:1])
  batch = {'tokens': np.arange(6).reshape(3, 2), 'weights': np.ones(3)}
  placed = put_batch(batch, mesh)
  for name, value in batch.items():
    np.testing.assert_array_equal(placed[name], value)
    assert placed[name].sharding == batch_sharding(mesh)


def test_constraints_do_nothing_without_a_mesh():
  x = jnp.ones((3, 2))
  assert constrain(x, 'batch', None) is x


def test_factored_moments_lie_as_what_is_left_of_their_parameter():
  mesh = abstract(fsdp=2, model=2)
  optimizer = optax.adafactor(1e-3, min_dim_size_to_factor=8)
  state = {
    'params': tiny().state,
    'opt_state': jax.eval_shape(optimizer.init, tiny().state),
  }
  factored = param_shardings(state, mesh)['opt_state'][0]
  # The feed-forward's kernel is [layers, embed 16, mlp 24]: its row sums lose
  # mlp, its column sums embed.
  spec = lambda moments: (
    moments['lm']['encoder']['layers']['ffn']['wi_0']['kernel'].get_value().spec
  )
  assert spec(factored.v_row) == PartitionSpec(None, 'fsdp')
  assert spec(factored.v_col) == PartitionSpec(None, 'model')
  # Without the parameters beside them nobody knows, and they are kept whole.
  alone = param_shardings(state['opt_state'], mesh)[0]
  assert spec(alone.v_row) == PartitionSpec()


@pytest.mark.parametrize('shape', [(32, 2), (2, 32), (8, 8), (1, 64)])
def test_a_torus_that_no_axis_fits_is_divided(shape):
  """JAX's own make_mesh refuses 32 x 2 on a torus of 4 x 4 x 4."""
  devices = topologies.get_topology('v5p:4x4x4').devices
  fsdp, model = shape
  mesh = make_mesh({'fsdp': fsdp, 'model': model}, devices=devices)
  assert dict(mesh.shape) == {'replica': 1, 'data': 1} | {
    'fsdp': fsdp,
    'model': model,
  }
  assert len(set(mesh.devices.flat)) == 64
