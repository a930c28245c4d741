"""The run-time checker of array annotations that the tests install.

Only annotations that name an array are checked. The others stay free: a test
that hands a wrong option to a function asks for the function's own message,
which a checker in front of it would pre-empt.
"""

from __future__ import annotations

import typing
from collections.abc import Callable

import beartype
import jaxtyping


def check_arrays(function: Callable) -> Callable:
  """Checks the shapes and dtypes of the arrays that a function takes, gives.

  jaxtyping calls this on a function of the same signature, with annotations
  already evaluated, and binds the axis letters around its calls.

  Args:
    function: any function; its annotations are reduced to those checked.
  Returns:
    The function under beartype, or itself when it has no array annotation.
  """
  annotations = getattr(function, '__annotations__', {})
  kept = {
    name: annotation
    for name, annotation in annotations.items()
    if _names_array(annotation)
  }
  if not kept:
    return function
  function.__annotations__ = kept
  return beartype.beartype(function)


def _names_array(annotation: object) -> bool:
  if isinstance(annotation, type):
    try:
      if issubclass(annotation, jaxtyping.AbstractArray):
        return True
    except TypeError:
      # Parametrised generics pass isinstance(type) on Python 3.11.
      pass
  return any(_names_array(part) for part in typing.get_args(annotation))
