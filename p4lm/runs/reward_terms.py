"""Reward checkpoints, and functions of your own, as terms of a joint reward."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from p4lm.errors import UserError
from p4lm.rewards.kinds import CLASSIFIED, prompt_builder
from p4lm.rewards.learned import LearnedTerm, LearnedTermConfig
from p4lm.rewards.outputs import RewardOutput
from p4lm.rewards.sentence_entailment import SentenceEntailment
from p4lm.rewards.terms import CallableTerm, RewardTerm
from p4lm.rewards.text_encoding import CachingEncoder
from p4lm.runs.model_directory import LoadedModel, load_model
from p4lm.runs.reward_report import population, population_mean, temperature
from p4lm.runs.user_latents import UserLatents

# Entailment is read as a probability (P4LM's precision lies in [0, 1]).
_OUTPUTS = {'nli': 'probability'}
_BUCKETS = (32, 48, 64, 96, 128, 192, 256, 384)


def load_reward_terms(
  rewards: Mapping[str, str | os.PathLike | RewardTerm | Callable],
  *,
  batch_size: int = 128,
  outputs: Mapping[str, str | RewardOutput] | None = None,
) -> list[RewardTerm]:
  """One term for each reward, in the order given.

  Args:
    rewards: {kind: train_reward directory}, and {name: function} for rewards
      of your own: a function of one `RewardRequest` that returns a number, or
      a term such as those of `rewards.rules`. From gin: {'mine': @my.reward}.
    batch_size: texts a forward pass.
    outputs: {kind: output}, how a score is read, see `RewardOutput`.
  Raises:
    UserError: a directory holds no reward model, one whose training has not
      ended, or one of another kind; an output of a reward that is not there.
  """
  outputs = {**_OUTPUTS, **(outputs or {})}
  unknown = sorted(set(outputs) - set(rewards) - set(_OUTPUTS))
  if unknown:
    raise UserError(
      f'outputs name rewards that are not there: {", ".join(unknown)}; the '
      f'rewards are {", ".join(rewards)}'
    )
  encoders: dict[str, CachingEncoder] = {}
  terms: list[RewardTerm] = []
  for name, reward in rewards.items():
    if callable(reward):
      terms.append(_callable_term(name, reward))
      continue
    output = outputs.get(name, 'score')
    if isinstance(output, str):
      output = RewardOutput(output)
    if output.sentences != 'whole' and name not in CLASSIFIED:
      raise UserError(
        f'outputs: reward {name!r} has no premise to hold sentences against; '
        "RewardOutput.sentences is for 'nli'"
      )
    term = _learned_term(name, reward, output, batch_size, encoders)
    if output.sentences != 'whole':
      term = SentenceEntailment(term, output.sentences, output.premise_words)
    terms.append(term)
  return terms


def _callable_term(name: str, reward: Callable) -> CallableTerm:
  # What has a name of its own is a term and takes a whole batch.
  is_term = hasattr(reward, 'name')
  return CallableTerm(name, reward, batched=is_term)


def _learned_term(kind, directory, output, batch_size, encoders) -> LearnedTerm:
  model = load_model(directory, kind='reward')
  _check_kind(kind, model)
  length = model.card.prompt_length
  config = LearnedTermConfig(
    prompt_length=length,
    response_length=model.card.response_length,
    batch_size=batch_size,
    length_buckets=tuple(b for b in _BUCKETS if b < length),
    output=output.output,
    heads=output.heads,
    std_weight=output.std_weight,
    temperature=temperature(directory) if output.calibrated else 1.0,
    population_mean=population_mean(directory),
    population=population(directory) if model.config.is_general else None,
    tokens_per_vector=model.tokens_per_vector,
  )
  # Logs of whatever uses the reward then say which one it was.
  print(
    f'reward {kind}: {directory}, step {model.step}, checkpoint '
    f'{model.identity[:12] or "unknown"}'
  )
  hash_ = model.vocabulary.sha256
  return LearnedTerm.from_model(
    kind,
    model.module(),
    config,
    vocabulary=model.vocabulary,
    build_prompt=prompt_builder(
      kind, tokens_per_vector=model.tokens_per_vector
    ),
    cf_lookup=model.cf_lookup,
    encoder=encoders.setdefault(hash_, CachingEncoder(model.vocabulary)),
    checkpoint=model.identity,
    latent_rewards=(
      UserLatents.load(directory) if model.config.is_variational else None
    ),
  )


def _check_kind(kind: str, model: LoadedModel) -> None:
  if model.config.kind != kind:
    raise UserError(
      f'reward {kind!r}: {model.directory} holds a {model.config.kind!r} reward'
    )
