"""How far other reward checkpoints agree with one on its held-out texts."""

from __future__ import annotations

import os
from collections.abc import Mapping

from p4lm.errors import UserError
from p4lm.rewards.terms import evaluate_term
from p4lm.runs.held_out_texts import held_out_requests
from p4lm.runs.model_directory import read_card
from p4lm.runs.reward_evaluation import ScoredSplit, agreement
from p4lm.runs.reward_report import population_mean
from p4lm.runs.reward_terms import load_reward_terms


def check_others(others: Mapping[str, str]) -> None:
  """Raises UserError unless all are directories of finished rewards.

  Early: a training takes long.
  """
  for name, directory in others.items():
    card = read_card(directory)
    if card.kind != 'reward':
      raise UserError(
        f'OTHERS: {name} in {directory} is a {card.kind}, not a reward model'
      )
    population_mean(directory)


def agreement_with(
  others: Mapping[str, str],
  kind: str,
  data_dir: str | os.PathLike,
  judged: tuple[str, ScoredSplit],
  batch_size: int,
) -> dict[str, dict]:
  """Figures by name of the other reward, see `reward_evaluation.agreement`.

  A reward that cannot judge these texts (they have no plot or no user) has a
  `problem` in place of figures.

  Args:
    others: {name: directory of train_reward}.
    kind: of the reward that was trained.
    data_dir: tables that its task was made from.
    judged: name of the split that judges it, and its scores.
    batch_size: texts a forward pass.
  Raises:
    UserError: the task is not that of the tables.
  """
  if not others:
    return {}
  split, scored = judged
  requests = held_out_requests(data_dir, kind, split)
  texts = sum(len(scores) for scores in scored.scores)
  if len(requests) != texts:
    raise UserError(
      f'OTHERS: the tables in {data_dir} have {len(requests)} {kind} texts in '
      f'split {split} and the task {texts}; leave OTHERS out for tasks of your '
      'own'
    )
  found = {}
  for name, directory in others.items():
    other = read_card(directory).config['kind']
    [term] = load_reward_terms({other: directory}, batch_size=batch_size)
    try:
      answer = evaluate_term(term, requests)
    except UserError as error:
      found[name] = {'count': 0, 'problem': str(error)}
      continue
    found[name] = agreement(kind, scored, answer.values, answer.valid)
  return found
