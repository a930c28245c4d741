"""Responses of 64 tokens from T5 with a cache, at temperature 1, float32.

Nothing ends a response before its 64th token, so that all write as much.
"""

from __future__ import annotations

import language_models
import measuring

# Model, prompts, tokens of a prompt and of a response.
SHAPES = {
  f'{model}_b{rows}': (model, rows, 64, 64)
  for model in ('t5_small', 't5_tiny')
  for rows in (1, 8, 32)
} | {'small': ('t5_trial', 2, 8, 4)}
REPEATS = 3
NO_EOS = -1


def _measured(size: str, draw) -> dict:
  """What a batch took; its tokens are those that were drawn."""
  _, rows, prompt, response = SHAPES[size]
  draw()  # compiles, or takes memory for the first time
  return {
    'what': f'{rows} x {response} tokens after prompts of {prompt}',
    'work': rows * response,
    'unit': 'tokens',
    **measuring.times(draw, REPEATS),
  }


def p4lm(size: str, data: str, work: str) -> dict:
  """The sampler of every job; it gives log-probabilities as well."""
  del data, work
  language_models.restart_as_job()
  import jax
  from flax import nnx

  model, rows, prompt, response = SHAPES[size]
  sampler = language_models.module('decoding.sampler')
  graphdef, params = nnx.split(language_models.recommender(model))
  config = sampler.SamplerConfig(max_length=response)
  batch = language_models.text_batch(
    language_models.tokens(model, rows, prompt)
  )
  key = jax.random.key(0)

  def draw():
    drawn = sampler.sample(graphdef, params, batch, key, config, NO_EOS)
    jax.block_until_ready(drawn)

  return _measured(size, draw)


def transformers(size: str, data: str, work: str) -> dict:
  """`generate` with its cache."""
  del data, work
  import torch

  model, rows, prompt, response = SHAPES[size]
  torch.set_num_threads(measuring.num_cores())
  module = language_models.torch_t5(model).eval()
  module.generation_config.eos_token_id = None
  prompts = torch.tensor(language_models.tokens(model, rows, prompt)).long()
  mask = torch.ones_like(prompts)

  def draw():
    drawn = module.generate(
      prompts,
      attention_mask=mask,
      do_sample=True,
      temperature=1.0,
      top_k=0,
      max_new_tokens=response,
      use_cache=True,
    )
    if drawn.shape != (rows, 1 + response):
      raise RuntimeError(f'generate wrote {tuple(drawn.shape)}')

  return _measured(size, draw)


if __name__ == '__main__':
  measuring.run({'p4lm': p4lm, 'transformers': transformers})
