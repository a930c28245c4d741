"""Configurations as JSON: frozen dataclasses out and back, nested ones too.

Where a field may hold one of several dataclasses, each has a `family` field,
whose default tells it from the others; a value that names none is the first.
"""

import dataclasses
import json
import types
import typing
from typing import Any, Self

from p4lm.errors import UserError


class JsonConfig:
  """Gives a dataclass `to_json` and a strict `from_json`."""

  def to_json(self) -> str:
    """The fields as indented JSON, in order of declaration."""
    return json.dumps(dataclasses.asdict(self), indent=2) + '\n'

  @classmethod
  def from_json(cls, text: str) -> Self:
    """The configuration that `to_json` wrote.

    Raises:
      UserError: no JSON object, or a field that this class does not have or
        that has no default and is missing.
    """
    try:
      values = json.loads(text)
    except json.JSONDecodeError as error:
      raise UserError(f'{cls.__name__}: not JSON: {error}.') from error
    return _from_dict(cls, values)


def _from_dict(cls: type, values: Any) -> Any:
  if not isinstance(values, dict):
    raise UserError(
      f'{cls.__name__}: expected a JSON object, got {type(values).__name__}.'
    )
  fields = {field.name: field for field in dataclasses.fields(cls)}
  unknown = sorted(set(values) - set(fields))
  missing = sorted(
    name
    for name, field in fields.items()
    if name not in values and field.default is dataclasses.MISSING
  )
  if unknown or missing:
    raise UserError(
      f'{cls.__name__}: unknown fields {unknown}, missing fields {missing};'
      f' it has {", ".join(fields)}.'
    )
  hints = typing.get_type_hints(cls)
  return cls(**{k: _restore(hints[k], v) for k, v in values.items()})


def _restore(hint: Any, value: Any) -> Any:
  classes = [o for o in _options(hint) if dataclasses.is_dataclass(o)]
  if classes and value is not None:
    return _from_dict(_of_family(classes, value), value)
  for option in _options(hint):
    if typing.get_origin(option) is tuple and value is not None:
      return tuple(value)
  return value


def _of_family(classes: list[type], value: Any) -> type:
  """The class whose `family` the value names; the first without a name."""
  if len(classes) == 1 or not isinstance(value, dict):
    return classes[0]
  by_family = {option.family: option for option in classes}
  family = value.get('family', classes[0].family)
  if family not in by_family:
    raise UserError(
      f'family is {family!r}; this version knows {", ".join(by_family)}.'
    )
  return by_family[family]


def _options(hint: Any) -> tuple[Any, ...]:
  if isinstance(hint, types.UnionType) or typing.get_origin(hint) is (
    typing.Union
  ):
    return typing.get_args(hint)
  return (hint,)
