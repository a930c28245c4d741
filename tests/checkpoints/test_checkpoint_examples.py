"""The examples in the docstrings are right."""

import doctest
import importlib

import pytest

MODULES = [
  'p4lm.checkpoints.gguf_checkpoint',
  'p4lm.checkpoints.zarr_files',
  'p4lm.models.position_bias',
  'p4lm.models.rope',
]


@pytest.mark.parametrize('name', MODULES)
def test_docstring_examples(name):
  module = importlib.import_module(name)
  found = doctest.testmod(module)
  assert found.attempted > 0 and found.failed == 0
