"""The two-tower module: shapes, masks, names, and the same without Flax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from p4lm.cf.rows import Interactions
from p4lm.cf.towers import HistoryTower, Layers
from p4lm.errors import UserError
from p4lm.models.two_tower import TwoTower, TwoTowerConfig
from p4lm.partitioning.mesh import MESH_AXES
from p4lm.partitioning.shardings import param_shardings

USERS, ITEMS, E = 5, 7, 4
ROWS = jnp.array([[1, 2, 6], [3, 0, 0], [0, 0, 0]])
MASK = jnp.array([[True, True, True], [True, False, False], [False] * 3])


def make(**options):
  return TwoTower(TwoTowerConfig(**options), E, USERS, ITEMS, rngs=nnx.Rngs(0))


def test_scores_are_cosines_over_the_temperature():
  model = make(user_tower='id', temperature=0.5)
  rows = jnp.array([4, 0, 4])
  found = model({'user_rows': rows}, jnp.array([6, 1]))
  users = np.asarray(model.user_tower.table[...])[[4, 0, 4]]
  items = np.asarray(model.item_tower.table[...])[[6, 1]]
  cosines = (users @ items.T) / np.outer(
    np.linalg.norm(users, axis=1), np.linalg.norm(items, axis=1)
  )
  np.testing.assert_allclose(found, cosines / 0.5, rtol=1e-5)


def test_scores_without_normalization_are_inner_products():
  model = make(user_tower='id', temperature=1.0, normalize=False)
  found = model({'user_rows': jnp.array([2])}, jnp.array([3]))
  expected = model.user_tower.table[...][2] @ model.item_tower.table[...][3]
  np.testing.assert_allclose(found, expected[None, None], rtol=1e-6)


def test_users_are_means_of_what_the_mask_keeps():
  model = make(normalize=False)
  found = model.users({'history_rows': ROWS, 'history_mask': MASK})
  table = np.asarray(model.user_tower.table[...])
  expected = [table[[1, 2, 6]].mean(0), table[3], np.zeros(E)]
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_hidden_items_get_no_gradient_and_no_history_no_nan():
  graphdef, params = nnx.split(make(hidden_widths=(6,)))

  def total(params):
    model = nnx.merge(graphdef, params)
    batch = {'history_rows': ROWS[1:], 'history_mask': MASK[1:]}
    return model(batch, jnp.arange(ITEMS)).sum()

  gradient = jax.grad(total)(params)
  table = np.asarray(gradient['user_tower']['table'][...])
  assert table[3].any() and not np.delete(table, 3, axis=0).any()
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize('hidden_widths', [(), (6,), (6, 3)])
@pytest.mark.parametrize('normalize', [True, False])
def test_the_tower_of_a_fit_computes_the_same(hidden_widths, normalize):
  model = make(hidden_widths=hidden_widths, normalize=normalize)
  tower = model.user_tower
  for layer in tower.layers:
    noise = jax.random.normal(jax.random.key(1), layer.bias[...].shape)
    layer.bias[...] = noise
  plain = HistoryTower(
    np.asarray(tower.table[...])[:ITEMS],
    Layers(
      tuple(np.asarray(layer.kernel[...]) for layer in tower.layers),
      tuple(np.asarray(layer.bias[...]) for layer in tower.layers),
      normalize,
    ),
  )
  users, places = np.nonzero(MASK[:2])
  found = plain.embed(
    Interactions(
      users.astype(np.int32), np.asarray(ROWS)[users, places],
      np.ones(len(users)), 2, ITEMS,
    )
  )  # fmt: skip
  expected = model.users({'history_rows': ROWS[:2], 'history_mask': MASK[:2]})
  np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-7)


def test_tables_are_split_by_rows_and_fill_their_shards():
  types = (AxisType.Auto,) * len(MESH_AXES)
  mesh = AbstractMesh((1, 2, 2, 2), MESH_AXES, axis_types=types)
  state = nnx.state(make(user_tower='id', hidden_widths=(6,)))
  shardings = dict(nnx.to_flat_state(param_shardings(state, mesh)))
  shapes = {p: v.get_value().shape for p, v in nnx.to_flat_state(state)}
  for tower in ('user_tower', 'item_tower'):
    spec = shardings[tower, 'table'].get_value().spec
    assert spec == PartitionSpec(('fsdp', 'model'), None)
    assert shapes[tower, 'table'] == (64, E)


def test_fresh_rows_have_the_wanted_norm():
  config = TwoTowerConfig(user_tower='id', init_norm=3.0)
  model = TwoTower(config, 64, 1000, 10, rngs=nnx.Rngs(0))
  norms = np.linalg.norm(np.asarray(model.user_tower.table[...]), axis=1)
  assert len(norms) == 1024
  assert abs(np.sqrt(np.mean(norms**2)) - 3.0) < 0.05


@pytest.mark.parametrize(
  'options, message',
  [
    ({'user_tower': 'mlp'}, "user_tower is 'mlp'; choose one of history, id"),
    ({'temperature': 0.0}, 'temperature is 0.0; it must be positive'),
    ({'init_norm': float('nan')}, 'init_norm is nan'),
    ({'hidden_widths': (8, 0)}, 'each must be at least 1'),
  ],
)
def test_bad_settings_are_named(options, message):
  with pytest.raises(UserError, match=message):
    TwoTowerConfig(**options)
