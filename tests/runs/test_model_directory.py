"""What a model directory calls its parameters, and where it finds the rest."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from tiny_models import tiny

from p4lm.cf.tables import CFTables
from p4lm.errors import UserError
from p4lm.models.selection import parameter_name
from p4lm.runs import model_directory
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


def _tables(directory, seed):
  rng = np.random.default_rng(seed)
  tables = CFTables(
    rng.normal(size=(2, 3)).astype(np.float32),
    rng.normal(size=(2, 3)).astype(np.float32),
    ['u', 'v'],
    ['a', 'b'],
  )
  tables.save(directory)
  return CFTables.load(directory)


@dataclasses.dataclass(frozen=True)
class _Card:
  """What of a model's card says which CF embeddings it reads."""

  cf_dir: str | None
  cf_sha256: str | None


def test_cf_embeddings_are_found_beside_a_model_that_was_moved(tmp_path):
  """By name and content: tables of another fit are not taken for them."""
  now = tmp_path / 'laptop' / 'run'
  wanted = _tables(now / 'cf', 0)
  _tables(now / 'models' / 'cf', 1)
  card = _Card('/gpu/box/run/cf', wanted.sha256)
  find = model_directory._with_tables_found
  assert find(now / 'models' / 'sft', card).cf_dir == str(now / 'cf')
  assert find(now / 'sft', card).cf_dir == str(now / 'cf')
  there = _Card(str(now / 'cf'), 'what is there is checked elsewhere')
  assert find(now / 'sft', there) is there
  text_alone = _Card(None, None)
  assert find(now / 'sft', text_alone) is text_alone
  other = dataclasses.replace(card, cf_sha256='other')
  with pytest.raises(UserError, match=f'/gpu/box/run/cf, .*to {now / "cf"}'):
    find(now / 'sft', other)
