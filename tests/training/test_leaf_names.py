import doctest

import jax
import jax.numpy as jnp
from flax import nnx

from p4lm.training import leaf_names, optimizers
from p4lm.training.leaf_names import named_leaves


def test_examples():
  for module in (leaf_names, optimizers):
    assert doctest.testmod(module).failed == 0


class _Model(nnx.Module):
  def __init__(self, rngs):
    self.value = nnx.Linear(2, 3, rngs=rngs)
    self.blocks = nnx.List([nnx.LayerNorm(2, rngs=rngs)])


def test_a_flax_state_and_its_plain_dictionary_have_the_same_names():
  state = nnx.state(_Model(nnx.Rngs(0)))
  names = set(named_leaves(state))
  assert names == {
    'value/kernel',
    'value/bias',
    'blocks/0/scale',
    'blocks/0/bias',
  }
  assert set(named_leaves(nnx.to_pure_dict(state))) == names


def test_values_are_those_of_the_tree():
  tree = {'a': jnp.ones(2), 'b': (jnp.zeros(()), {'value': jnp.ones(1)})}
  found = named_leaves(tree)
  assert list(found) == ['a', 'b/0', 'b/1/value']
  for leaf, expected in zip(found.values(), jax.tree.leaves(tree)):
    assert leaf is expected
