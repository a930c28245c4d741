"""Log-probabilities of given responses."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from p4lm.decoding.behavior import SamplerConfig, behavior_logits
from p4lm.decoding.sampler import merge_model
from p4lm.ops.logprobs import token_logprobs
from p4lm.typing import Array, Bool, Float, Int, PyTree


@functools.partial(jax.jit, static_argnums=(0, 5, 6))
def score(
  model_graphdef: nnx.GraphDef,
  params: PyTree,
  batch: Mapping[str, Array],
  response_tokens: Int[Array, 'R L'],
  response_mask: Bool[Array, 'R L'],
  config: SamplerConfig | None = None,
  eos_id: int = 1,
) -> Float[Array, 'R L']:
  """float32 log-probability of each response token given all before it.

  Args:
    model_graphdef: of a Recommender.
    params: its state, or a tuple of states that nnx.merge puts together.
    batch: as for `sampler.sample`, B prompts.
    response_tokens: R = B*G responses, those of a prompt in consecutive rows.
    response_mask: True counts.
    config: None for the model's own distribution; a sampler's config for its
      behaviour distribution, renormalised over the tokens that truncation
      keeps, so that a replayed sample has the log-probabilities that it was
      drawn with. A token that the sampler could not have drawn has -inf.
    eos_id: for the config's min_length.

  Returns:
    [R,L], 0 where the mask is False.
  """
  model = merge_model(model_graphdef, params)
  logits = model(
    batch['prompt_tokens'],
    response_tokens,
    batch['cf_embeddings'],
    batch['cf_kind_ids'],
  )
  if config is not None:
    position = jnp.arange(response_tokens.shape[1])[None, :]
    logits = behavior_logits(logits, position, config, eos_id)
  logps = token_logprobs(logits, response_tokens)
  return jnp.where(response_mask, logps, 0.0)
