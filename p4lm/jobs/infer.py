"""Batch inference: JSON lines in, JSON lines out, in order, resumable.

A request has a `custom_id` and
  generate  a prompt (`prompt`, `prompt_tokens`, or `item_id` and a `user_id` or
            a `history`: a list of {"item_id", "rating"}); `weights` of the
            rewards for a policy that is told them
  score     a prompt and a `response` or `response_tokens`
  reward    `user_id`, `item_id` and a `response`
A request that cannot be answered gets an `error`; the others go on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from p4lm import output_directory
from p4lm.cf.histories import HistoryEmbedder
from p4lm.data.catalogue import Catalogue
from p4lm.data.prompts import SOFT, Prompt
from p4lm.decoding.sampler import SamplerConfig
from p4lm.decoding.scoring import score
from p4lm.errors import UserError
from p4lm.rewards.terms import RewardRequest, evaluate_term
from p4lm.runs.jsonl import AnswerFile, read_requests
from p4lm.runs.model_directory import LoadedModel, load_model
from p4lm.runs.reward_sources import check_reward_sources
from p4lm.runs.reward_terms import load_reward_terms
from p4lm.runs.task_prompts import with_weights, writing_request
from p4lm.writers.checkpoint import CheckpointWriter, WritingRequest

MODES = ('generate', 'score', 'reward')
Answer = Callable[[Sequence[dict], int], list[dict]]


def infer(
  *,
  input_file: str,
  output_dir: str,
  mode: str,
  checkpoint: str | None = None,
  rewards: Mapping[str, str] | None = None,
  data_dir: str | None = None,
  task: str | None = None,
  weights: Mapping[str, float] | None = None,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  greedy: bool = False,
  num_samples: int = 1,
  prompt_length: int | None = None,
  response_length: int | None = None,
  batch_size: int = 64,
  seed: int = 0,
) -> None:
  """Answers every request of a file; run again, it goes on where it stopped.

  Args:
    input_file: JSON lines.
    output_dir: gets `outputs.jsonl`: custom_id, text, tokens, logps (and
      samples, for several a prompt), or rewards by term, or error.
    mode: 'generate', 'score' or 'reward'.
    checkpoint: model directory for generate and score; for reward, of the
      policy that wrote the responses, if the rewards are to be checked to be
      of its tokenizer and CF embeddings.
    rewards: {kind: train_reward directory} for reward.
    data_dir: tables, for requests by user_id and item_id.
    task: the prompts' task; the checkpoint's by default.
    weights: {term: number} that a policy of `runs/train_rl_conditioned.gin` is
      told, for requests that have no `weights` of their own.
    temperature, top_k, top_p, greedy: of sampling.
    num_samples: responses a prompt.
    prompt_length, response_length: P and L in tokens; the checkpoint's by
      default.
    batch_size: requests at a time.
    seed: of sampling; an answer depends on it and on the request's place.
  Raises:
    UserError: a bad file, mode or checkpoint.
  """
  if mode not in MODES:
    raise UserError(f'MODE must be one of {", ".join(MODES)}, got {mode!r}')
  requests = read_requests(Path(input_file))
  directory = output_directory.claim(output_dir)
  answers = AnswerFile(directory / 'outputs.jsonl', requests)
  catalogue = Catalogue.load(data_dir) if data_dir is not None else None
  if mode == 'reward':
    answer = _reward_answers(rewards, checkpoint, catalogue, batch_size)
  else:
    model = load_model(_needed(checkpoint), kind='recommender')
    sampler = SamplerConfig(
      max_length=response_length or model.card.response_length,
      temperature=temperature,
      top_k=top_k,
      top_p=top_p,
      greedy=greedy,
      num_samples=num_samples,
      stop_ids=model.card.stop_ids,
    )
    writer = CheckpointWriter(
      graphdef=model.graphdef,
      params=model.params,
      vocabulary=model.vocabulary,
      cf_lookup=model.cf_lookup,
      prompt_length=prompt_length or model.card.prompt_length,
      batch_size=batch_size,
      pad_id=model.config.lm.pad_id,
    )
    if weights:
      with_weights(Prompt(''), model, weights)  # Wrong ones end the job here.
    prompts = _Prompts(model, catalogue, task, weights)
    if mode == 'generate':
      answer = _generated(prompts, writer, sampler, jax.random.key(seed))
    else:
      answer = _scored(prompts, writer, model, sampler.max_length)
  if answers.count:
    logging.info('%d of %d answered before', answers.count, len(requests))
  # Batches start at multiples of the batch size whatever was answered before,
  # so that a run in two halves draws what a whole one does.
  first = answers.count - answers.count % batch_size
  for start in tqdm.tqdm(range(first, len(requests), batch_size), mode):
    found = answer(requests[start : start + batch_size], start)
    answers.append(found[answers.count - start :])
  logging.info('%d answers in %s', answers.count, directory / 'outputs.jsonl')


class _Prompts:
  """Turns requests into writing requests, or into errors."""

  def __init__(self, model: LoadedModel, catalogue, task, weights=None):
    self._model, self._catalogue, self._task = model, catalogue, task
    self._weights = weights
    self._embedder: HistoryEmbedder | None = None

  def of(self, rows: Sequence[dict]):
    """{row: WritingRequest} of the good ones and {row: error} of the rest."""
    good, errors = {}, {}
    for row, request in enumerate(rows):
      try:
        good[row] = self._one(request)
      except UserError as error:
        errors[row] = str(error)
    return good, errors

  def _one(self, request: dict) -> WritingRequest:
    ids = {
      name: str(request[name]) if request.get(name) is not None else None
      for name in ('user_id', 'item_id')
    }
    soft = self._model.vocabulary.soft_token_id
    weights = request.get('weights') or self._weights
    if 'prompt_tokens' in request:
      if 'weights' in request:
        raise UserError('prompt_tokens are read as they are: give no weights')
      tokens = tuple(int(t) for t in request['prompt_tokens'])
      _check_ids('prompt_tokens', tokens, self._model)
      count = sum(token == soft for token in tokens)
      return WritingRequest(
        Prompt('', self._kinds(count)), **ids, prompt_tokens=tokens
      )
    if 'prompt' in request:
      count = request['prompt'].count(SOFT)
      prompt = Prompt(request['prompt'], self._kinds(count))
      prompt = with_weights(prompt, self._model, weights)
      tokens = self._model.vocabulary.encode_prompt(prompt.text)
      return WritingRequest(prompt, **ids, prompt_tokens=tuple(tokens))
    if self._catalogue is None:
      raise UserError('a request by user and item_id needs DATA_DIR')
    vector = None
    if 'history' in request:
      if ids['user_id'] is not None:
        raise UserError('give a user_id or a history, not both')
      vector = self._histories().embed(request['history'])
    return writing_request(
      self._model,
      self._catalogue,
      ids['user_id'],
      ids['item_id'],
      self._task,
      user_vector=vector,
      weights=weights,
    )

  def _histories(self) -> HistoryEmbedder:
    model = self._model
    if self._embedder is None:
      if model.cf_tables is None:
        raise UserError('this model reads no CF vectors: give a user_id')
      self._embedder = HistoryEmbedder(model.card.cf_dir, model.cf_tables)
    return self._embedder

  def _kinds(self, placeholders: int) -> tuple[str, ...]:
    """Placeholders of a free prompt stand for the user, then the item."""
    count = placeholders // self._model.tokens_per_vector
    if count > 2:
      raise UserError(f'a prompt has at most 2 CF vectors, got {count}')
    return ('user', 'item')[:count]


def _generated(prompts, writer, sampler, key) -> Answer:
  def answer(rows, start):
    good, errors = prompts.of(rows)
    found = _by_kinds(
      good,
      lambda part: list(
        writer.write(part, sampler, jax.random.fold_in(key, start))
      ),
      sampler.num_samples,
    )
    answers = []
    for row, request in enumerate(rows):
      base = {'custom_id': request['custom_id']}
      if row in errors:
        answers.append({**base, 'error': errors[row]})
        continue
      samples = [vars(written) for written in found[row]]
      more = {'samples': samples} if len(samples) > 1 else {}
      answers.append({**base, **samples[0], **more, 'error': None})
    return answers

  return answer


def _by_kinds(good: dict[int, WritingRequest], write, num_samples: int):
  """Writes requests with the same CF vectors together; {row: [Written]}."""
  groups: dict[tuple, list[int]] = {}
  for row, request in good.items():
    groups.setdefault(request.prompt.cf_kinds, []).append(row)
  found = {}
  for rows in groups.values():
    written = write([good[row] for row in rows])
    for place, row in enumerate(rows):
      found[row] = written[place * num_samples : (place + 1) * num_samples]
  return found


def _scored(prompts, writer, model, length) -> Answer:
  def answer(rows, start):
    del start
    good, errors = prompts.of(rows)
    responses = {}
    for row in list(good):
      try:
        responses[row] = _response_tokens(rows[row], model, length)
      except UserError as error:
        errors[row] = str(error)
        del good[row]
    groups: dict[tuple, list[int]] = {}
    for row, request in good.items():
      groups.setdefault(request.prompt.cf_kinds, []).append(row)
    logps = {}
    for members in groups.values():
      logps |= _score_group(members, good, responses, writer, model, length)
    return [
      {'custom_id': request['custom_id'], 'error': errors[row]}
      if row in errors
      else {
        'custom_id': request['custom_id'],
        'text': model.vocabulary.decode(responses[row]),
        'tokens': responses[row],
        'logps': logps[row],
        'error': None,
      }
      for row, request in enumerate(rows)
    ]

  return answer


def _score_group(members, good, responses, writer, model, length):
  batch = writer.features([good[row] for row in members])
  tokens = np.zeros((len(batch['prompt_tokens']), length), np.int32)
  mask = np.zeros(tokens.shape, bool)
  for place, row in enumerate(members):
    count = len(responses[row])
    tokens[place, :count], mask[place, :count] = responses[row], True
  logps = np.asarray(
    score(
      model.graphdef,
      model.params,
      {name: jnp.asarray(value) for name, value in batch.items()},
      tokens,
      mask,
    )
  )
  return {
    row: [float(p) for p in logps[place, : len(responses[row])]]
    for place, row in enumerate(members)
  }


def _response_tokens(request: dict, model: LoadedModel, length: int):
  if 'response_tokens' in request:
    tokens = [int(token) for token in request['response_tokens']]
  elif 'response' in request:
    tokens = model.vocabulary.encode(request['response'])
    tokens.append(model.vocabulary.eos_id)
  else:
    raise UserError('score needs a response or response_tokens')
  _check_ids('response_tokens', tokens, model)
  if len(tokens) > length:
    raise UserError(
      f'the response has {len(tokens)} tokens, more than RESPONSE_LENGTH '
      f'{length}'
    )
  return tokens


def _check_ids(name: str, tokens, model: LoadedModel) -> None:
  size = model.config.lm.vocab_size
  if not tokens or min(tokens) < 0 or max(tokens) >= size:
    raise UserError(f'{name} are empty or outside of the {size} ids')


def _reward_answers(rewards, checkpoint, catalogue, batch_size) -> Answer:
  if not rewards or catalogue is None:
    raise UserError(
      "mode 'reward' needs DATA_DIR and --gin.REWARDS={'nli': DIRECTORY, ...}"
    )
  policies = {} if checkpoint is None else {'CHECKPOINT': checkpoint}
  check_reward_sources(rewards, policies)
  terms = load_reward_terms(rewards, batch_size=batch_size)

  def answer(rows, start):
    del start
    good, errors = {}, {}
    for row, request in enumerate(rows):
      try:
        good[row] = _reward_request(request, catalogue)
      except UserError as error:
        errors[row] = str(error)
    found = {
      term.name: evaluate_term(term, list(good.values())) for term in terms
    }
    answers = {row: {'error': message} for row, message in errors.items()}
    for place, row in enumerate(good):
      answers[row] = {
        'rewards': {
          name: float(v.values[place]) if v.valid[place] else None
          for name, v in found.items()
        },
        'error': None,
      }
    return [
      {'custom_id': request['custom_id'], **answers[row]}
      for row, request in enumerate(rows)
    ]

  return answer


def _reward_request(request: dict, catalogue: Catalogue) -> RewardRequest:
  missing = [n for n in ('response', 'user_id', 'item_id') if n not in request]
  if missing:
    raise UserError(f'a reward request needs {", ".join(missing)}')
  user_id, item_id = str(request['user_id']), str(request['item_id'])
  return RewardRequest(
    text=request['response'],
    item_id=item_id,
    user_id=user_id,
    item=catalogue.item(item_id),
    preferences=tuple(catalogue.preferences(user_id)),
  )


def _needed(checkpoint: str | None) -> str:
  if checkpoint is None:
    raise UserError('infer needs --gin.CHECKPOINT=... of a language model')
  return checkpoint
