"""Writes with a trained language model: prompts in, sampled texts out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from p4lm.data.prompts import Prompt
from p4lm.data.token_ids import TokenIds
from p4lm.data.vocabulary import Vocabulary
from p4lm.decoding.sampler import SamplerConfig, sample
from p4lm.errors import UserError
from p4lm.models.soft_tokens import check_soft_tokens

_LENGTH_BUCKET = 32
_KIND_IDS = {'user': 0, 'item': 1}


@dataclasses.dataclass(frozen=True)
class WritingRequest:
  """One prompt and the ids whose CF vectors fill its soft tokens, in order.

  Attributes:
    prompt: with placeholders.
    user_id, item_id: whose vectors are looked up.
    prompt_tokens: ids in place of the prompt's text.
    user_vector: float32 [E], in place of the vector of `user_id`.
  """

  prompt: Prompt
  user_id: str | None = None
  item_id: str | None = None
  prompt_tokens: tuple[int, ...] | None = None
  user_vector: np.ndarray | None = None

  def cf_ids(self) -> list[tuple[str, str]]:
    ids = {'user': self.user_id, 'item': self.item_id}
    return [(kind, ids[kind]) for kind in self.prompt.cf_kinds]


@dataclasses.dataclass(frozen=True)
class Written:
  """A response: its text, its tokens with EOS, their log-probabilities.

  The text is None where the model has no tokenizer.
  """

  text: str | None
  tokens: list[int]
  logps: list[float]


class CheckpointWriter:
  """Samples responses from a recommender in batches of fixed shapes.

  Prompts are padded to `length_bucket` tokens, or twice, four times... as many,
  so that few programs are compiled.

  Args:
    graphdef, params: a split `Recommender`.
    vocabulary: turns prompts into ids and ids into texts.
    cf_lookup: (kind, id) -> float32 [E], or None for a text-only model.
    prompt_length: P, longer prompts are cut at the end.
    batch_size: prompts at a time.
    length_bucket: the least number of tokens that prompts are padded to; at
      most P.
    pad_id: what they are padded with, the language model's `pad_id`.
  """

  def __init__(
    self,
    *,
    graphdef,
    params,
    vocabulary: Vocabulary | TokenIds,
    cf_lookup: Callable[[str, str], np.ndarray] | None,
    prompt_length: int,
    batch_size: int = 64,
    length_bucket: int = _LENGTH_BUCKET,
    pad_id: int = 0,
  ):
    self._graphdef, self._params = graphdef, params
    self._vocabulary = vocabulary
    self._cf_lookup = cf_lookup
    self._prompt_length = prompt_length
    self._batch_size = batch_size
    self._bucket = length_bucket
    self._pad_id = pad_id

  def write(
    self,
    requests: Sequence[WritingRequest],
    config: SamplerConfig,
    key: jax.Array,
  ) -> Iterator[Written]:
    """Yields `config.num_samples` responses a request, in request order."""
    for start in range(0, len(requests), self._batch_size):
      chunk = list(requests[start : start + self._batch_size])
      batch = self.features(chunk)
      sampled = sample(
        self._graphdef,
        self._params,
        {name: jnp.asarray(value) for name, value in batch.items()},
        jax.random.fold_in(key, start),
        config,
        eos_id=self._vocabulary.eos_id,
      )
      rows = len(chunk) * config.num_samples
      yield from self._texts(jax.device_get(sampled), rows)

  def features(self, requests: Sequence[WritingRequest]) -> dict:
    """prompt_tokens [B,P], cf_embeddings [B,N,E], cf_kind_ids [B,N].

    The last rows are padding when there are fewer requests than batch_size.

    Raises:
      UserError: soft tokens without CF tables, or a count that differs.
    """
    encoded = [self._encode(request) for request in requests]
    longest = max(len(tokens) for tokens in encoded)
    length = self._bucket
    while length < longest:
      length *= 2
    length = min(length, self._prompt_length)
    tokens = np.full((self._batch_size, length), self._pad_id, np.int32)
    for row, ids in enumerate(encoded):
      tokens[row, : min(len(ids), length)] = ids[:length]
    embeddings, kinds = self._cf_features(requests)
    soft_token_id = self._vocabulary.soft_token_id
    if soft_token_id is not None:
      check_soft_tokens(
        tokens[: len(requests)], soft_token_id, embeddings.shape[1]
      )
    return {
      'prompt_tokens': tokens,
      'cf_embeddings': embeddings,
      'cf_kind_ids': kinds,
    }

  def _encode(self, request: WritingRequest) -> Sequence[int]:
    if request.prompt_tokens is not None:
      return request.prompt_tokens
    return self._vocabulary.encode_prompt(request.prompt.text)

  def _cf_features(self, requests):
    wanted = [request.cf_ids() for request in requests]
    count = len(wanted[0])
    if any(len(ids) != count for ids in wanted):
      raise UserError(
        'one batch mixes prompts with different numbers of CF vectors: '
        f'{sorted({len(ids) for ids in wanted})}'
      )
    if count and self._cf_lookup is None:
      raise UserError(
        f'the prompt has {count} soft tokens but the model has no CF tables'
      )
    width = len(self._cf_lookup(wanted[0][0][0], '')) if count else 0
    embeddings = np.zeros((self._batch_size, count, width), np.float32)
    kinds = np.zeros((self._batch_size, count), np.int32)
    for row, (request, ids) in enumerate(zip(requests, wanted)):
      for column, (kind, id_) in enumerate(ids):
        given = request.user_vector if kind == 'user' else None
        embeddings[row, column] = (
          self._cf_lookup(kind, id_) if given is None else given
        )
        kinds[row, column] = _KIND_IDS[kind]
    return embeddings, kinds

  def _texts(self, sampled, rows: int) -> Iterator[Written]:
    for row in range(rows):
      length = int(sampled.response_mask[row].sum())
      tokens = [int(t) for t in sampled.response_tokens[row, :length]]
      logps = [float(p) for p in sampled.logps[row, :length]]
      yield Written(self._vocabulary.decode(tokens), tokens, logps)
