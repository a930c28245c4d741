"""Transformers' decoder-only models at random, and p4lm's with their weights.

The sizes are odd on purpose: heads whose widths do not add up to the model's,
grouped queries, windows shorter than the texts.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from p4lm.checkpoints.hf_names import tensor_names
from p4lm.models.decoder_config import DecoderConfig
from p4lm.models.recommender import Recommender, RecommenderConfig
from p4lm.models.rope import RopeScaling

MISSING = (
  'the reference implementations are absent: pip install torch transformers'
)
VOCAB = 50
SIZES = dict(
  vocab_size=VOCAB,
  d_model=20,
  d_ff=28,
  num_layers=3,
  num_heads=6,
  num_kv_heads=2,
  d_kv=10,
)
LLAMA = DecoderConfig(**SIZES, rope_base=500000.0, layer_norm_epsilon=1e-5)
GEMMA = DecoderConfig(
  **{**SIZES, 'num_kv_heads': 1},
  activation='gelu',
  unit_offset_norm=True,
  scale_embeddings=True,
  tie_embeddings=True,
)
GEMMA_2 = dataclasses.replace(
  GEMMA,
  num_kv_heads=3,
  post_norms=True,
  query_scalar=14.0,
  attention_soft_cap=2.0,
  final_soft_cap=3.0,
  sliding_window=7,
  global_every=2,
)
CONFIGS = {
  'llama': LLAMA,
  'llama_scaled_tied': dataclasses.replace(
    LLAMA,
    tie_embeddings=True,
    rope_scaling=RopeScaling('llama3', 8.0, 1.0, 4.0, 24),
  ),
  'gemma': GEMMA,
  'gemma_2': GEMMA_2,
  'gemma_3': dataclasses.replace(
    GEMMA_2,
    attention_soft_cap=0.0,
    final_soft_cap=0.0,
    qk_norm=True,
    sliding_window=6,
    global_every=3,
    num_layers=4,
    rope_base=1000000.0,
    rope_local_base=10000.0,
    rope_scaling=RopeScaling('linear', 8.0),
  ),
}


def reference_config(name: str, config: DecoderConfig):
  """The same sizes in Transformers' words."""
  transformers = pytest.importorskip('transformers', reason=MISSING)
  options = dict(
    vocab_size=config.vocab_size,
    hidden_size=config.d_model,
    intermediate_size=config.d_ff,
    num_hidden_layers=config.num_layers,
    num_attention_heads=config.num_heads,
    num_key_value_heads=config.num_kv_heads,
    head_dim=config.d_kv,
    rms_norm_eps=config.layer_norm_epsilon,
    rope_theta=config.rope_base,
    max_position_embeddings=256,
    tie_word_embeddings=config.tie_embeddings,
    attn_implementation='eager',
    pad_token_id=0,
    bos_token_id=2,
    eos_token_id=1,
  )
  if name.startswith('llama'):
    scaling = config.rope_scaling
    options['rope_scaling'] = scaling and {
      'rope_type': 'llama3',
      'factor': scaling.factor,
      'low_freq_factor': scaling.low_frequency_factor,
      'high_freq_factor': scaling.high_frequency_factor,
      'original_max_position_embeddings': scaling.original_length,
    }
    return transformers.LlamaConfig(**options)
  if name == 'gemma':
    return transformers.GemmaConfig(**options)
  options |= dict(
    query_pre_attn_scalar=config.query_scalar,
    sliding_window=config.sliding_window,
  )
  if name == 'gemma_2':
    return transformers.Gemma2Config(
      **options,
      attn_logit_softcapping=config.attention_soft_cap,
      final_logit_softcapping=config.final_soft_cap,
    )
  return transformers.Gemma3TextConfig(
    **options,
    sliding_window_pattern=config.global_every,
    rope_local_base_freq=config.rope_local_base,
    rope_scaling={'rope_type': 'linear', 'factor': config.rope_scaling.factor},
  )


def reference_model(name: str, config: DecoderConfig):
  """A Transformers model of these sizes whose weights are all random."""
  torch = pytest.importorskip('torch', reason=MISSING)
  transformers = pytest.importorskip('transformers', reason=MISSING)
  # Threads that wait for each other are slow on a machine that is shared.
  torch.set_num_threads(1)
  torch.manual_seed(0)
  theirs = reference_config(name, config)
  model = transformers.AutoModelForCausalLM.from_config(theirs).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.2 * torch.randn_like(parameter))
  return model


@dataclasses.dataclass
class Pair:
  """The two implementations of one model."""

  reference: object
  graphdef: nnx.GraphDef
  state: nnx.State
  config: DecoderConfig


def make_pair(name: str, **changes) -> Pair:
  """The reference `name` and p4lm's model with its weights."""
  config = dataclasses.replace(CONFIGS[name], **changes)
  reference = reference_model(name, config)
  source = {k: v.detach().numpy() for k, v in reference.state_dict().items()}
  recommender = RecommenderConfig(lm=config, adapter=None, soft_token_id=49)
  graphdef, state = nnx.split(
    nnx.eval_shape(lambda: Recommender(recommender, rngs=nnx.Rngs(0)))
  )
  names, taken = tensor_names(config), set()
  for path, variable in nnx.to_flat_state(state):
    name = names['/'.join(map(str, path[1:]))]
    layers = []
    for tensor in name.of_layers(config.num_layers):
      taken.add(tensor)
      layers.append(source[tensor].T if name.linear else source[tensor])
    value = np.stack(layers) if name.stacked else layers[0]
    shape = variable.get_value().shape
    assert value.size == np.prod(shape)
    variable.set_value(jnp.asarray(value.reshape(shape)))
  assert set(source) - taken <= {'lm_head.weight'}
  return Pair(reference, graphdef, state, config)


def reference_logits(pair: Pair, prompts, responses):
  """Logits of every response token: one row at a time, without padding."""
  import torch

  rows = []
  copies = len(responses) // len(prompts)
  for row, response in enumerate(responses):
    prompt = prompts[row // copies]
    prompt = prompt[prompt != 0]
    tokens = np.concatenate([prompt, response])
    with torch.no_grad():
      logits = pair.reference(torch.tensor(tokens[None])).logits[0].numpy()
    rows.append(logits[len(prompt) - 1 : -1])
  return np.stack(rows)


def text_batch(prompts) -> dict[str, jax.Array]:
  """A batch of prompts without CF vectors."""
  rows = len(prompts)
  return {
    'prompt_tokens': jnp.asarray(prompts, jnp.int32),
    'cf_embeddings': jnp.zeros((rows, 0, 1)),
    'cf_kind_ids': jnp.zeros((rows, 0), jnp.int32),
  }
