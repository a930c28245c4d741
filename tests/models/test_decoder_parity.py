"""Llama and Gemma 1, 2, 3 against Transformers with the same random weights."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

sys.path.insert(0, str(Path(__file__).parent))

from reference_decoders import (
  CONFIGS,
  make_pair,
  reference_logits,
  text_batch,
)

from p4lm.decoding.sampler import SamplerConfig, sample
from p4lm.decoding.scoring import score

# Importing the reference libraries warns about their own dependencies.
pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.fixture(scope='module', params=list(CONFIGS))
def pair(request):
  return make_pair(request.param)


@pytest.fixture(scope='module')
def prompts():
  """Four prompts of up to 23 tokens; the rows end in 0, 5, 14 and 22 pads."""
  tokens = np.random.default_rng(0).integers(2, 50, (4, 23))
  for row, pads in enumerate((0, 5, 14, 22)):
    tokens[row, 23 - pads :] = 0
  return tokens


@pytest.fixture(scope='module')
def responses():
  """Responses longer than every window, two to a prompt."""
  return np.random.default_rng(1).integers(2, 50, (8, 11))


def test_logits_equal_the_reference(pair, prompts, responses):
  @jax.jit
  def logits(state, batch, responses):
    return nnx.merge(pair.graphdef, state)(
      batch['prompt_tokens'],
      responses,
      batch['cf_embeddings'],
      batch['cf_kind_ids'],
    )

  ours = logits(pair.state, text_batch(prompts), jnp.asarray(responses))
  theirs = reference_logits(pair, prompts, responses)
  assert np.abs(theirs).max() > 1, 'the logits are far from zero'
  np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


def test_scores_equal_the_reference(pair, prompts, responses):
  torch = pytest.importorskip('torch', reason='parity needs PyTorch')

  mask = jnp.ones(responses.shape, bool)
  ours = score(
    pair.graphdef, pair.state, text_batch(prompts), jnp.asarray(responses), mask
  )
  logits = torch.tensor(reference_logits(pair, prompts, responses))
  theirs = torch.log_softmax(logits, -1).numpy()
  theirs = np.take_along_axis(theirs, responses[..., None], -1)[..., 0]
  np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


def test_greedy_tokens_equal_the_reference(pair, prompts):
  torch = pytest.importorskip('torch', reason='parity needs PyTorch')

  length = 12
  config = SamplerConfig(max_length=length, greedy=True)

  def ours(eos_id):
    batch, key = text_batch(prompts), jax.random.key(0)
    return sample(pair.graphdef, pair.state, batch, key, config, eos_id)

  def theirs(eos_id):
    rows = []
    for prompt in prompts:
      prompt = prompt[prompt != 0]
      tokens = pair.reference.generate(
        torch.tensor(prompt[None]),
        do_sample=False,
        num_beams=1,
        max_new_tokens=length,
        eos_token_id=eos_id,
        pad_token_id=0,
      ).numpy()[0, len(prompt) :]
      rows.append(np.pad(tokens, (0, length - len(tokens))))
    return np.stack(rows)

  free = theirs(49)
  # A token that the model does say stands in for EOS, so that a row ends.
  eos_id = int(free[0, 3])
  for eos in (49, eos_id):
    np.testing.assert_array_equal(ours(eos).response_tokens, theirs(eos))
  assert not ours(eos_id).response_mask.all()


def test_a_bidirectional_prompt_equals_the_reference_under_that_mask(
  prompts, responses
):
  torch = pytest.importorskip('torch', reason='parity needs PyTorch')

  pair = make_pair('gemma', bidirectional_prompt=True)
  mask = jnp.ones(responses.shape, bool)
  ours = score(
    pair.graphdef, pair.state, text_batch(prompts), jnp.asarray(responses), mask
  )
  rows = []
  for row, response in enumerate(responses):
    prompt = prompts[row // 2][prompts[row // 2] != 0]
    tokens = np.concatenate([prompt, response])
    seen = np.tril(np.ones((len(tokens), len(tokens)), bool))
    seen[: len(prompt), : len(prompt)] = True
    added = torch.tensor(np.where(seen, 0.0, -1e30)[None, None]).float()
    with torch.no_grad():
      output = pair.reference(torch.tensor(tokens[None]), attention_mask=added)
    logps = torch.log_softmax(output.logits[0, len(prompt) - 1 : -1], -1)
    rows.append(logps.numpy()[np.arange(len(response)), response])
  np.testing.assert_allclose(ours, np.stack(rows), atol=1e-4, rtol=0)
