"""What reward models must share with the policies that they judge.

A reward of another CF fit looks a user up in its own table and answers about a
vector that the policy never saw; nothing would fail, and the figures would mean
little. Cards tell, so this is asked before anything is loaded or generated.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from p4lm.errors import UserError
from p4lm.rewards.terms import RewardTerm
from p4lm.runs.model_directory import ModelCard, read_card


def check_reward_sources(
  rewards: Mapping[str, str | os.PathLike | RewardTerm | Callable],
  policies: Mapping[str, str | os.PathLike],
) -> None:
  """Refuses rewards of another tokenizer or of other CF embeddings.

  Policies and rewards of text alone have no CF embeddings to differ in, and
  models that take token ids have no tokenizer. Rewards that read CF embeddings
  must all read the same ones.

  Args:
    rewards: {kind: train_reward directory}; functions and terms of your own
      are not looked at.
    policies: {name: directory} of the models whose texts are judged.
  Raises:
    UserError: a directory has no card, is of no reward or of another kind, or
      differs in its tokenizer or CF embeddings; the message names both.
  """
  cards = {
    kind: (directory, _reward_card(kind, directory))
    for kind, directory in rewards.items()
    if not callable(directory)
  }
  judged = [
    (f'{name} in {directory}', read_card(directory))
    for name, directory in policies.items()
  ]
  for kind, (directory, card) in cards.items():
    reward = f'reward {kind!r} in {directory}'
    for policy, of in judged:
      _check_vocabulary(reward, card, policy, of)
      _check_cf(reward, card, policy, of)
  _check_one_cf(cards)


def _reward_card(kind: str, directory) -> ModelCard:
  card = read_card(directory)
  if card.kind != 'reward':
    raise UserError(
      f'reward {kind!r}: {directory} holds a {card.kind} model; give the '
      'OUTPUT_DIR of a train_reward run'
    )
  if card.config['kind'] != kind:
    raise UserError(
      f'reward {kind!r}: {directory} holds a {card.config["kind"]!r} reward'
    )
  return card


def _check_vocabulary(reward, card, policy, of) -> None:
  hashes = (card.vocabulary_sha256, of.vocabulary_sha256)
  if None not in hashes and hashes[0] != hashes[1]:
    raise UserError(
      f'{reward} speaks another vocabulary than {policy} '
      f'({_short(*hashes)}); train it on the same DATA_DIR'
    )


def _check_cf(reward, card, policy, of) -> None:
  hashes = (card.cf_sha256, of.cf_sha256)
  if None not in hashes and hashes[0] != hashes[1]:
    raise UserError(
      f'{reward} reads other CF embeddings than {policy} ({_short(*hashes)}): '
      f'it would judge by other tastes. Train it with --gin.CF_DIR={of.cf_dir}'
    )


def _check_one_cf(cards) -> None:
  """Also where no policy says which embeddings are right."""
  readers = [
    (f'reward {kind!r} in {directory}', card)
    for kind, (directory, card) in cards.items()
    if card.cf_sha256 is not None
  ]
  for reward, card in readers[1:]:
    _check_cf(reward, card, *readers[0])


def _short(first: str, second: str) -> str:
  return f'sha256 {first[:12]} and {second[:12]}'
