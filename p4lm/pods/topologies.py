"""Pods that are not here: their devices, to compile for on any machine.

A TPU topology is a generation and the sides of its torus, 'v5e:16x16'. The
devices are descriptions: programs can be compiled for them (which needs the
package libtpu, and no TPU) and cannot run. GPUs are machines x GPUs in each,
'h100:4x8'; JAX compiles for them only where one is, so they are planned on
paper.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import re
from typing import Any

import numpy as np
from packaging.requirements import Requirement

from p4lm.errors import UserError
from p4lm.pods.chips import CHIPS, Chip, chip_named

# Nothing is asked of a cloud, which need not be there, and nothing of a TPU:
# other processes may hold libtpu too. What it says of that is not for users.
_LIBTPU_ENVIRONMENT = {
  'TPU_SKIP_MDS_QUERY': '1',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_STDERR_LOG_LEVEL': '3',
  'TPU_MIN_LOG_LEVEL': '3',
}
_TPUS = tuple(c.name for c in CHIPS if c.torus_ring is not None)
_GPUS = tuple(c.name for c in CHIPS if c.torus_ring is None)


@dataclasses.dataclass(frozen=True)
class PaperDevice:
  """A chip's place in a torus, where no compiler knows it."""

  id: int
  device_kind: str
  coords: tuple[int, int, int]
  platform: str = 'tpu'
  process_index: int = 0
  core_on_chip: int = 0


@dataclasses.dataclass(frozen=True)
class Topology:
  """A pod.

  Attributes:
    name: such as 'v5e:16x16'.
    chip: one of its chips.
    devices: all of them, in the compiler's order.
    compiles: whether programs can be compiled for the devices here.
  """

  name: str
  chip: Chip
  devices: tuple[Any, ...]
  compiles: bool


def get_topology(name: str) -> Topology:
  """The pod of a name.

  Without libtpu the devices are made up in rows, which is enough for a plan on
  paper.

  Raises:
    UserError: no such generation or shape, or a libtpu that is not of the
      installed JAX.
  """
  chip, sides = _read_name(name)
  if chip.torus_ring is None or importlib.util.find_spec('libtpu') is None:
    return Topology(name, chip, _paper_devices(chip, sides), False)
  check_libtpu()
  for variable, value in _LIBTPU_ENVIRONMENT.items():
    os.environ.setdefault(variable, value)
  from jax.experimental import topologies

  try:
    described = topologies.get_topology_desc(
      platform='tpu', topology_name=name, **_chip_options(chip)
    )
  except Exception as error:
    raise UserError(
      f'TOPOLOGY {name!r}: libtpu knows no such pod'
      f' ({str(error).splitlines()[0][:160]}); choose sides that'
      f' {chip.name} pods have.'
    ) from error
  return Topology(name, chip, tuple(described.devices), True)


def check_libtpu() -> None:
  """Raises UserError when JAX asks for another libtpu than the installed one.

  A newer one compiles programs that this JAX cannot read, and says so minutes
  later in words that help nobody.
  """
  try:
    found = importlib.metadata.version('libtpu')
    jax = importlib.metadata.version('jax')
    asked = importlib.metadata.requires('jax') or ()
  except importlib.metadata.PackageNotFoundError:
    return  # It came with the machine.
  for requirement in map(Requirement, asked):
    if requirement.name == 'libtpu' and found not in requirement.specifier:
      raise UserError(
        f'libtpu {found} is installed, and jax {jax} works with '
        f"libtpu{requirement.specifier}: pip install 'jax[tpu]=={jax}'"
      )


def _read_name(name: str) -> tuple[Chip, tuple[int, ...]]:
  match = re.fullmatch(r'([\w-]+):(\d+(?:x\d+)+)', str(name))
  chip = match and chip_named(match[1])
  if not chip:
    raise UserError(
      f'TOPOLOGY {name!r} is no pod; write a TPU generation'
      f' ({", ".join(_TPUS)}) and the sides of its torus, such as v5e:16x16'
      f' or v5p:4x4x4, or a GPU ({", ".join(_GPUS)}) and machines x GPUs, such'
      ' as h100:4x8.'
    )
  sides = tuple(map(int, match[2].split('x')))
  if chip.name in _GPUS and len(sides) == 2 and math.prod(sides) > 0:
    return chip, sides
  wanted = 3 if chip.torus_ring == 4 else 2
  if len(sides) != wanted or math.prod(sides) < 1:
    raise UserError(
      f'TOPOLOGY {name!r}: a {chip.name} pod has {wanted} dimensions, such as'
      f' {"x".join(["4"] * wanted)}.'
    )
  return chip, sides


def _chip_options(chip: Chip) -> dict[str, str]:
  # Both cores of a v4 chip work as one device, as they do in a real job.
  return {'chip_config_name': 'megacore'} if chip.name == 'v4' else {}


def _paper_devices(chip: Chip, sides: tuple[int, ...]):
  places = np.stack(np.unravel_index(np.arange(math.prod(sides)), sides), 1)
  return tuple(
    PaperDevice(
      index,
      chip.device_kinds[0],
      (*map(int, place), 0)[:3],
      'gpu' if chip.torus_ring is None else 'tpu',
    )
    for index, place in enumerate(places)
  )
