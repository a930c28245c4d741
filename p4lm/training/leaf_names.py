"""Names of the arrays in a tree, the same in checkpoints, masks and errors."""

from __future__ import annotations

import jax
from jax.tree_util import GetAttrKey, KeyPath

from p4lm.typing import PyTree

# A flax Variable is a node of its own with its array under one of these.
_WRAPPERS = ('value', 'raw_value')


def leaf_name(path: KeyPath) -> str:
  """Slash-separated name of a leaf.

  The attribute by which a flax variable holds its array is left out, so that a
  state and a plain dictionary of the same arrays have the same names.

  >>> tree = {'encoder': [{'scale': 0.0}]}
  >>> [leaf_name(path) for path, _ in jax.tree.leaves_with_path(tree)]
  ['encoder/0/scale']
  """
  keys = list(path)
  while (
    keys and isinstance(keys[-1], GetAttrKey) and keys[-1].name in _WRAPPERS
  ):
    keys.pop()
  return jax.tree_util.keystr(tuple(keys), simple=True, separator='/')


def named_leaves(tree: PyTree) -> dict[str, object]:
  """{name: leaf} of a tree, in the order of its leaves.

  Raises:
    ValueError: two leaves have the same name.
  """
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  named = {leaf_name(path): leaf for path, leaf in leaves}
  if len(named) != len(leaves):
    raise ValueError('two leaves of the tree have the same name')
  return named
