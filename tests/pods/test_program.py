"""Costs of compiled programs, counted by hand."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent


@pytest.fixture(scope='module')
def found():
  """{program: what was found in it}, of `small_programs.py`."""
  environment = {
    **os.environ,
    'XLA_FLAGS': '--xla_force_host_platform_device_count=8',
  }
  done = subprocess.run(
    [sys.executable, str(HERE / 'small_programs.py')],
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout)


@pytest.mark.parametrize(
  'name, collective',
  [
    # float32 [16, 64] is 4,096 bytes; a half of it 2,048.
    ('psum', ['all-reduce', 'model', 1, 2048]),
    ('all_gather', ['all-gather', 'fsdp', 1, 4096]),
    ('psum_scatter', ['reduce-scatter', 'data', 1, 4096]),
    ('ppermute', ['collective-permute', 'model', 1, 2048]),
    ('loop', ['all-reduce', 'data+fsdp', 5, 2048]),
  ],
)
def test_collectives(found, name, collective):
  [one] = found[name]['collectives']
  if name == 'ppermute':
    # Its groups are pairs of neighbours along the axis.
    one[1] = one[1].removeprefix('part of ')
  assert one == collective


@pytest.mark.parametrize(
  'name, flops, loops',
  [
    ('product', 2 * 8 * 32 * 16, []),
    ('batched', 2 * 2 * 3 * 5 * 7 * 8, []),
    ('scanned', 6 * 2 * 8 * 32 * 32, [[6, False]]),
    ('nested', 3 * 6 * 2 * 8 * 32 * 32, [[3, False], [6, False]]),
    ('early', (1 + 7) * 2 * 8 * 32 * 32, [[7, True]]),
    # A device has 8 rows and half of the sum.
    ('sharded', 2 * 8 * 16 * 64, []),
  ],
)
def test_products(found, name, flops, loops):
  assert found[name]['flops'] == flops
  assert found[name]['loops'] == loops


def test_a_loop_that_may_end_early_is_told_from_what_runs_once(found):
  assert found['early']['open_flops'] == 7 * 2 * 8 * 32 * 32
  assert found['nested']['open_flops'] == 0


def test_xla_itself_counts_the_body_of_a_loop_once(found):
  """Why this module exists; its end would be the end of that trap."""
  once = 2 * 8 * 32 * 32
  assert found['nested']['xla_flops'] < 2 * once < found['nested']['flops']


def test_a_sharded_product_is_reduced(found):
  [one] = found['sharded']['collectives']
  assert one == ['all-reduce', 'model', 1, 8 * 64 * 4]
