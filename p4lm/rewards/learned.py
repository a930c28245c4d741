"""Reward terms that are trained models."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx

from p4lm.data.prompts import Prompt, clean_text
from p4lm.errors import UserError
from p4lm.models.adapter import CF_KINDS
from p4lm.models.soft_tokens import check_soft_tokens
from p4lm.partitioning.mesh import make_mesh
from p4lm.rewards import outputs
from p4lm.rewards.outputs import RewardOutput
from p4lm.rewards.terms import RewardRequest, TermValues
from p4lm.rewards.text_encoding import CachingEncoder, repeats_of_each

OVERLONG = ('cut_end', 'invalid')


class VocabularyLike(Protocol):
  """The part of a vocabulary that is needed here."""

  soft_token_id: int
  eos_id: int

  def encode(self, text: str) -> list[int]: ...


@dataclasses.dataclass(frozen=True)
class LearnedTermConfig:
  """How a reward model is run and read.

  Attributes:
    prompt_length: P, the token length that the model was trained with.
    response_length: L, likewise.
    batch_size: texts a forward pass; smaller batches are padded up to it, so
      that one program serves every call.
    length_buckets: shorter prompt lengths to pad to when a whole batch fits,
      each a program of its own (see `LearnedTerm.compile`).
    output: how the score is read; log-odds are divided by `temperature`.
    heads, std_weight: how the heads of an ensemble become one, see
      `RewardOutput`.
    temperature: of a calibration, 1 for none.
    population_mean: subtracted from the model's number. Preferences fix a
      score up to a constant; less its mean over a population of texts, 0 is
      an ordinary text (P4LM, Section 4).
    population: of heads that are coordinates (preference 'general'), the mean
      of a population's; the score is the mean log-odds to be preferred to it.
    tokens_per_vector: soft tokens of each CF vector.
    overlong: a response longer than L is cut at its end and counted
      ('cut_end'), or masked and counted ('invalid'). Prompts longer than P are
      cut and counted.
  """

  prompt_length: int
  response_length: int
  batch_size: int = 128
  length_buckets: tuple[int, ...] = ()
  output: str = 'score'
  heads: str = 'mean'
  std_weight: float = 1.0
  temperature: float = 1.0
  population_mean: float = 0.0
  population: tuple[float, ...] | None = None
  tokens_per_vector: int = 1
  overlong: str = 'cut_end'

  def __post_init__(self):
    self.reward_output  # noqa: B018 - checks its parts
    if self.overlong not in OVERLONG:
      raise UserError(
        f'LearnedTermConfig.overlong must be one of {", ".join(OVERLONG)}, got '
        f'{self.overlong!r}'
      )
    for name in (
      'prompt_length',
      'response_length',
      'batch_size',
      'tokens_per_vector',
    ):
      if getattr(self, name) < 1:
        raise UserError(
          f'LearnedTermConfig.{name} must be 1 or more, got '
          f'{getattr(self, name)}'
        )
    if not np.isfinite(self.population_mean):
      raise UserError(
        'LearnedTermConfig.population_mean must be finite: '
        f'{self.population_mean}'
      )
    if not self.temperature > 0:
      raise UserError(
        f'LearnedTermConfig.temperature must be above 0: {self.temperature}'
      )
    if any(not 0 < b < self.prompt_length for b in self.length_buckets):
      raise UserError(
        f'LearnedTermConfig.length_buckets must be shorter than prompt_length '
        f'{self.prompt_length}, got {self.length_buckets}'
      )

  @property
  def reward_output(self) -> RewardOutput:
    """The parts that say how scores are read."""
    return RewardOutput(self.output, self.heads, self.std_weight)

  @property
  def lengths(self) -> tuple[int, ...]:
    """Every length that a batch may be padded to, ascending."""
    return tuple(sorted({*self.length_buckets, self.prompt_length}))


class LearnedTerm:
  """Judges texts with a trained model.

  Requests become prompts [B, P] and responses [R, L], CF vectors are looked up
  by id, and one compiled program scores fixed-shape batches. Where every
  prompt comes G times in a row, as in a rollout, it is run once (R = B * G).

  Args:
    name: of the term.
    apply_fn: (params, prompt_tokens int [B, P], response_tokens int [R, L],
      cf_embeddings float [B, N, E], cf_kind_ids int [B, N]) -> scores [R], or
      [R, K] of the K heads of an ensemble.
    params: any pytree of arrays. An argument, not a constant of the program,
      so that large models compile quickly.
    config: lengths, batch size, how the score is read.
    vocabulary: encodes texts; its `soft_token_id` is the placeholder and its
      `eos_id` ends a response.
    build_prompt: RewardRequest -> Prompt (see `kinds.prompt_builder`), or None
      for a request that cannot be judged: masked and counted. The request's
      text comes cleaned, so that no placeholder hides in it.
    cf_lookup: (kind, id) -> float [E]; None if prompts have no CF vectors.
    encoder: a `CachingEncoder` of this vocabulary shared with other terms.
    checkpoint: hash of what `params` were read from, told with every answer.
    latent_rewards: (points [R, K], R user ids) -> scores [R], of heads that
      are coordinates which a user's latent makes a score of (preference
      'variational').

  Attributes:
    num_compilations: programs built so far; constant once every length bucket
      has been seen with every G that callers use.
  """

  def __init__(
    self,
    name: str,
    apply_fn: Callable[..., jax.Array],
    params: Any,
    config: LearnedTermConfig,
    *,
    vocabulary: VocabularyLike,
    build_prompt: Callable[[RewardRequest], Prompt | None],
    cf_lookup: Callable[[str, str], np.ndarray] | None = None,
    encoder: CachingEncoder | None = None,
    checkpoint: str = '',
    latent_rewards: Callable[[np.ndarray, Sequence[str]], np.ndarray]
    | None = None,
  ):
    self.name = name
    self.checkpoint = checkpoint
    self.config = config
    self.num_compilations = 0
    self._params = params
    self._soft_token_id = vocabulary.soft_token_id
    self._eos_id = vocabulary.eos_id
    self._build_prompt = build_prompt
    self._cf_lookup = cf_lookup
    self._latent_rewards = latent_rewards
    self._encoder = encoder or CachingEncoder(vocabulary)

    def counted(params, *inputs):
      # Runs when traced, that is once a compilation.
      self.num_compilations += 1
      return apply_fn(params, *inputs)

    self._scores = jax.jit(counted)

  @classmethod
  def from_model(
    cls, name: str, model: nnx.Module, config: LearnedTermConfig, **sources
  ) -> LearnedTerm:
    """A term of a `RewardModel`, whose `head_scores` are read.

    The keyword arguments are those of the constructor.
    """
    graphdef, params = nnx.split(model)

    def apply_fn(params, *inputs):
      return nnx.merge(graphdef, params).head_scores(*inputs)

    return cls(name, apply_fn, params, config, **sources)

  def __call__(self, requests: Sequence[RewardRequest]) -> TermValues:
    """Values float32 [R] of R texts.

    The counts tell responses and prompts that were cut (`truncated`,
    `truncated_prompts`) and requests `without_prompt`.

    Raises:
      UserError: prompts of one batch differ in their kinds of CF vectors, CF
        vectors are wanted and there is no table, or placeholders and vectors
        do not match.
    """
    requests = [
      dataclasses.replace(request, text=clean_text(request.text))
      for request in requests
    ]
    prompts = [self._build_prompt(request) for request in requests]
    asked = np.array([prompt is not None for prompt in prompts], bool)
    values = np.zeros(len(requests), np.float32)
    spread = np.zeros(len(requests), np.float32)
    valid = asked.copy()
    counts = {'without_prompt': int((~asked).sum())}
    if asked.any():
      values[asked], spread[asked], valid[asked], more = self._judge(
        [prompt for prompt in prompts if prompt is not None],
        [request for request, kept in zip(requests, asked) if kept],
      )
      counts |= more
    return TermValues(
      values, valid, counts, checkpoint=self.checkpoint, spread=spread
    )

  def compile(self, request: RewardRequest, repeats: int = 1) -> None:
    """Builds the program of every length bucket, from a typical request.

    Args:
      request: one that can be judged.
      repeats: responses of each prompt in the calls to come; the programs of
        G > 1 are others than those of G = 1. Divides the batch size.
    """
    prompt = self._build_prompt(request)
    if prompt is None:
      raise UserError(
        f'reward term {self.name!r} cannot judge the item {request.item_id!r}; '
        'compile it with another request'
      )
    cf_embeddings, cf_kind_ids = self._cf_vectors([prompt], [request])
    responses = np.zeros((repeats, self.config.response_length), np.int32)
    for length in self.config.lengths:
      tokens = np.zeros((1, length), np.int32)
      self._run(repeats, tokens, responses, cf_embeddings, cf_kind_ids)

  def _judge(self, prompts, requests):
    responses, overlong = self._responses(requests)
    user_ids = [request.user_id for request in requests]
    repeats = repeats_of_each(
      [(p, r.user_id, r.item_id) for p, r in zip(prompts, requests)],
      self.config.batch_size,
    )
    prompts, requests = prompts[::repeats], requests[::repeats]
    tokens, cut = self._prompt_tokens(prompts)
    cf_embeddings, cf_kind_ids = self._cf_vectors(prompts, requests)
    check_soft_tokens(
      tokens,
      self._soft_token_id,
      cf_kind_ids.shape[1] * self.config.tokens_per_vector,
    )
    scores = self._run(repeats, tokens, responses, cf_embeddings, cf_kind_ids)
    valid = ~overlong | (self.config.overlong == 'cut_end')
    counts = {
      'truncated': int(overlong.sum()),
      'truncated_prompts': int(cut.sum()) * repeats,
    }
    return *self._read(scores, user_ids), valid, counts

  def _responses(self, requests):
    """int32 [R, L] with EOS, as in training, and bool [R] where cut."""
    length = self.config.response_length
    tokens = np.zeros((len(requests), length), np.int32)
    overlong = np.zeros(len(requests), bool)
    for row, request in enumerate(requests):
      ids = (*self._encoder.encode(request.text), self._eos_id)
      overlong[row] = len(ids) > length
      kept = ids[:length]
      tokens[row, : len(kept)] = kept
    return tokens, overlong

  def _prompt_tokens(self, prompts):
    """int32 [B, bucket], and bool [B] where cut."""
    encoded = [self._encoder.encode(prompt.text) for prompt in prompts]
    limit = self.config.prompt_length
    longest = min(max(len(ids) for ids in encoded), limit)
    length = next(b for b in self.config.lengths if b >= longest)
    tokens = np.zeros((len(encoded), length), np.int32)
    for row, ids in zip(tokens, encoded):
      row[: min(len(ids), length)] = ids[:length]
    return tokens, np.array([len(ids) > limit for ids in encoded])

  def _cf_vectors(self, prompts, requests):
    kinds = tuple(prompts[0].cf_kinds)
    for prompt in prompts:
      if tuple(prompt.cf_kinds) != kinds:
        raise UserError(
          f'reward term {self.name!r}: the prompts of one batch must have the '
          f'same CF vectors, got {kinds} and {tuple(prompt.cf_kinds)}'
        )
    rows = len(prompts)
    if not kinds:
      return np.zeros((rows, 0, 0), np.float32), np.zeros((rows, 0), np.int32)
    if self._cf_lookup is None:
      raise UserError(
        f'reward term {self.name!r} reads {", ".join(kinds)} embeddings: give '
        'it the CF tables that it was trained with'
      )
    vectors = [
      [
        self._cf_lookup(k, r.user_id if k == 'user' else r.item_id)
        for k in kinds
      ]
      for r in requests
    ]
    kind_ids = np.array([CF_KINDS.index(k) for k in kinds], np.int32)
    return np.asarray(vectors, np.float32), np.tile(kind_ids, (rows, 1))

  def _run(self, repeats, tokens, responses, cf_embeddings, cf_kind_ids):
    """Scores [R] of B prompts with `repeats` responses each."""
    size = self.config.batch_size // repeats
    pending = []
    for start in range(0, len(tokens), size):
      part = slice(start, start + size)
      rows = slice(start * repeats, (start + size) * repeats)
      batch = [
        _padded(tokens[part], size),
        _padded(responses[rows], size * repeats),
        _padded(cf_embeddings[part], size),
        _padded(cf_kind_ids[part], size),
      ]
      # Not read yet, so the next batch is prepared while this one runs.
      with _mesh_of(self._params):
        pending.append(self._scores(self._params, *batch))
    scores = np.concatenate([np.asarray(p, np.float32) for p in pending])
    return scores[: len(responses)]

  def _read(self, scores, user_ids):
    """Values [R] and the heads' spread [R]."""
    if scores.ndim == 1:
      scores = scores[:, None]
    if self._latent_rewards is not None:
      score = self._latent_rewards(scores, user_ids)
      spread = np.zeros_like(score)
    elif self.config.population is not None:
      score = outputs.against_population(scores, self.config.population)
      spread = np.zeros_like(score)
    else:
      score, spread = outputs.combined(scores, self.config.reward_output)
    score = score - np.float32(self.config.population_mean)
    value = outputs.read(score, self.config.output, self.config.temperature)
    return value, spread


def _mesh_of(params):
  """In place of the mesh of a training, that of the device with the judge.

  A judge lies on one device whole, and a program does not mix devices.
  """
  arrays = [x for x in jax.tree.leaves(params) if isinstance(x, jax.Array)]
  devices = arrays[0].devices() if arrays else set()
  if jax.sharding.get_mesh().empty or len(devices) != 1:
    return contextlib.nullcontext()
  return jax.set_mesh(make_mesh('data=1', devices=list(devices)))


def _padded(array, rows):
  missing = rows - len(array)
  if not missing:
    return array
  # Repeats the last row: real tokens keep a padded row's softmax finite.
  return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])
