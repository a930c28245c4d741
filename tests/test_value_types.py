import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import pytest

from p4lm.value_types import describe, fits


@pytest.mark.parametrize(
  'annotation, right, wrong',
  [
    (int, [0, -3], [True, 1.0, '1', None, [1]]),
    (float, [0, 1.5], [False, '1', None]),
    (bool, [True], [1, 'True']),
    (str, ['', 'a'], [1, None, ['a']]),
    (str | None, ['a', None], [1, False]),
    (int | float, [1, 2.0], ['1']),
    (str | os.PathLike, ['/data'], [7]),
    (Literal['a', 'b'], ['a', 'other words are the reader\'s'], [1]),
    (Sequence[str], [('a',), ['b'], []], ['abc', {'a': 1}, 3]),
    (tuple[int, ...], [(1,), [2]], [1]),
    (Mapping[str, float], [{}, {'a': 1}], ['a', [('a', 1)]]),
    (dict[str, int] | None, [None, {}], ['None']),
    (Any, [1, 'a', None], []),
    (Callable | None, [1, 'a', None], []),
    (os._Environ, ['a', {}], []),
  ],
)  # fmt: skip
def test_a_literal_fits_or_not(annotation, right, wrong):
  for value in right:
    assert fits(value, annotation), value
  for value in wrong:
    assert not fits(value, annotation), value


def test_kinds_are_told_in_words():
  assert describe(int | None) == 'a whole number or None'
  assert describe(float | str) == 'a number or a text'
  assert describe(Mapping[str, int]) == 'a mapping {...}'
  assert describe(tuple[str, ...] | bool) == 'a list [...] or True or False'
