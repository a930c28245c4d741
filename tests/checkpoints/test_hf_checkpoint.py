"""Hugging Face directories: what is damaged or differs is named at once."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from p4lm.checkpoints.hf_checkpoint import HFCheckpoint, their_shapes, write_hf
from p4lm.checkpoints.hf_config import config_json_of, sizes_of
from p4lm.checkpoints.hf_names import tensor_names
from p4lm.checkpoints.safetensors_files import (
  INDEX,
  Tensor,
  TensorFiles,
  write_files,
)
from p4lm.errors import UserError
from p4lm.models.decoder_config import DecoderConfig
from p4lm.models.t5_config import T5Config
from p4lm.runs import conversion, model_directory

GEMMA = DecoderConfig(
  vocab_size=12,
  d_model=6,
  d_ff=10,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  d_kv=4,
  activation='gelu',
  unit_offset_norm=True,
  scale_embeddings=True,
  tie_embeddings=True,
)


def values_of(shapes, seed=0):
  rng = np.random.default_rng(seed)
  return {
    name: rng.normal(size=shape).astype(np.float32)
    for name, shape in shapes.items()
  }


@pytest.fixture
def saved(tmp_path):
  """A directory of a tiny Gemma in three shards, and its parameters."""
  shapes = conversion.shapes_of(GEMMA)
  values = values_of(shapes)
  write_hf(
    tmp_path, GEMMA, shapes, values.__getitem__, eos_ids=(1, 7), shard_bytes=900
  )
  assert len(list(tmp_path.glob('*.safetensors'))) > 2
  return tmp_path, shapes, values


def change_config(directory, **fields):
  path = directory / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_linear_map_is_transposed_and_heads_are_joined(saved):
  directory, shapes, values = saved
  read = TensorFiles(directory).read
  query = read('model.layers.1.self_attn.q_proj.weight')
  assert query.shape == (16, 6)
  # Head 2, width 3, of input 5.
  ours = values['decoder/layers/attention/query/kernel'][1]
  assert query[2 * 4 + 3, 5] == ours[5, 2, 3]
  out = read('model.layers.0.self_attn.o_proj.weight')
  ours = values['decoder/layers/attention/out/kernel'][0]
  assert out.shape == (6, 16) and out[5, 2 * 4 + 3] == ours[2, 3, 5]
  checkpoint = HFCheckpoint(directory)
  checkpoint.check(shapes)
  for name, shape in shapes.items():
    target = np.full(shape, np.nan, np.float32)
    checkpoint.fill(name, target)
    np.testing.assert_array_equal(target, values[name])


def test_every_token_that_ends_a_text_is_kept(saved):
  directory, *_ = saved
  source = conversion.open_source(str(directory))
  assert (source.vocabulary.eos_id, source.stop_ids) == (1, (7,))
  change_config(directory, eos_token_id=None)
  source = conversion.open_source(str(directory))
  assert (source.vocabulary.eos_id, source.stop_ids) == (-1, ())


def test_the_text_model_of_one_that_reads_images(tmp_path):
  config = dataclasses.replace(
    GEMMA,
    post_norms=True,
    qk_norm=True,
    query_scalar=256.0,
    sliding_window=3,
    global_every=6,
    rope_base=1e6,
    rope_local_base=1e4,
  )
  shapes = conversion.shapes_of(config)
  values = values_of(shapes)
  write_hf(tmp_path, config, shapes, values.__getitem__, eos_ids=(1, 9))
  files = TensorFiles(tmp_path)
  tensors, found = [], {}
  for name, place in files.places.items():
    tensors.append(Tensor(f'language_model.{name}', place.dtype, place.shape))
    found[tensors[-1].name] = np.array(files.read(name))
  for name in ('vision_tower.x.weight', 'multi_modal_projector.y'):
    tensors.append(Tensor(name, 'F32', (2,)))
    found[name] = np.zeros(2, np.float32)
  both = tmp_path / 'both'
  both.mkdir()
  write_files(both, tensors, lambda t: found[t.name], shard_bytes=2**20)
  text = json.loads((tmp_path / 'config.json').read_text())
  usual = ('rms_norm_eps', 'query_pre_attn_scalar', 'rope_local_base_freq')
  for name in (*usual, 'model_type', 'eos_token_id', 'layer_types'):
    del text[name]
  about = {'model_type': 'gemma3', 'text_config': text, 'eos_token_id': [1, 9]}
  (both / 'config.json').write_text(json.dumps(about))
  source = conversion.open_source(str(both))
  assert source.config == config and source.stop_ids == (9,)
  name = 'decoder/layers/query_norm/scale'
  target = np.empty(shapes[name], np.float32)
  source.fill(name, target)
  np.testing.assert_array_equal(target, values[name])

  tensors.append(Tensor('audio_tower.z', 'F32', ()))
  found['audio_tower.z'] = np.zeros((), np.float32)
  write_files(both, tensors, lambda t: found[t.name], shard_bytes=2**20)
  with pytest.raises(UserError, match='no part of Gemma 3: audio_tower.z'):
    conversion.open_source(str(both))


def test_the_safetensors_library_reads_the_files(saved):
  safetensors = pytest.importorskip('safetensors.numpy')
  directory, _, values = saved
  found = {}
  for file in directory.glob('*.safetensors'):
    found |= safetensors.load_file(file)
  table = found['model.embed_tokens.weight']
  np.testing.assert_array_equal(table, values['token_embedder/embedding'])
  assert len(found) == 2 + 2 * 9


def test_every_difference_is_named(saved):
  directory, shapes, _ = saved
  change_config(directory, num_hidden_layers=3, intermediate_size=11)
  config = sizes_of(json.loads((directory / 'config.json').read_text()))
  with pytest.raises(UserError) as error:
    HFCheckpoint(directory).check(conversion.shapes_of(config))
  message = str(error.value)
  assert 'model.layers.2.input_layernorm.weight is missing' in message
  assert '[10, 6], config.json tells of [11, 6]' in message
  assert 'more' in message
  change_config(directory, num_hidden_layers=1, intermediate_size=10)
  config = dataclasses.replace(GEMMA, num_layers=1)
  with pytest.raises(UserError, match='layers.1.*is left over'):
    HFCheckpoint(directory).check(conversion.shapes_of(config))


def test_another_vocabulary_size_is_named(saved):
  directory, *_ = saved
  change_config(directory, vocab_size=13)
  with pytest.raises(UserError, match=r'embed_tokens.*\[12, 6\].*\[13, 6\]'):
    conversion.open_source(str(directory))


@pytest.mark.parametrize('cut', [4, 40, 1000])
def test_a_truncated_shard_is_named(saved, cut):
  directory, *_ = saved
  shard = max(directory.glob('*.safetensors'), key=lambda p: p.stat().st_size)
  shard.write_bytes(shard.read_bytes()[:cut])
  with pytest.raises(UserError, match=f'{shard.name}.*(cut short|damaged)'):
    HFCheckpoint(directory)


def test_a_missing_shard_and_a_lying_index_are_named(saved):
  directory, *_ = saved
  index = json.loads((directory / INDEX).read_text())
  shards = sorted(set(index['weight_map'].values()))
  kept = (directory / shards[1]).read_bytes()
  (directory / shards[1]).unlink()
  with pytest.raises(UserError, match=f'not there: {shards[1]}'):
    TensorFiles(directory)
  (directory / shards[1]).write_bytes(kept)
  first = next(iter(index['weight_map']))
  index['weight_map'][first] = shards[1]
  (directory / INDEX).write_text(json.dumps(index))
  with pytest.raises(UserError, match=f'holds {first}, which'):
    TensorFiles(directory)


@pytest.mark.parametrize(
  'fields, named',
  [
    ({'model_type': 'bert'}, "model_type is 'bert'.*llama"),
    ({'attention_bias': True}, 'attention_bias = True'),
    ({'rope_scaling': {'rope_type': 'yarn'}}, 'rope_scaling'),
    ({'hidden_activation': 'relu'}, "hidden_activation = 'relu'"),
    ({'head_dim': 5}, 'd_kv is 5'),
  ],
)
def test_another_architecture_is_named(saved, fields, named):
  directory, *_ = saved
  change_config(directory, **fields)
  with pytest.raises(UserError, match=named):
    HFCheckpoint(directory)


def test_nothing_that_p4lm_reads(tmp_path):
  with pytest.raises(UserError, match='no Hugging Face directory'):
    conversion.open_source(str(tmp_path))
  (tmp_path / 'config.json').write_text('{"model_type": ')
  with pytest.raises(UserError, match='config.json is damaged'):
    conversion.open_source(str(tmp_path))


def test_switches_of_no_family_have_no_form_there():
  odd = dataclasses.replace(GEMMA, qk_norm=True)
  with pytest.raises(UserError, match='no published family.*qk_norm'):
    config_json_of(odd)


@pytest.mark.parametrize(
  'config',
  [T5Config(), T5Config(feed_forward='relu', tie_embeddings=True), GEMMA],
)
def test_a_tensor_belongs_to_one_parameter(config):
  names, shapes = tensor_names(config), conversion.shapes_of(config)
  assert names.keys() == shapes.keys()
  tensors = [
    tensor
    for name, shape in shapes.items()
    for tensor, _ in their_shapes(name, names[name], shape)
  ]
  assert len(tensors) == len(set(tensors))


def test_files_end_at_the_size_given_and_keep_types(tmp_path):
  tensors = [
    Tensor('a', 'BF16', (3, 2)),
    Tensor('b', 'F32', (2,)),
    Tensor('c', 'F16', ()),
  ]
  values = {
    'a': np.arange(6).reshape(3, 2).astype(ml_dtypes.bfloat16),
    'b': np.array([1.5, -0.0], np.float32),
    'c': np.array(7, np.float16),
  }
  write_files(tmp_path, tensors, lambda t: values[t.name], shard_bytes=20)
  files = TensorFiles(tmp_path)
  assert [p.path.name[6:11] for p in files.places.values()] == [
    '00001',
    '00001',
    '00002',
  ]
  for name, value in values.items():
    assert files.read(name).dtype == value.dtype
    assert files.read(name).tobytes() == value.tobytes()


def test_conversion_needs_far_less_memory_than_the_model(tmp_path):
  """Less than half, so one larger than half of the memory converts."""
  config = dataclasses.replace(
    GEMMA,
    tie_embeddings=False,
    unit_offset_norm=False,
    scale_embeddings=False,
    activation='silu',
    vocab_size=16384,
    d_model=256,
    d_ff=256,
    num_layers=64,
    num_heads=8,
    num_kv_heads=8,
    d_kv=32,
  )
  shapes = conversion.shapes_of(config)
  total = 4 * sum(int(np.prod(shape)) for shape in shapes.values())
  row = np.random.default_rng(0).normal(size=2**20).astype(np.float32)

  def read(name):
    return np.resize(row, shapes[name])

  (tmp_path / 'hf').mkdir()
  write_hf(tmp_path / 'hf', config, shapes, read)
  (tmp_path / 'p4lm').mkdir()
  # A process of its own: what other tests of this one still free or use, in
  # threads of their own, would count as the conversion's.
  with ProcessPoolExecutor(1, get_context('spawn')) as fresh:
    grown = fresh.submit(convert, tmp_path / 'hf', tmp_path / 'p4lm').result()
  assert total > 100e6
  assert 0 < grown < 0.5 * total
  loaded = model_directory.load_model(tmp_path / 'p4lm')
  assert loaded.card.eos_id == 1
  again = conversion.open_source(str(tmp_path / 'p4lm'), to='hf')
  target = np.empty(shapes['decoder/layers/ffn/wo/kernel'], np.float32)
  again.fill('decoder/layers/ffn/wo/kernel', target)
  np.testing.assert_array_equal(target, read('decoder/layers/ffn/wo/kernel'))


def convert(hf: Path, target: Path) -> int:
  """The most memory that a conversion adds to its process, in bytes."""
  source = conversion.open_source(str(hf))
  with Watch() as watch:
    conversion.write_p4lm(target, source, prompt_length=8, response_length=8)
  return watch.peak - watch.base


class Watch:
  """The most memory of its own that this process has, in bytes."""

  def __enter__(self):
    self.base = self.peak = own_memory()
    self._done = threading.Event()
    self._thread = threading.Thread(target=self._watch)
    self._thread.start()
    return self

  def _watch(self):
    while not self._done.is_set():
      self.peak = max(self.peak, own_memory())
      time.sleep(0.002)

  def __exit__(self, *_):
    self._done.set()
    self._thread.join()


def own_memory() -> int:
  """Pages of this process that no file stands behind, in bytes."""
  for line in Path('/proc/self/status').read_text().splitlines():
    if line.startswith('RssAnon:'):
      return 1024 * int(line.split()[1])
  pytest.skip('this system does not tell RssAnon')
