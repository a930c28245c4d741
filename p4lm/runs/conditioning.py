"""Policies that are told the weights of their rewards."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping

from p4lm.data.prompts import Prompt, weighted_prompt
from p4lm.errors import UserError
from p4lm.rewards.weightings import Weighted, WeightingConfig
from p4lm.runs.model_directory import (
  AnyVocabulary,
  ModelCard,
  read_card,
  weighted_of,
)


def conditioned(
  card: ModelCard,
  vocabulary: AnyVocabulary,
  weighting: WeightingConfig | None,
  terms: Iterable[str],
) -> ModelCard:
  """The card of a policy about to be trained over many weightings.

  Its prompts grow by the words that tell the weights, so that no plot is cut
  for them. A policy that is conditioned already goes on with its own.

  Args:
    card: of the policy.
    vocabulary: whose tokens prompts are counted in.
    weighting: None for the one weighting of the joint reward.
    terms: those that the joint reward weights.
  Raises:
    UserError: less than two terms, or a policy that was conditioned otherwise.
  """
  before = weighted_of(card)
  if weighting is None:
    if before is not None:
      raise UserError(
        'CHECKPOINT is told the weights of its rewards '
        f'({", ".join(before.terms)}) and this run has none to tell: take '
        '--gin_file=runs/train_rl_conditioned.gin, or another CHECKPOINT'
      )
    return card
  wanted = Weighted(tuple(terms), weighting.levels)
  if before is None:
    return dataclasses.replace(
      card,
      prompt_length=card.prompt_length + _most_tokens(wanted, vocabulary),
      weighted=dataclasses.asdict(wanted),
    )
  if before != wanted:
    raise UserError(
      f'CHECKPOINT is told weights of {", ".join(before.terms)} in '
      f'{before.levels} levels; this run has {", ".join(wanted.terms)} in '
      f'{wanted.levels}. Give it the same REWARDS, JointRewardConfig.weights '
      'and WeightingConfig.levels'
    )
  return card


def check_weights(
  systems: Mapping[str, str | os.PathLike],
  weights: Mapping[str, Mapping[str, float]],
) -> None:
  """Raises UserError unless weights are given to the conditioned alone.

  Args:
    systems: {name: model directory}.
    weights: {name: {term: number}}.
  """
  unknown = sorted(set(weights) - set(systems))
  if unknown:
    raise UserError(
      f'weights name systems that are not there: {", ".join(unknown)}; the '
      f'systems are {", ".join(systems)}'
    )
  for name, directory in systems.items():
    weighted = weighted_of(read_card(directory))
    try:
      if weighted is not None:
        weighted.of(weights.get(name))
      elif weights.get(name):
        raise UserError('it follows no weights; give none')
    except UserError as error:
      raise UserError(f'system {name!r} in {directory}: {error}') from None


def _most_tokens(weighted: Weighted, vocabulary: AnyVocabulary) -> int:
  """Tokens of the longest words about any weighting: one name throughout."""
  return max(
    len(
      vocabulary.encode(
        weighted_prompt(Prompt(''), {name: weighted.levels}).text
      )
    )
    for name in weighted.terms
  )
