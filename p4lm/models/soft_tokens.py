"""Soft tokens at their placeholders in a prompt."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from p4lm.errors import UserError
from p4lm.models import adapter as adapter_lib
from p4lm.typing import Array, Float, Int


def insert_soft_tokens(
  embedded: Float[Array, 'B P D'],
  prompt_tokens: Int[Array, 'B P'],
  soft_tokens: Float[Array, 'B S D'],
  soft_token_id: int,
) -> Float[Array, 'B P D']:
  """The k-th placeholder of a row becomes the row's k-th soft token.

  With S = 2 and the placeholder written _:

    prompt    user :  _  item :  _  title ...
    embedded   e   e  e   e   e  e   e
    result     e   e  s0  e   e  s1  e

  Safe under jit: it trusts the counts, which `check_soft_tokens` checks on the
  host. Surplus soft tokens are dropped; a surplus placeholder keeps its own
  embedding.

  Args:
    embedded: word embeddings of the prompt.
    prompt_tokens: the prompt, with `soft_token_id` as the placeholder.
    soft_tokens: adapter outputs.
    soft_token_id: the placeholder's id.
  """
  count = soft_tokens.shape[1]
  if count == 0:
    return embedded
  length = prompt_tokens.shape[1]
  is_placeholder = prompt_tokens == soft_token_id
  # The k-th placeholder's position; `length` (dropped) where there is none.
  # Writing S rows is cheaper, forward and back, than reading P.
  order = jnp.cumsum(is_placeholder, axis=1)
  wanted = jnp.arange(1, count + 1)[None, :, None]
  is_kth = is_placeholder[:, None, :] & (order[:, None, :] == wanted)
  at = jnp.where(is_kth.any(-1), jnp.argmax(is_kth, axis=-1), length)
  rows = jnp.arange(prompt_tokens.shape[0])[:, None]
  soft_tokens = soft_tokens.astype(embedded.dtype)
  return embedded.at[rows, at].set(
    soft_tokens, mode='drop', unique_indices=False
  )


def check_soft_tokens(
  prompt_tokens: np.ndarray, soft_token_id: int, expected: int
) -> None:
  """Checks on the host that every prompt has its placeholders.

  Args:
    prompt_tokens: int [B,P].
    soft_token_id: the placeholder's id.
    expected: soft tokens of an example, CF vectors x tokens_per_vector.

  Raises:
    UserError: a row with another count; the message names the first one.
  """
  counts = np.sum(np.asarray(prompt_tokens) == soft_token_id, axis=1)
  wrong = np.flatnonzero(counts != expected)
  if wrong.size:
    row = int(wrong[0])
    raise UserError(
      f'prompt_tokens row {row} has {int(counts[row])} soft-token placeholders'
      f' (id {soft_token_id}) for {expected} soft tokens ({wrong.size} of'
      f' {counts.size} rows differ); write one placeholder for each soft token'
      ' and keep them clear of truncation.'
    )


def check_soft_token_id(soft_token_id: int, vocab_size: int) -> None:
  """Raises UserError when the placeholder is no row of the embedding table."""
  if not 0 < soft_token_id < vocab_size:
    raise UserError(
      f'soft_token_id is {soft_token_id}, outside of the {vocab_size} tokens'
      " (its config's vocab_size); pass the vocabulary's soft_token_id, and a"
      ' vocab_size that is at least its size.'
    )


def embed_prompt(
  embedded: Float[Array, 'B P D'],
  prompt_tokens: Int[Array, 'B P'],
  adapters: nnx.Dict | None,
  cf_embeddings: Float[Array, 'B N E'],
  cf_kind_ids: Int[Array, 'B N'],
  soft_token_id: int,
) -> Float[Array, 'B P D']:
  """Word embeddings with the adapted CF vectors at their placeholders.

  Raises:
    UserError: CF vectors for a model that has no adapters.
  """
  if cf_embeddings.shape[1] == 0:
    return embedded
  if adapters is None:
    raise UserError(
      f'cf_embeddings hold {cf_embeddings.shape[1]} vectors an example but the'
      ' model has no adapters; use a task of text alone, or a model with an'
      ' AdapterConfig.'
    )
  soft = adapter_lib.adapt(adapters, cf_embeddings, cf_kind_ids)
  return insert_soft_tokens(embedded, prompt_tokens, soft, soft_token_id)
