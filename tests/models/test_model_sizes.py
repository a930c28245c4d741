"""The shipped sizes: they parse, and count the parameters as published."""

from __future__ import annotations

import math
import pathlib

import jax
import pytest
from flax import nnx

import gin
from p4lm.models.t5 import T5, T5Config

SIZES = pathlib.Path(__file__).parents[2] / 'gin' / 'models'
# Millions, counted from Hugging Face's google/t5-v1_1-* configurations.
PUBLISHED = {
  't5_1_1_small': 76.96,
  't5_1_1_base': 247.58,
  't5_1_1_large': 783.15,
  't5_1_1_xl': 2849.76,
  't5_1_1_xxl': 11135.33,
}


@pytest.fixture
def read_size():
  """Reads a size file in a clean gin configuration."""

  def read(path):
    gin.clear_config()
    gin.parse_config_file(str(path))
    return gin.query_parameter('%MODEL_CONFIG').scoped_configurable_fn()

  yield read
  gin.clear_config()


@pytest.mark.parametrize('path', sorted(SIZES.glob('t5*.gin')), ids=str)
def test_sizes(path, read_size):
  config = read_size(path)
  assert type(config) is T5Config
  state = nnx.state(nnx.eval_shape(lambda: T5(config, rngs=nnx.Rngs(0))))
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state)) / 1e6
  if path.stem in PUBLISHED:
    assert count == pytest.approx(PUBLISHED[path.stem], abs=0.01)
  else:
    assert count < 10


def test_every_published_size_is_shipped():
  assert set(PUBLISHED) <= {path.stem for path in SIZES.glob('*.gin')}
