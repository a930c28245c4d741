"""The examples in the docstrings are tests too."""

import doctest
import importlib
import pkgutil

import pytest

from p4lm import ops

NAMES = [module.name for module in pkgutil.iter_modules(ops.__path__)]


@pytest.mark.parametrize('name', NAMES)
def test_examples(name):
  module = importlib.import_module(f'p4lm.ops.{name}')
  found = doctest.testmod(module)
  assert found.failed == 0
