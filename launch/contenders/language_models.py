"""The models that are trained and sampled, of one size for every library.

Weights are random: what is measured does not depend on them. Sizes are those
of gin/models, with 4,096 words for the tiny ones.
"""

from __future__ import annotations

import importlib
import os
import pathlib
import re
from types import ModuleType
from typing import Any

# transformers would import either where it is installed, and use neither.
os.environ.setdefault('USE_TF', '0')
os.environ.setdefault('USE_FLAX', '0')

_GIN = pathlib.Path(__file__).resolve().parents[2] / 'gin' / 'models'
_WORDS = {'vocab_size': 4096}
# Name -> the gin file, and what differs from it.
_MODELS = {
  't5_small': ('t5_1_1_small', {}),
  't5_tiny': ('t5_tiny', _WORDS),
  'llama_tiny': ('llama_tiny', _WORDS | {'num_layers': 4}),
  # For a trial.
  't5_trial': ('t5_tiny', {'vocab_size': 64, 'd_model': 16}),
  'llama_trial': ('llama_tiny', {'vocab_size': 64, 'd_model': 16}),
}


def sizes(name: str) -> dict[str, int]:
  """The numbers that a model's gin file binds, by name."""
  file, changes = _MODELS[name]
  text = (_GIN / f'{file}.gin').read_text()
  bound = re.findall(r'Config\.(\w+) = (\d+)$', text, re.MULTILINE)
  return {key: int(value) for key, value in bound} | changes


def num_words(name: str) -> int:
  """Size of a model's vocabulary."""
  return sizes(name)['vocab_size']


def module(name: str) -> ModuleType:
  """A module of p4lm, looked up when it is run: launch/ needs no p4lm."""
  return importlib.import_module(f'p4lm.{name}')


def restart_as_job() -> None:
  """Starts p4lm's contender again with its memory as p4lm's jobs have it."""
  module('huge_pages').restart()


def recommender(name: str) -> Any:
  """p4lm's model, of text alone, with random weights."""
  if name.startswith('t5'):
    config = module('models.t5').T5Config(**sizes(name))
  else:
    config = module('models.decoder_config').DecoderConfig(**sizes(name))
  of_text = module('models.recommender').RecommenderConfig(config, None, 1)
  return module('runs.model_directory').new_model(of_text, 0)


def text_batch(prompts: Any) -> dict[str, Any]:
  """Features of prompts int [B, P] without CF vectors."""
  import numpy as np

  return {
    'prompt_tokens': prompts,
    'cf_embeddings': np.zeros((len(prompts), 0, 1), np.float32),
    'cf_kind_ids': np.zeros((len(prompts), 0), np.int32),
  }


def tokens(name: str, rows: int, length: int, seed: int = 0) -> Any:
  """Random ids int32 [rows, length], neither pad (0) nor EOS (1)."""
  import numpy as np

  generator = np.random.default_rng(seed)
  return generator.integers(2, num_words(name), (rows, length), dtype=np.int32)


def torch_t5(name: str) -> Any:
  """The T5 of transformers, with random weights."""
  import transformers

  size = sizes(name)
  return transformers.T5ForConditionalGeneration(
    transformers.T5Config(
      vocab_size=size['vocab_size'],
      d_model=size['d_model'],
      d_ff=size['d_ff'],
      d_kv=size['d_kv'],
      num_heads=size['num_heads'],
      num_layers=size['num_encoder_layers'],
      num_decoder_layers=size['num_decoder_layers'],
      feed_forward_proj='gated-gelu',
      tie_word_embeddings=False,
      dropout_rate=0.0,
      pad_token_id=0,
      eos_token_id=1,
      decoder_start_token_id=0,
    )
  )


def torch_llama(name: str) -> Any:
  """The Llama of transformers, with random weights."""
  import transformers

  size = sizes(name)
  return transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
      vocab_size=size['vocab_size'],
      hidden_size=size['d_model'],
      intermediate_size=size['d_ff'],
      num_hidden_layers=size['num_layers'],
      num_attention_heads=size['num_heads'],
      num_key_value_heads=size['num_kv_heads'],
      head_dim=size['d_kv'],
      max_position_embeddings=512,
      tie_word_embeddings=False,
      pad_token_id=0,
      bos_token_id=None,
      eos_token_id=1,
    )
  )
