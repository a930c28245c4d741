"""The prompt that a task shows for a user and an item."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from p4lm.data import prompts
from p4lm.data.catalogue import Catalogue
from p4lm.errors import UserError
from p4lm.runs.model_directory import LoadedModel
from p4lm.writers.checkpoint import WritingRequest

_KINDS = ('pitch', 'pitch_text', 'item_plot', 'user_preferences')


def writing_request(
  model: LoadedModel,
  catalogue: Catalogue,
  user_id: str | None,
  item_id: str | None,
  task: str | None = None,
  user_vector: np.ndarray | None = None,
  weights: Mapping[str, float] | None = None,
) -> WritingRequest:
  """What `model` is asked in order to write for this user about this item.

  Args:
    model: decides the task, unless `task` is given.
    catalogue: finds the item's texts and the user's preferences.
    user_id, item_id: the tasks that need one of them say so.
    task: a name such as 'movielens_pitch'; the data set's name before the
      first underscore does not matter.
    user_vector: of a user without an id, for tasks that read CF vectors.
    weights: {term: number} that a conditioned policy is to follow.
  Raises:
    UserError: an unknown id, a missing one, a task without prompts, or weights
      that do not fit the model.
  """
  task = task or model.card.task
  kind = task.partition('_')[2]
  soft = {'tokens_per_vector': model.tokens_per_vector}
  if kind not in _KINDS:
    raise UserError(
      f'task {task!r} writes no text for a user and an item; '
      f'it must end in one of {", ".join(_KINDS)}'
    )
  if kind != 'user_preferences' and item_id is None:
    raise UserError(f'task {task!r} needs an item_id')
  if user_vector is not None and kind == 'pitch_text':
    raise UserError(
      f'task {task!r} reads preference bullets, which a history does not give; '
      'it needs a user_id'
    )
  if kind != 'item_plot' and user_id is None and user_vector is None:
    raise UserError(f'task {task!r} needs a user_id or a history')
  if kind == 'pitch':
    prompt = prompts.pitch_prompt(catalogue.item(item_id), **soft)
  elif kind == 'pitch_text':
    prompt = prompts.pitch_text_prompt(
      catalogue.item(item_id), catalogue.preferences(user_id)
    )
  elif kind == 'item_plot':
    prompt = prompts.plot_prompt(**soft)
  else:
    prompt = prompts.preferences_prompt(**soft)
  prompt = with_weights(prompt, model, weights)
  return WritingRequest(prompt, user_id, item_id, user_vector=user_vector)


def with_weights(
  prompt: prompts.Prompt,
  model: LoadedModel,
  weights: Mapping[str, float] | None,
) -> prompts.Prompt:
  """The prompt as a policy is asked that is conditioned on weights, if it is.

  Raises:
    UserError: weights that the policy does not know, none for one that needs
      them, or any for another model.
  """
  if model.weighted is not None:
    return prompts.weighted_prompt(prompt, model.weighted.of(weights))
  if weights:
    raise UserError(
      f'CHECKPOINT {model.directory} follows no weights: it was trained on one '
      'weighting (see runs/train_rl_conditioned.gin); give none'
    )
  return prompt
