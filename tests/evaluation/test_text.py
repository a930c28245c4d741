"""Statistics of texts by hand."""

from __future__ import annotations

import doctest

import pytest

from p4lm.evaluation import text
from p4lm.evaluation.text import distinct, repetition, text_statistics, words


def test_docstrings():
  found = doctest.testmod(text)
  assert found.failed == 0
  assert found.attempted >= 3


def test_words_of_other_scripts():
  assert words('Amélie — 映画! l’amour 3½') == [
    'amélie',
    '映画',
    'l’amour',
    '3½',
  ]
  assert words('...') == []


def test_statistics():
  found = text_statistics(['a b c a b c', '', 'd', 'd'])
  assert found.texts == 4
  assert found.empty == 0.25
  assert found.mean_words == 2.0
  assert found.distinct_1 == pytest.approx(4 / 8)
  assert found.distinct_2 == pytest.approx(3 / 5)
  assert found.repetition == pytest.approx(0.25 / 4)
  assert found.most_common == 0.5


def test_extremes():
  assert text_statistics([]).texts == 0
  assert text_statistics([]).most_common == 0.0
  assert distinct([''], 2) == 0.0
  assert repetition('one two', 3) == 0.0
  assert repetition('a a a a a', 2) == pytest.approx(3 / 4)
