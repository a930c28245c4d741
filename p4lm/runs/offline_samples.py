"""Responses that any policy or person wrote, as rollouts for a replay.

A JSON line each: `user_id`, `item_id`, `reward`, and `tokens` (ids, EOS
included) or `text`. The `samples.jsonl` of a `train_rl` run is such a file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from p4lm.data.vocabulary import Vocabulary
from p4lm.errors import UserError
from p4lm.ops.masks import response_mask_of
from p4lm.rl.learner import Learner
from p4lm.rl.off_policy import OffPolicyLearner
from p4lm.rl.rollouts import Rollout

Rows = Sequence[Mapping[str, object]]


def offline_rollouts(
  path: str | os.PathLike,
  *,
  features_of: Callable[[Rows], Mapping[str, np.ndarray]],
  batch_size: int,
  response_length: int,
  vocabulary: Vocabulary,
) -> Iterator[Rollout]:
  """Rollouts of one sample a prompt, `batch_size` rows each.

  A text becomes its pieces and EOS. What is longer than L is cut and then has
  no EOS. Log-probabilities are zero: what follows uses none. Rows with `valid`
  false are left out; the last rollout is filled up with rows that are not
  valid.

  Args:
    path: of the file.
    features_of: prompt features of that many rows, `batch_size` of them at
      least after its own padding.
    batch_size: rows a rollout.
    response_length: L.
    vocabulary: encodes texts.
  Raises:
    UserError: a line that is none such; the message has its number.
  """
  rows = [
    row
    for number, row in _lines(Path(path))
    if _checked(row, f'{path} line {number}')
  ]
  if not rows:
    raise UserError(f'offline samples {path}: no row is valid')
  for start in range(0, len(rows), batch_size):
    chunk = rows[start : start + batch_size]
    yield _rollout(
      chunk, features_of(chunk), batch_size, response_length, vocabulary
    )


def observe(learner: Learner, rollouts: Iterator[Rollout]) -> None:
  """Fills a replay; one that a checkpoint has takes its place later.

  Raises:
    UserError: the algorithm has no replay.
  """
  if not isinstance(learner, OffPolicyLearner):
    raise UserError(
      'offline_samples need an algorithm with a replay, such as SacConfig or '
      'SoftOptimalConfig'
    )
  for rollout in rollouts:
    learner.observe(rollout)


def _lines(path: Path) -> Iterator[tuple[int, object]]:
  try:
    text = path.read_text(encoding='utf-8')
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f'offline samples {path}: {error}') from error
  for number, line in enumerate(text.splitlines(), start=1):
    if line.strip():
      try:
        yield number, json.loads(line)
      except json.JSONDecodeError as error:
        raise UserError(f'{path} line {number}: not JSON ({error})') from error


def _checked(row: object, where: str) -> bool:
  """Whether a row is to be learned from; raises if it cannot be."""
  if not isinstance(row, dict):
    raise UserError(f'{where}: a sample is a JSON object')
  if row.get('valid', True) is False:
    return False
  reward = row.get('reward')
  if isinstance(reward, bool) or not isinstance(reward, int | float):
    raise UserError(f'{where}: `reward` must be a number, got {reward!r}')
  if not math.isfinite(reward):
    raise UserError(f'{where}: `reward` must be finite, got {reward}')
  for name in ('user_id', 'item_id'):
    if not isinstance(row.get(name), str):
      raise UserError(f'{where}: `{name}` must be a text')
  tokens = row.get('tokens')
  is_ids = isinstance(tokens, list) and all(
    isinstance(token, int) and token >= 0 for token in tokens
  )
  if not is_ids and not isinstance(row.get('text'), str):
    raise UserError(f'{where}: `tokens` (a list of ids) or `text` is missing')
  return True


def _rollout(rows, features, batch_size, length, vocabulary) -> Rollout:
  tokens = np.zeros((batch_size, length), np.int32)
  there = np.zeros((batch_size, length), bool)
  rewards = np.zeros(batch_size, np.float32)
  given = np.arange(batch_size) < len(rows)
  for index, row in enumerate(rows):
    ids = row.get('tokens')
    if ids is None:
      ids = [*vocabulary.encode(row['text']), vocabulary.eos_id]
    ids = ids[:length]
    tokens[index, : len(ids)] = ids
    there[index, : len(ids)] = True
    rewards[index] = row['reward']
  logps = np.zeros((batch_size, length), np.float32)
  return Rollout(
    **features,
    response_tokens=tokens,
    response_mask=there & _up_to_eos(tokens, vocabulary.eos_id),
    behavior_logps=logps,
    reference_logps=logps,
    rewards=rewards,
    valid=given,
  )


def _up_to_eos(tokens: np.ndarray, eos_id: int) -> np.ndarray:
  return np.asarray(response_mask_of(jnp.asarray(tokens), eos_id))
