"""Names by which a model's parameters are stored, selected and compared."""

import jax
from flax import nnx
from tiny_models import tiny

from p4lm.models.selection import parameter_name
from p4lm.training.leaf_names import named_leaves


def test_a_parameter_has_one_name_everywhere():
  """Checkpoints go by leaves, stages by paths; attention has a `value`."""
  state = nnx.state(tiny().model)
  by_path = {
    parameter_name(path): variable.get_value()
    for path, variable in nnx.to_flat_state(state)
  }
  by_leaf = named_leaves(state)
  assert 'lm/encoder/layers/attention/value/kernel' in by_leaf
  assert by_path.keys() == by_leaf.keys()
  assert all(by_path[name] is leaf for name, leaf in by_leaf.items())
  assert len(by_leaf) == len(jax.tree.leaves(state))
