"""Towers of a fitted model: means of histories, layers, damaged files."""

import numpy as np
import pytest

from p4lm.cf.rows import Interactions
from p4lm.cf.towers import HistoryTower, Layers
from p4lm.errors import UserError

TABLE = np.array([[1.0, 0.0], [3.0, -4.0], [-1.0, 2.0]], np.float32)


def histories(pairs, users, items=3):
  rows, columns = np.array(pairs, np.int32).reshape(-1, 2).T
  return Interactions(rows, columns, np.ones(len(rows)), users, items)


def test_a_user_is_the_mean_of_their_items():
  tower = HistoryTower(TABLE, Layers())
  found = tower.embed(histories([(0, 1), (2, 2), (0, 0)], 3))
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found, [[2, -2], [0, 0], [-1, 2]])


def test_layers_and_unit_length_by_hand():
  """(2, -2) -> (0, 4) + (1, -1) -> ReLU (1, 3) -> (1*3 + 3*0, 1*0 + 3*1) + (0,
  1) = (3, 4) -> (0.6, 0.8)."""
  layers = Layers(
    (np.array([[0.0, 1.0], [0.0, -1.0]]), np.array([[3.0, 0.0], [0.0, 1.0]])),
    (np.array([1.0, -1.0]), np.array([0.0, 1.0])),
    normalize=True,
  )
  tower = HistoryTower(TABLE, layers)
  found = tower.embed(histories([(0, 1), (0, 0)], 2))
  np.testing.assert_allclose(found, [[0.6, 0.8], [0, 0]], rtol=1e-6)
  # The ReLU takes what is negative: (-1, 2) -> (1, -4) -> (1, 0) -> (3, 1).
  found = tower.embed(histories([(0, 2)], 1))
  np.testing.assert_allclose(found, np.array([[3, 1]]) / 10**0.5, rtol=1e-6)


def test_zero_has_no_direction():
  zero = Layers(normalize=True)(np.zeros((1, 2)))
  np.testing.assert_array_equal(zero, [[0, 0]])


def test_save_and_load(tmp_path):
  layers = Layers(
    tuple(np.full((2, 2), k, np.float32) for k in (1, 2)),
    tuple(np.full(2, k, np.float32) for k in (3, 4)),
    normalize=True,
  )
  HistoryTower(TABLE, layers).save(tmp_path)
  loaded = HistoryTower.load(tmp_path)
  np.testing.assert_array_equal(loaded.table, TABLE)
  assert loaded.layers.normalize is True
  for name in ('kernels', 'biases'):
    for mine, theirs in zip(
      getattr(layers, name), getattr(loaded.layers, name), strict=True
    ):
      np.testing.assert_array_equal(mine, theirs)
  assert [path.name for path in tmp_path.iterdir()] == ['history_tower.npz']


def test_missing_damaged_and_other_items(tmp_path):
  with pytest.raises(UserError, match='history_tower.npz is missing or dam'):
    HistoryTower.load(tmp_path)
  (tmp_path / 'history_tower.npz').write_bytes(b'half of it')
  with pytest.raises(UserError, match='run fit_cf again'):
    HistoryTower.load(tmp_path)
  with pytest.raises(UserError, match='name 9 items but the tower has 3'):
    HistoryTower(TABLE, Layers()).embed(histories([(0, 1)], 1, items=9))
