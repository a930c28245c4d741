"""Builds a pure-Python stand-in for editdistance, a dependency of SeqIO.

The real package is C++ and has no wheel for Python 3.13: a machine without a
compiler could not install SeqIO there. SeqIO needs one function of it, to
suggest the nearest name after a typo. The local version satisfies the pin of
launch/constraints.txt, so the installation scripts put it in beforehand.
"""

import setuptools

setuptools.setup(
  name='editdistance',
  version='0.8.1+pure',
  description='Levenshtein distance in pure Python, for SeqIO',
  py_modules=['editdistance'],
  python_requires='>=3.11',
)
