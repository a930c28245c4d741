"""Pods by name, and the compiler that goes with JAX."""

import importlib.metadata

import pytest

from p4lm.errors import UserError
from p4lm.pods import topologies

ASKED = ['numpy>=2', 'libtpu==0.0.42.*; extra == "tpu"']


def _installed(monkeypatch, libtpu, asked):
  def version(name):
    if name == 'libtpu' and libtpu is None:
      raise importlib.metadata.PackageNotFoundError(name)
    return {'libtpu': libtpu, 'jax': '0.10.2'}[name]

  monkeypatch.setattr(importlib.metadata, 'version', version)
  monkeypatch.setattr(importlib.metadata, 'requires', lambda name: asked)


@pytest.mark.parametrize(
  'libtpu, asked', [('0.0.42.1', ASKED), (None, ASKED), ('0.0.52', None)]
)
def test_a_libtpu_that_jax_asks_for_or_that_it_does_not_know(
  monkeypatch, libtpu, asked
):
  _installed(monkeypatch, libtpu, asked)
  topologies.check_libtpu()


@pytest.mark.parametrize('libtpu', ['0.0.52', '0.0.43.dev20260101'])
def test_another_libtpu_is_refused_before_it_compiles(monkeypatch, libtpu):
  _installed(monkeypatch, libtpu, ASKED)
  with pytest.raises(UserError, match=r"42\.\*: pip install 'jax\[tpu\]==0.10"):
    topologies.check_libtpu()


def test_the_installed_jax_says_which_libtpu_it_wants():
  """What the check reads is there to be read."""
  asked = importlib.metadata.requires('jax')
  assert any(line.startswith('libtpu') for line in asked)
