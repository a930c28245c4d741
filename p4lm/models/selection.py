"""Which parameters train: one filter drives everything that depends on it.

A filter is what nnx.split and nnx.state take. The optimizer, the gradient, the
checkpoint's items and the frozen column of a model's description all use the
filter that `trainable` gives for a stage.
"""

import re
from collections.abc import Callable
from typing import Any

from flax import nnx

from p4lm.errors import UserError

# P4LM's warm start trains the adapters alone, then everything, or LoRA with
# the adapters.
STAGES = {
  'adapters': nnx.All(nnx.Param, nnx.PathContains('adapters')),
  'full': nnx.Param,
  'lora': nnx.Any(
    nnx.LoRAParam, nnx.All(nnx.Param, nnx.PathContains('adapters'))
  ),
}


def trainable(stage: str) -> Any:
  """The filter of the parameters that a training stage changes.

  Args:
    stage: 'adapters', 'full', 'lora', or 're:' and a regular expression that
      is searched for in parameter names such as
      'lm/encoder/layers/attention/query/kernel'.

  Raises:
    UserError: another stage, or no regular expression.
  """
  if stage in STAGES:
    return STAGES[stage]
  if stage.startswith('re:'):
    try:
      pattern = re.compile(stage[3:])
    except re.error as error:
      raise UserError(f'Stage {stage!r}: {error}.') from error
    return nnx.All(nnx.Param, _path_matches(pattern))
  raise UserError(
    f'Stage {stage!r} is unknown; use {", ".join(STAGES)}, or re: and a'
    ' regular expression over parameter names.'
  )


def split_trainable(
  model: nnx.Module, stage: str
) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
  """Splits a model into its definition, trainable and frozen parameters.

  nnx.merge(graphdef, trainable, frozen) is the model again.

  Raises:
    UserError: an unknown stage, or one that selects nothing.
  """
  graphdef, chosen, frozen = nnx.split(model, trainable(stage), ...)
  if not nnx.to_flat_state(chosen):
    raise UserError(
      f'Stage {stage!r} selects no parameter of this model; the adapters'
      ' stage needs an AdapterConfig, the lora stage apply_lora.'
    )
  return graphdef, chosen, frozen


def parameter_name(path: tuple[Any, ...]) -> str:
  """A parameter's name, its path joined by slashes."""
  return '/'.join(str(part) for part in path)


def _path_matches(
  pattern: re.Pattern[str],
) -> Callable[[tuple[Any, ...], Any], bool]:
  return lambda path, _: pattern.search(parameter_name(path)) is not None
