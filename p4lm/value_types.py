"""Whether a value that a user wrote is of the kind that a parameter takes."""

from __future__ import annotations

import collections.abc
import os
import types
import typing
from typing import Any

_WORDS = {
  bool: 'True or False',
  int: 'a whole number',
  float: 'a number',
  str: 'a text',
  type(None): 'None',
  dict: 'a mapping {...}',
  list: 'a list [...]',
}
_MAPPINGS = (dict, collections.abc.Mapping)
_SEQUENCES = (
  list,
  tuple,
  collections.abc.Sequence,
  collections.abc.Collection,
  collections.abc.Iterable,
)


def fits(value: object, annotation: Any) -> bool:
  """False for a literal that the annotation rules out.

  Args:
    value: of a Python literal; what a list or mapping holds is not looked at.
    annotation: a type; one that no literal is of rules nothing out, so that
      what it stands for may be read from a text or a mapping.
  """
  kinds = _kinds(annotation)
  return kinds is None or any(_is_of(value, kind) for kind in kinds)


def describe(annotation: Any) -> str:
  """Such as 'a whole number or None'."""
  return ' or '.join(_WORDS[kind] for kind in _kinds(annotation) or ())


def _kinds(annotation: Any) -> list[type] | None:
  """The kinds of literals that an annotation allows; None for any."""
  origin = typing.get_origin(annotation)
  if origin in (typing.Union, types.UnionType):
    parts = [_kinds(part) for part in typing.get_args(annotation)]
    if any(part is None for part in parts):
      return None
    return list(dict.fromkeys(kind for part in parts for kind in part))
  if origin is typing.Literal:
    return list(dict.fromkeys(type(v) for v in typing.get_args(annotation)))
  plain = origin or annotation
  if plain is None:
    return [type(None)]
  if plain is os.PathLike:
    return [str]
  if plain in _MAPPINGS:
    return [dict]
  if plain in _SEQUENCES:
    return [list]
  return [plain] if plain in _WORDS else None


def _is_of(value: object, kind: type) -> bool:
  if kind is list:
    return isinstance(value, list | tuple)
  if isinstance(value, bool):
    return kind is bool
  return isinstance(value, (int, float) if kind is float else kind)
