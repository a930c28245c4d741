"""What one accelerator can do: the figures of rooflines and MFU.

From the vendors' data sheets (Google Cloud's pages of TPU versions; NVIDIA's
of A100, H100 and H200) and, for a single link between TPU chips, "How to
Scale Your Model" (Austin et al. 2025). Peaks are those of dense bfloat16
products: MFU of a float32 run is measured against them too.

A CPU has no entry, nor has a chip that is not listed or is divided (MIG): what
is not known is reported as absent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One chip, as JAX sees it.

  Attributes:
    name: of the table, such as 'v5e'.
    device_kinds: what `jax.Device.device_kind` says.
    peak_flops: bfloat16 FLOP/s.
    hbm_bytes: of memory that a program can use.
    hbm_bandwidth: bytes/s.
    link_bandwidth: bytes/s in one direction, of one link to a neighbour in the
      torus for a TPU, of all links together for a GPU.
    torus_ring: chips along a dimension of the torus from which it closes to a
      ring; None for a switched network, where every chip reaches every other.
    node_bandwidth: bytes/s in one direction between machines, for each GPU;
      None for a TPU, whose torus goes on.
  """

  name: str
  device_kinds: tuple[str, ...]
  peak_flops: float
  hbm_bytes: float
  hbm_bandwidth: float
  link_bandwidth: float
  torus_ring: int | None
  node_bandwidth: float | None = None


def _gpu(name: str, kind: str, *figures: float) -> Chip:
  # One network card of 400 Gbit/s for each GPU, as in a DGX or HGX machine
  # (200 Gbit/s with A100).
  card = 25e9 if name.startswith('a100') else 50e9
  return Chip(name, (kind,), *figures, torus_ring=None, node_bandwidth=card)


CHIPS = (
  Chip('v4', ('TPU v4',), 275e12, 32 * GIB, 1228e9, 45e9, 4),
  Chip('v5e', ('TPU v5 lite', 'TPU v5e'), 197e12, 16 * GIB, 819e9, 45e9, 16),
  Chip('v5p', ('TPU v5', 'TPU v5p'), 459e12, 95 * GIB, 2765e9, 90e9, 4),
  Chip('v6e', ('TPU v6 lite', 'TPU v6e'), 918e12, 32 * GIB, 1640e9, 90e9, 16),
  _gpu('a100-40gb', 'NVIDIA A100-SXM4-40GB', 312e12, 40e9, 1555e9, 300e9),
  _gpu('a100-80gb', 'NVIDIA A100-SXM4-80GB', 312e12, 80e9, 2039e9, 300e9),
  _gpu('h100', 'NVIDIA H100 80GB HBM3', 989.4e12, 80e9, 3350e9, 450e9),
  _gpu('h200', 'NVIDIA H200', 989.4e12, 141e9, 4800e9, 450e9),
)


class Device(Protocol):
  """The part of a jax.Device that is needed here."""

  device_kind: str


def chip_of(device: Device) -> Chip | None:
  """The chip of a device, None where it is not listed."""
  for chip in CHIPS:
    if device.device_kind in chip.device_kinds:
      return chip
  return None


def chip_named(name: str) -> Chip | None:
  """The chip of the table with this name, None where there is none."""
  return next((chip for chip in CHIPS if chip.name == name), None)


def peak_flops(devices: Sequence[Device]) -> float | None:
  """FLOP/s of all devices together, None when one of them is not listed.

  >>> peak_flops([])
  0.0
  """
  chips = [chip_of(device) for device in devices]
  if None in chips:
    return None
  return float(sum(chip.peak_flops for chip in chips))
