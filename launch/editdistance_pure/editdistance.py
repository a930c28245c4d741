"""Levenshtein distance between two sequences."""

from collections.abc import Hashable, Sequence


def eval(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
  """Fewest insertions, deletions and substitutions that turn `a` into `b`.

  One row of the dynamic program at a time (Wagner and Fischer 1974), so
  O(len(a) * len(b)) time and O(len(b)) memory. The name, which hides a
  builtin, is the one that callers of the C++ package use.

  >>> eval('kitten', 'sitting')
  3
  """
  above = list(range(len(b) + 1))
  for i, x in enumerate(a, start=1):
    row = [i]
    for j, y in enumerate(b, start=1):
      row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (x != y)))
    above = row
  return above[-1]
