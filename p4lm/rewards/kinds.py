"""The four learned rewards of P4LM: their names and what each one reads.

nli              does the plot entail what the text claims?
appeal           is the text appealing by itself?
personalization  does the text sell the item to this user?
relevance        is it close to what this user likes about such items?
"""

from __future__ import annotations

from collections.abc import Callable

from p4lm.data import prompts
from p4lm.errors import UserError
from p4lm.rewards.terms import RewardRequest

CLASSIFIED = ('nli',)
PAIRWISE = ('appeal', 'personalization')
REGRESSED = ('relevance',)
REWARD_KINDS = CLASSIFIED + PAIRWISE + REGRESSED

PromptBuilder = Callable[[RewardRequest], prompts.Prompt | None]


def check_kind(kind: str) -> None:
  """Raises UserError for anything but one of REWARD_KINDS."""
  if kind not in REWARD_KINDS:
    raise UserError(
      f'a reward model must be one of {", ".join(REWARD_KINDS)}, got {kind!r}'
    )


def prompt_builder(kind: str, *, tokens_per_vector: int = 1) -> PromptBuilder:
  """How a reward model of this kind is asked, as in its training task.

  The builder returns None for a request that it cannot ask about: an item
  without a plot says nothing of what is true of it.

  Args:
    kind: one of REWARD_KINDS.
    tokens_per_vector: soft tokens of each CF vector.
  Raises:
    UserError: an unknown kind; the builder, for a request without its item.
  """
  check_kind(kind)

  def build(request: RewardRequest) -> prompts.Prompt | None:
    if kind == 'appeal':
      return prompts.appeal_prompt()
    if request.item is None:
      raise UserError(
        f'the {kind} reward needs the item {request.item_id!r} of a request'
      )
    if kind == 'nli':
      plot = request.item['plot']
      return prompts.nli_prompt(plot) if plot else None
    if kind == 'personalization':
      return prompts.personalization_prompt(request.item, tokens_per_vector)
    return prompts.relevance_prompt(request.item, tokens_per_vector)

  return build
