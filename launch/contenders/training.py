"""One training step of T5 by maximum likelihood, AdamW, float32."""

from __future__ import annotations

import language_models
import measuring

# Model, rows of a batch, tokens of a prompt and of a response.
SHAPES = {
  't5_small': ('t5_small', 8, 256, 64),
  't5_tiny': ('t5_tiny', 8, 256, 64),
  'small': ('t5_trial', 2, 8, 4),
}
LEARNING_RATE, CLIP_NORM, STEPS = 1e-3, 1.0, 3


def _what(size: str) -> str:
  _, rows, prompt, response = SHAPES[size]
  return f'a step, {rows} x ({prompt} in + {response} out), AdamW'


def _measured(size: str, step) -> dict:
  """What a step took; its tokens are all of the batch, in and out."""
  _, rows, prompt, response = SHAPES[size]
  step()  # compiles, or takes memory for the first time
  return {
    'what': _what(size),
    'work': rows * (prompt + response),
    'unit': 'tokens',
    **measuring.times(step, STEPS),
  }


def p4lm(size: str, data: str, work: str) -> dict:
  """The compiled update of train_lm, metrics and all, on a batch in memory."""
  del data
  language_models.restart_as_job()
  import pathlib

  import jax
  import numpy as np

  model, rows, prompt, response = SHAPES[size]
  fitting = language_models.module('runs.fitting')
  optimizer = language_models.module('training.optimizers').OptimizerConfig(
    name='adamw', learning_rate=LEARNING_RATE, clip_norm=CLIP_NORM
  )
  loss = language_models.module('jobs.train_lm').maximum_likelihood
  directory = pathlib.Path(work, f'training-{size}')
  directory.mkdir(parents=True, exist_ok=True)
  fit = fitting.prepare(
    language_models.recommender(model),
    directory,
    fitting.FitConfig('full', optimizer, steps=STEPS + 1, seed=0),
  )
  update = fit.step_of(loss(fit.graphdef))
  prompts = language_models.tokens(model, rows, prompt)
  batch = language_models.text_batch(prompts) | {
    'response_tokens': language_models.tokens(model, rows, response, 1),
    'response_mask': np.ones((rows, response), bool),
  }
  state = fit.state

  def step():
    nonlocal state
    state, _ = update(state, batch)
    jax.block_until_ready(state.params)

  return _measured(size, step)


def transformers(size: str, data: str, work: str) -> dict:
  """T5ForConditionalGeneration with the fused AdamW of PyTorch, eager."""
  del data, work
  import torch

  model, rows, prompt, response = SHAPES[size]
  torch.set_num_threads(measuring.num_cores())
  module = language_models.torch_t5(model).train()
  optimizer = torch.optim.AdamW(
    module.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True
  )
  prompts = torch.tensor(language_models.tokens(model, rows, prompt)).long()
  labels = torch.tensor(language_models.tokens(model, rows, response, 1)).long()

  def step():
    module(input_ids=prompts, labels=labels).loss.backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), CLIP_NORM)
    optimizer.step()
    optimizer.zero_grad()

  return _measured(size, step)


if __name__ == '__main__':
  measuring.run({'p4lm': p4lm, 'transformers': transformers})
