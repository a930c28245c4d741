r"""The best items of each user, exactly, over a whole catalogue.

Scores are x_u.y_i (+ offset_i) in float32. Items are sharded along the mesh
axis 'data': each device keeps the k best of its part, and the lists of all are
merged. Users go through in chunks, so that a device holds no more than
`_BATCH_SCORES` scores at a time, however many users there are.

The k best of a shard are found in two steps. Its items are cut into blocks;
the k blocks with the highest maxima hold them all, for an item of another
block has k items before it: one in each of those blocks, higher or equal with
a lower row. So only k blocks are sorted, and the rest is read once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from p4lm.errors import UserError
from p4lm.evaluation.item_lists import ItemLists

# 64 MiB of scores on each device.
_BATCH_SCORES = 1 << 24
_BLOCK = 128
_AXIS = 'data'
_WHOLE = PartitionSpec()


def top_items(
  user_embeddings, item_embeddings, k: int, *, exclude: ItemLists | None = None,
  item_offsets=None, mesh=None, on_users: Callable[[int], None] | None = None,
) -> np.ndarray:  # fmt: skip
  """The k best items of each user, the lower row first among equal scores.

  >>> top_items([[1.0]], [[2.0], [3.0], [3.0]], 2).tolist()
  [[1, 2]]

  Args:
    user_embeddings: float [U, E].
    item_embeddings: float [I, E].
    k: length of the lists, at least 1.
    exclude: U lists of items that never enter a user's list.
    item_offsets: float [I] added to every user's scores; -inf keeps an item
      out of all lists. None adds nothing.
    mesh: jax.sharding.Mesh whose axis 'data' shares the items, or None.
    on_users: called with the number of users done since the last call.
  Returns:
    int32 [U, k], best first, -1 where fewer than k items are left. A score
    that is no number is -inf.
  Raises:
    UserError: k < 1, or arrays that do not fit together.
  """
  users = np.asarray(user_embeddings, np.float32)
  items = np.asarray(item_embeddings, np.float32)
  offsets = np.zeros(len(items), np.float32)
  if item_offsets is not None:
    offsets = np.asarray(item_offsets, np.float32)
  _check(users, items, offsets, k, exclude)
  if not len(users) or not len(items):
    return np.full((len(users), k), -1, np.int32)
  shards = mesh.shape[_AXIS] if mesh is not None else 1
  per_shard = -(-len(items) // shards)
  # Whole blocks: their padding scores -inf.
  block = min(_BLOCK, per_shard)
  per_shard = -(-per_shard // block) * block
  put = functools.partial(_put, mesh=mesh)
  catalogue = (
    put(_padded(items, shards * per_shard, 0), PartitionSpec(_AXIS)),
    put(_padded(offsets, shards * per_shard, -np.inf), PartitionSpec(_AXIS)),
  )
  chunk = max(1, min(len(users), _BATCH_SCORES // per_shard))
  starts = range(0, len(users), chunk)
  most = _most_excluded(exclude, chunk)
  lists = []
  for start in starts:
    part = users[start : start + chunk]
    # All chunks are padded to one shape, so that one program serves all.
    excluded = [
      put(_padded(rows.astype(np.int32), most, -1))
      for rows in _excluded_pairs(exclude, start, start + chunk)
    ]
    found = _best(
      put(_padded(part, chunk, 0)), *catalogue, *excluded, k=k, mesh=mesh,
      block=block,
    )  # fmt: skip
    lists.append(np.asarray(found)[: len(part)])
    if on_users is not None:
      on_users(len(part))
  return _pad_lists(np.concatenate(lists), k)


def top_of_scores(scores, k: int) -> np.ndarray:
  """The k best columns of each row; -inf and NaN never enter.

  >>> top_of_scores(np.array([[1.0, 3.0, 3.0, -np.inf]]), 4).tolist()
  [[1, 2, 0, -1]]

  Args:
    scores: float [U, I]; compared in float32.
    k: length of the lists, at least 1.
  Returns:
    int32 [U, k], the lower column first among equal scores.
  Raises:
    UserError: k < 1.
  """
  check_cutoff(k)
  scores = np.asarray(scores, np.float32)
  # Adding 0 makes -0 and 0 one number, as they are to a reader.
  scores = np.where(np.isnan(scores), -np.inf, scores) + np.float32(0)
  values, rows = jax.lax.top_k(jnp.asarray(scores), min(k, scores.shape[1]))
  rows = jnp.where(values == -jnp.inf, -1, rows)
  return _pad_lists(np.asarray(rows), k)


def check_cutoff(k) -> None:
  """Raises UserError unless k is a whole number of at least 1."""
  whole = isinstance(k, int | np.integer) and not isinstance(k, bool)
  if not whole or k < 1:
    raise UserError(
      f'the cut-off k is {k!r}; a list has a whole number of items, at least 1'
    )


@functools.partial(jax.jit, static_argnames=('k', 'block', 'mesh'))
def _best(users, items, offsets, left_users, left_items, *, k, block, mesh):
  """int32 [U, min(k, I)] (padding of I counted), -1 for no item."""
  search = functools.partial(_best_of_shard, k=k, block=block)
  if mesh is None:
    values, rows = search(users, items, offsets, left_users, left_items, 0)
  else:

    def search_shard(users, items, offsets, left_users, left_items):
      first = jax.lax.axis_index(_AXIS) * len(items)
      return search(users, items, offsets, left_users, left_items, first)

    sharded = PartitionSpec(_AXIS)
    by_column = PartitionSpec(None, _AXIS)
    values, rows = jax.shard_map(
      search_shard,
      mesh=mesh,
      in_specs=(_WHOLE, sharded, sharded, _WHOLE, _WHOLE),
      out_specs=(by_column, by_column),
    )(users, items, offsets, left_users, left_items)
    everywhere = NamedSharding(mesh, _WHOLE)
    values, rows = jax.lax.with_sharding_constraint(
      (values, rows), (everywhere, everywhere)
    )
    # Lists stand in the order of the shards, so among equals the first place
    # is the lowest row.
    values, places = jax.lax.top_k(values, min(k, values.shape[1]))
    rows = jnp.take_along_axis(rows, places, axis=1)
  return jnp.where(values == -jnp.inf, -1, rows)


def _best_of_shard(users, items, offsets, left_users, left_items, first, *, k,
                   block):  # fmt: skip
  """Values and rows [U, min(k, N)] of the best of one shard's N items."""
  scores = jnp.matmul(users, items.T, precision=jax.lax.Precision.HIGHEST)
  # The sum also makes -0 and 0 one number, which `top_k` would tell apart.
  scores = scores + offsets[None, :]
  scores = jnp.where(jnp.isnan(scores), -jnp.inf, scores)
  columns = left_items - first
  # A negative index would count from the end; one past it is dropped.
  inside = (columns >= 0) & (left_items >= 0)
  columns = jnp.where(inside, columns, len(items))
  scores = scores.at[left_users, columns].set(-jnp.inf, mode='drop')
  values, rows = _best_columns(scores, k, block)
  return values, rows + first


def _best_columns(scores, k: int, block: int):
  """`top_k` that sorts only the blocks which hold the k best."""
  num_blocks = scores.shape[1] // block
  if num_blocks <= 2 * k:
    return jax.lax.top_k(scores, min(k, scores.shape[1]))
  blocks = scores.reshape(len(scores), num_blocks, block)
  _, chosen = jax.lax.top_k(blocks.max(axis=2), k)
  # In the order of rows, or equal scores would come in that of the maxima.
  chosen = jnp.sort(chosen, axis=1)
  candidates = jnp.take_along_axis(blocks, chosen[:, :, None], axis=1)
  rows = chosen[:, :, None] * block + jnp.arange(block)[None, None, :]
  values, places = jax.lax.top_k(candidates.reshape(len(scores), -1), k)
  rows = rows.reshape(len(scores), -1)
  return values, jnp.take_along_axis(rows, places, axis=1)


def _check(users, items, offsets, k, exclude) -> None:
  check_cutoff(k)
  if users.ndim != 2 or items.ndim != 2 or users.shape[1] != items.shape[1]:
    raise UserError(
      f'user_embeddings are {users.shape} and item_embeddings {items.shape}; '
      'both are tables of one width'
    )
  if offsets.shape != (len(items),):
    raise UserError(
      f'item_offsets have shape {offsets.shape} for {len(items)} items'
    )
  if exclude is None:
    return
  if len(exclude) != len(users):
    raise UserError(
      f'{len(exclude)} lists of excluded items for {len(users)} users'
    )
  if len(exclude.rows) and exclude.rows.max() >= len(items):
    raise UserError(
      f'item row {exclude.rows.max()} is excluded but there are {len(items)}'
    )


def _excluded_pairs(exclude: ItemLists | None, first: int, last: int):
  if exclude is None:
    return np.zeros(0, np.int64), np.zeros(0, np.int64)
  return exclude.pairs(first, min(last, len(exclude)))


def _most_excluded(exclude: ItemLists | None, chunk: int) -> int:
  """The most pairs that a chunk of users has; at least 1."""
  if exclude is None:
    return 1
  firsts = exclude.starts[:-1:chunk]
  lasts = np.append(exclude.starts[chunk:-1:chunk], exclude.starts[-1])
  return max(1, int((lasts - firsts).max()))


def _padded(array: np.ndarray, length: int, value) -> np.ndarray:
  padding = np.full((length - len(array), *array.shape[1:]), value, array.dtype)
  return np.concatenate([array, padding])


def _put(array, spec=_WHOLE, *, mesh):
  if mesh is None:
    return jnp.asarray(array)
  return jax.device_put(array, NamedSharding(mesh, spec))


def _pad_lists(top: np.ndarray, k: int) -> np.ndarray:
  """Cuts or fills the lists to k."""
  top = top[:, :k]
  missing = k - top.shape[1]
  return np.pad(top, ((0, 0), (0, missing)), constant_values=-1).astype(
    np.int32
  )
