"""The shipped sizes: they parse, and count the parameters as published."""

from __future__ import annotations

import math
import pathlib

import jax
import pytest
from flax import nnx

import gin
from p4lm.models.language_model import (
  DecoderConfig,
  T5Config,
  make_language_model,
)

SIZES = pathlib.Path(__file__).parents[2] / 'gin' / 'models'
# Millions, counted from the configurations that are published on Hugging Face.
PUBLISHED = {
  't5_1_1_small': 76.96,
  't5_1_1_base': 247.58,
  't5_1_1_large': 783.15,
  't5_1_1_xl': 2849.76,
  't5_1_1_xxl': 11135.33,
  'gemma_2b': 2506.17,
  'gemma_7b': 8537.68,
  'gemma2_2b': 2614.34,
  'gemma2_9b': 9241.71,
  'gemma3_270m': 268.10,
  'gemma3_1b': 999.89,
  'gemma3_4b': 3880.26,
  'llama3_8b': 8030.26,
  'smollm2_135m': 134.52,
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


@pytest.mark.parametrize('path', sorted(SIZES.glob('*.gin')), ids=str)
def test_sizes(path, read_size):
  config = read_size(path)
  is_t5 = path.stem.startswith('t5')
  assert type(config) is (T5Config if is_t5 else DecoderConfig)
  make = lambda: make_language_model(config, rngs=nnx.Rngs(0))
  state = nnx.state(nnx.eval_shape(make))
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state)) / 1e6
  if path.stem in PUBLISHED:
    assert count == pytest.approx(PUBLISHED[path.stem], abs=0.01)
  else:
    assert count < 10


def test_every_published_size_is_shipped():
  assert set(PUBLISHED) <= {path.stem for path in SIZES.glob('*.gin')}
