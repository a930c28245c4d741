"""The table of chips."""

from __future__ import annotations

import dataclasses
import doctest

import jax
import pytest

from p4lm.pods import chips


@dataclasses.dataclass
class Device:
  device_kind: str


def test_the_example():
  result = doctest.testmod(chips)
  assert result.attempted and not result.failed


@pytest.mark.parametrize(
  'kind, name, teraflops, gigabytes_a_second',
  [
    ('TPU v4', 'v4', 275, 1228),
    ('TPU v5 lite', 'v5e', 197, 819),
    ('TPU v5', 'v5p', 459, 2765),
    ('TPU v6 lite', 'v6e', 918, 1640),
    ('NVIDIA A100-SXM4-80GB', 'a100-80gb', 312, 2039),
    ('NVIDIA H100 80GB HBM3', 'h100', 989.4, 3350),
    ('NVIDIA H200', 'h200', 989.4, 4800),
  ],
)
def test_data_sheets(kind, name, teraflops, gigabytes_a_second):
  chip = chips.chip_of(Device(kind))
  assert chip is chips.chip_named(name)
  assert chip.peak_flops == teraflops * 1e12
  assert chip.hbm_bandwidth == gigabytes_a_second * 1e9


@pytest.mark.parametrize(
  'kind', ['cpu', 'NVIDIA H100 80GB HBM3 MIG 1g.10gb', 'NVIDIA H100 PCIe', '']
)
def test_a_chip_that_is_not_listed_has_no_peak(kind):
  assert chips.chip_of(Device(kind)) is None
  assert chips.peak_flops([Device('TPU v4'), Device(kind)]) is None


def test_peaks_add_up():
  assert chips.peak_flops([Device('TPU v4')] * 4) == 1100e12
  assert chips.peak_flops(jax.devices()[:1]) is None


def test_names_and_kinds_are_one_of_a_kind():
  names = [chip.name for chip in chips.CHIPS]
  kinds = [kind for chip in chips.CHIPS for kind in chip.device_kinds]
  assert len(set(names)) == len(names) and len(set(kinds)) == len(kinds)
