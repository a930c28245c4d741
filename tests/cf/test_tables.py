"""CFTables: scaling, unknown ids, and directories that are whole or refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from p4lm.cf.tables import CFTables, mean_norm
from p4lm.errors import UserError

USERS = np.array([[3.0, 4.0], [0.0, 1.0]], np.float32)  # norms 5 and 1
ITEMS = np.array([[2.0, 0.0], [0.0, 0.0], [0.0, 4.0]], np.float32)


def make(**options):
  return CFTables(USERS, ITEMS, ['u1', 'u2'], ['7', '8', 'é'], **options)


def test_lookup_divides_by_the_mean_norm():
  tables = make()
  np.testing.assert_allclose(tables.lookup('user', 'u1'), [1.0, 4 / 3])
  np.testing.assert_allclose(tables.lookup('item', 'é'), [0.0, 2.0])
  np.testing.assert_allclose(make(scale='raw').lookup('user', 'u1'), [3, 4])
  scaled = tables.lookup_many('user', ['u1', 'u2'])
  assert mean_norm(scaled) == pytest.approx(1.0)
  assert scaled.dtype == np.float32
  assert tables.width == 2


def test_unknown_ids_take_the_mean_and_are_counted():
  tables = make(scale='raw')
  np.testing.assert_allclose(tables.lookup('user', 'x'), [1.5, 2.5])
  tables.lookup('item', 'x')
  tables.lookup('item', 'y')
  assert tables.unknown_counts == {'user': 1, 'item': 2}
  with pytest.raises(UserError, match="no user 'x' among the 2 users"):
    make(unknown='error').lookup('user', 'x')
  with pytest.raises(UserError, match="kind is 'film'"):
    tables.lookup('film', '7')


def test_save_and_load(tmp_path):
  make().save(tmp_path / 'cf')
  loaded = CFTables.load(tmp_path / 'cf', scale='raw')
  np.testing.assert_array_equal(loaded.user_embeddings, USERS)
  assert loaded.item_ids == ['7', '8', 'é']
  assert loaded.sha256 == make().sha256
  changed = CFTables(USERS + 1, ITEMS, ['u1', 'u2'], ['7', '8', 'é'])
  assert changed.sha256 != loaded.sha256


def test_damaged_and_unfinished_directories(tmp_path):
  with pytest.raises(UserError, match='no finished CF tables'):
    CFTables.load(tmp_path)
  make().save(tmp_path)
  (tmp_path / 'user_embeddings.npy').write_bytes(b'half')
  with pytest.raises(UserError, match='user_embeddings.npy is missing or dam'):
    CFTables.load(tmp_path)
  make().save(tmp_path)
  (tmp_path / 'ids.json').unlink()
  with pytest.raises(UserError, match='ids.json is missing'):
    CFTables.load(tmp_path)
  make().save(tmp_path)
  about = json.loads((tmp_path / 'tables.json').read_text())
  (tmp_path / 'tables.json').write_text(json.dumps(about | {'format': 9}))
  with pytest.raises(UserError, match='format 9'):
    CFTables.load(tmp_path)
  (tmp_path / 'tables.json').write_text('{')
  with pytest.raises(UserError, match='no readable JSON'):
    CFTables.load(tmp_path)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (dict(user_ids=['u', 'u']), "user id 'u' is there twice"),
    (dict(user_ids=['u']), 'for 1 user_ids'),
    (dict(item_ids=[1, 2, 3]), 'item id 1 is no string'),
    (dict(item_embeddings=ITEMS[:, :1]), 'the same width'),
    (dict(item_embeddings=ITEMS * np.nan), "item_embeddings of '7'"),
    (dict(scale='unit'), "scale is 'unit'"),
    (dict(unknown='zero'), "unknown is 'zero'"),
  ],
)
def test_bad_tables(change, message):
  good = dict(
    user_embeddings=USERS, item_embeddings=ITEMS,
    user_ids=['u1', 'u2'], item_ids=['7', '8', '9'],
  )  # fmt: skip
  with pytest.raises(UserError, match=message):
    CFTables(**(good | change))


def test_empty_and_all_zero_tables():
  tables = CFTables(np.zeros((1, 2)), np.zeros((0, 2)), ['u'], [])
  assert not tables.lookup('user', 'u').any()
  assert not tables.lookup('item', 'x').any()
  assert tables.lookup_many('item', []).shape == (0, 2)
