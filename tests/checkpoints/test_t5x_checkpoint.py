"""T5X's two layouts: where every number goes, and back."""

from __future__ import annotations

import numpy as np
import pytest
from flax import serialization, traverse_util

from p4lm.checkpoints.t5x_checkpoint import (
  T5XCheckpoint,
  find_file,
  write_t5x,
)
from p4lm.errors import UserError
from p4lm.models.t5_config import T5Config
from p4lm.runs import conversion

CONFIG = T5Config(
  vocab_size=12,
  d_model=5,
  d_ff=7,
  num_heads=3,
  d_kv=2,
  num_encoder_layers=3,
  num_decoder_layers=2,
  relative_attention_num_buckets=4,
)
SIZES = dict(embed=5, heads=3, kv=2, mlp=7, vocab=12, buckets=4)
# A layer's arrays as T5X's own modules declare them.
ATTENTION = {
  'query/kernel': ('embed', 'heads', 'kv'),
  'key/kernel': ('embed', 'heads', 'kv'),
  'value/kernel': ('embed', 'heads', 'kv'),
  'out/kernel': ('heads', 'kv', 'embed'),
}
MLP = {
  'mlp/wi_0/kernel': ('embed', 'mlp'),
  'mlp/wi_1/kernel': ('embed', 'mlp'),
  'mlp/wo/kernel': ('mlp', 'embed'),
  'pre_mlp_layer_norm/scale': ('embed',),
}
LAYERS = {
  'encoder': {
    **{f'attention/{name}': axes for name, axes in ATTENTION.items()},
    'pre_attention_layer_norm/scale': ('embed',),
    **MLP,
  },
  'decoder': {
    **{
      f'{module}/{name}': axes
      for module in ('self_attention', 'encoder_decoder_attention')
      for name, axes in ATTENTION.items()
    },
    'pre_self_attention_layer_norm/scale': ('embed',),
    'pre_cross_attention_layer_norm/scale': ('embed',),
    **MLP,
  },
}
NUM_LAYERS = {'encoder': 3, 'decoder': 2}


def t5x_arrays(layout, seed=0):
  """{name: array} of a model at random, as T5X would hold it."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  found = {
    'token_embedder/embedding': draw(12, 5),
    'decoder/logits_dense/kernel': draw(5, 12),
  }
  for stack, layers in LAYERS.items():
    count = NUM_LAYERS[stack]
    found[f'{stack}/{stack}_norm/scale'] = draw(5)
    bias = 'relpos_bias/rel_embedding'
    if layout == 'scalable_t5':
      found[f'{stack}/{stack}/{bias}'] = draw(3, count, 4)
    else:
      found[f'{stack}/{bias}'] = draw(3, 4)
    for name, axes in layers.items():
      first, *rest = [SIZES[axis] for axis in axes]
      if layout == 'scalable_t5':
        found[f'{stack}/{stack}/{name}'] = draw(first, count, *rest)
        continue
      if axes[0] == 'heads':
        first, rest = first * rest[0], rest[1:]
      elif len(axes) == 3:
        rest = [rest[0] * rest[1]]
      for i in range(count):
        found[f'{stack}/layers_{i}/{name}'] = draw(first, *rest)
  return found


def write_packed(directory, arrays):
  """A checkpoint whose arrays are all in the MessagePack file."""
  target = traverse_util.unflatten_dict(
    {tuple(name.split('/')): value for name, value in arrays.items()}
  )
  state = {'step': np.int32(7), 'param_states': {}}
  contents = {'version': 3, 'optimizer': {'target': target, 'state': state}}
  (directory / 'checkpoint_7').mkdir(parents=True)
  file = directory / 'checkpoint_7' / 'checkpoint'
  file.write_bytes(serialization.to_bytes(contents))
  return file


def parameters(source):
  found = {}
  for name, shape in source.shapes.items():
    found[name] = np.full(shape, np.nan, np.float32)
    source.fill(name, found[name])
  return found


@pytest.fixture(params=['t5', 'scalable_t5'])
def packed(request, tmp_path):
  arrays = t5x_arrays(request.param)
  write_packed(tmp_path / 'source', arrays)
  return request.param, arrays, tmp_path / 'source'


def test_sizes_are_read_off_the_shapes(packed):
  layout, _, directory = packed
  config = conversion.open_source(str(directory)).config
  per_layer = layout == 'scalable_t5'
  assert config.relative_bias_per_layer == per_layer
  assert {**vars(config), 'relative_bias_per_layer': False} == vars(CONFIG)


def test_every_number_has_its_place(packed):
  layout, arrays, directory = packed
  ours = parameters(conversion.open_source(str(directory)))
  query = ours['decoder/layers/cross_attention/query/kernel']
  out = ours['encoder/layers/attention/out/kernel']
  bias = ours['decoder/relative_bias/embedding']
  wo = ours['encoder/layers/ffn/wo/kernel']
  if layout == 't5':
    theirs = arrays['decoder/layers_1/encoder_decoder_attention/query/kernel']
    # Input 4, head 2, width 1.
    assert query[1, 4, 2, 1] == theirs[4, 2 * 2 + 1]
    theirs = arrays['encoder/layers_2/attention/out/kernel']
    assert out[2, 2, 1, 4] == theirs[2 * 2 + 1, 4]
    assert bias[3, 1] == arrays['decoder/relpos_bias/rel_embedding'][1, 3]
    assert wo[2, 6, 4] == arrays['encoder/layers_2/mlp/wo/kernel'][6, 4]
  else:
    theirs = arrays['decoder/decoder/encoder_decoder_attention/query/kernel']
    assert query[1, 4, 2, 1] == theirs[4, 1, 2, 1]
    theirs = arrays['encoder/encoder/attention/out/kernel']
    assert out[2, 2, 1, 4] == theirs[2, 2, 1, 4]
    theirs = arrays['decoder/decoder/relpos_bias/rel_embedding']
    assert bias[1, 3, 2] == theirs[2, 1, 3]
    assert wo[2, 6, 4] == arrays['encoder/encoder/mlp/wo/kernel'][6, 2, 4]
  assert all(np.isfinite(value).all() for value in ours.values())


def test_the_way_back_gives_the_same_arrays(packed, tmp_path):
  layout, arrays, directory = packed
  source = conversion.open_source(str(directory))
  conversion.write_t5x(tmp_path / 'back', source, layout=layout)
  back = T5XCheckpoint(find_file(tmp_path / 'back'))
  assert back.layout == layout and back.config == source.config
  assert back._leaves.keys() == arrays.keys()
  for name, value in arrays.items():
    np.testing.assert_array_equal(back._read(name), value, err_msg=name)


def test_the_layouts_hold_the_same_model(tmp_path):
  write_packed(tmp_path / 'a', t5x_arrays('t5'))
  source = conversion.open_source(str(tmp_path / 'a'))
  conversion.write_t5x(tmp_path / 'b', source, layout='scalable_t5')
  again = conversion.open_source(str(tmp_path / 'b'))
  # A bias that is the same in every layer is one that they share.
  assert again.config == source.config
  for name, value in parameters(source).items():
    np.testing.assert_array_equal(parameters(again)[name], value, err_msg=name)


def test_what_is_wrong_is_named(tmp_path):
  arrays = t5x_arrays('t5')
  del arrays['encoder/layers_1/mlp/wi_1/kernel']
  arrays['decoder/layers_0/mlp/wo/kernel'] = np.zeros((3, 3), np.float32)
  arrays['encoder/adapter/kernel'] = np.zeros(2, np.float32)
  file = write_packed(tmp_path / 'a', arrays)
  with pytest.raises(UserError) as error:
    conversion.open_source(str(file))
  message = str(error.value)
  assert 'encoder/layers_1/mlp/wi_1/kernel is missing' in message
  assert 'decoder/layers_0/mlp/wo/kernel is (3, 3), expected (7, 5)' in message
  assert 'encoder/adapter/kernel is left over' in message

  file.write_bytes(file.read_bytes()[:-100])
  with pytest.raises(UserError, match='no T5X checkpoint, or damaged'):
    conversion.open_source(str(file))
  file = write_packed(tmp_path / 'b', {'dense/kernel': np.zeros(2)})
  with pytest.raises(UserError, match='token_embedder/embedding is missing'):
    conversion.open_source(str(file))


def test_a_missing_array_is_named(tmp_path):
  write_packed(tmp_path / 'a', t5x_arrays('t5'))
  source = conversion.open_source(str(tmp_path / 'a'))
  conversion.write_t5x(tmp_path / 'b', source, layout='t5')
  lost = tmp_path / 'b' / 'checkpoint_0' / 'target.encoder.encoder_norm.scale'
  (lost / '.zarray').unlink()
  with pytest.raises(UserError, match='encoder_norm.scale, which holds no'):
    conversion.open_source(str(tmp_path / 'b'))


def test_biases_of_their_own_fit_one_layout_alone(tmp_path):
  write_packed(tmp_path / 'a', t5x_arrays('scalable_t5'))
  source = conversion.open_source(str(tmp_path / 'a'))
  assert source.config.relative_bias_per_layer
  options = dict(shapes=source.shapes, read=None, step=0)
  with pytest.raises(UserError, match="'t5' has no place"):
    write_t5x(tmp_path / 'b', source.config, layout='t5', **options)
  with pytest.raises(UserError, match="no place in Hugging Face's T5"):
    conversion.write_hf(tmp_path, source, dtype=None, shard_bytes=2**20)
