"""The examples in the docstrings are tests too."""

import doctest
import importlib
import pkgutil

import pytest

from p4lm import rewards

NAMES = [module.name for module in pkgutil.iter_modules(rewards.__path__)]


@pytest.mark.parametrize('name', NAMES)
def test_examples(name):
  module = importlib.import_module(f'p4lm.rewards.{name}')
  assert doctest.testmod(module).failed == 0
