# The lines of HLO are as long as XLA writes them.
# ruff: noqa: E501
"""The text of TPU programs, in small: written by hand, counted by hand."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from p4lm.pods import chips, collectives, hlo, memory, meshes, paper, report
from p4lm.pods.collectives import Network
from p4lm.pods.program import read_program

# A loop of 24 rounds, whose length its condition alone tells. Each round
# gathers a weight in the background (start, a product that carries it on, end:
# one channel) and writes a row of a buffer in place.
LOOP = """\
HloModule step, is_scheduled=true

%start (p: bf16[1,64]) -> (bf16[1,64], bf16[4,64]) {
  %p = bf16[1,64]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %ag = bf16[4,64]{1,0} all-gather(%p), channel_id=9, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}, use_global_device_ids=true
  ROOT %cc = (bf16[1,64]{1,0:S(1)}, bf16[4,64]{1,0:S(1)}) custom-call(%ag), custom_call_target="AsyncCollectiveStart"
}

%carry (q: bf16[1,64], a: f32[8,16], b: f32[16,32]) -> (f32[8,32], bf16[4,64]) {
  %q = bf16[1,64]{1,0:S(1)} parameter(0)
  %a = f32[8,16]{1,0} parameter(1)
  %b = f32[16,32]{1,0} parameter(2)
  %ag.2 = bf16[4,64]{1,0:S(1)} all-gather(%q), channel_id=9, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}, use_global_device_ids=true
  %dot = f32[8,32]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %both = (f32[8,32]{1,0}, bf16[4,64]{1,0:S(1)}) tuple(%dot, %ag.2)
}

%write (buffer: f32[24,8,32], row: f32[8,32], at: s32[]) -> f32[24,8,32] {
  %buffer = f32[24,8,32]{2,1,0} parameter(0)
  %row = f32[8,32]{1,0} parameter(1)
  %at = s32[] parameter(2)
  %zero = s32[] constant(0)
  %one = f32[1,8,32]{2,1,0} bitcast(%row)
  ROOT %dus = f32[24,8,32]{2,1,0} dynamic-update-slice(%buffer, %one, %at, %zero, %zero)
}

%body (t: (s32[], f32[24,8,32], f32[8,16], f32[16,32], bf16[1,64])) -> (s32[], f32[24,8,32], f32[8,16], f32[16,32], /*index=4*/bf16[1,64]) {
  %t = (s32[], f32[24,8,32]{2,1,0}, f32[8,16]{1,0}, f32[16,32]{1,0}, /*index=4*/bf16[1,64]{1,0:S(1)}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %kept = f32[24,8,32]{2,1,0} get-tuple-element(%t), index=1
  %left = f32[8,16]{1,0} get-tuple-element(%t), index=2
  %right = f32[16,32]{1,0} get-tuple-element(%t), index=3
  %shard = bf16[1,64]{1,0:S(1)} get-tuple-element(%t), index=4
  %s = (bf16[1,64]{1,0:S(1)}, bf16[4,64]{1,0:S(1)}) fusion(%shard), kind=kCustom, calls=%start
  %f = (f32[8,32]{1,0}, bf16[4,64]{1,0:S(1)}) fusion(%shard, %left, %right), kind=kOutput, calls=%carry
  %product = f32[8,32]{1,0} get-tuple-element(%f), index=0
  %next = f32[24,8,32]{2,1,0} fusion(%kept, %product, %i), kind=kLoop, calls=%write
  %step = s32[] constant(1)
  %j = s32[] add(%i, %step)
  ROOT %out = (s32[], f32[24,8,32]{2,1,0}, f32[8,16]{1,0}, f32[16,32]{1,0}, /*index=4*/bf16[1,64]{1,0:S(1)}) tuple(%j, %next, %left, %right, %shard)
}

%condition (c: (s32[], f32[24,8,32], f32[8,16], f32[16,32], bf16[1,64])) -> pred[] {
  %c = (s32[], f32[24,8,32]{2,1,0}, f32[8,16]{1,0}, f32[16,32]{1,0}, /*index=4*/bf16[1,64]{1,0:S(1)}) parameter(0)
  %k = s32[] get-tuple-element(%c), index=0
  %limit = s32[] constant(26)
  ROOT %less = pred[] compare(%k, %limit), direction=LT
}

ENTRY %main (x: f32[24,8,32], y: f32[8,16], z: f32[16,32], w: bf16[1,64]) -> f32[24,8,32] {
  %x = f32[24,8,32]{2,1,0} parameter(0)
  %y = f32[8,16]{1,0} parameter(1)
  %z = f32[16,32]{1,0} parameter(2)
  %w = bf16[1,64]{1,0} parameter(3)
  %two = s32[] constant(2)
  %first = s32[]{:T(128)} copy(%two)
  %w.near = bf16[1,64]{1,0:S(1)} copy(%w)
  %init = (s32[], f32[24,8,32]{2,1,0}, f32[8,16]{1,0}, f32[16,32]{1,0}, /*index=4*/bf16[1,64]{1,0:S(1)}) tuple(%first, %x, %y, %z, %w.near)
  %while = (s32[], f32[24,8,32]{2,1,0}, f32[8,16]{1,0}, f32[16,32]{1,0}, /*index=4*/bf16[1,64]{1,0:S(1)}) while(%init), condition=%condition, body=%body
  ROOT %result = f32[24,8,32]{2,1,0} get-tuple-element(%while), index=1
}
"""


@pytest.fixture(scope='module')
def program():
  return read_program(LOOP)


@pytest.mark.parametrize(
  'module', [collectives, meshes, memory, paper, report, chips]
)
def test_examples(module):
  names = {'np': np}
  result = doctest.testmod(module, extraglobs=names)
  assert result.attempted and not result.failed


def test_a_loop_counts_from_its_first_value_to_its_limit(program):
  [loop] = program.loops
  assert (loop.trips, loop.ends_early) == (24, False)
  assert program.flops == 24 * 2 * 8 * 16 * 32


def test_a_collective_that_is_carried_on_counts_once(program):
  [one] = program.collectives
  assert (one.kind, one.times, one.bytes) == ('all-gather', 24, 4 * 64 * 2)
  assert one.asynchronous
  assert one.groups.tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_traffic_is_what_goes_to_main_memory(program):
  # The product reads 8 x 16 and 16 x 32 and writes 8 x 32; the update reads
  # and writes 8 x 32 of the buffer, and an index. On-chip copies are free.
  product = 4 * (8 * 16 + 16 * 32 + 8 * 32)
  update = 4 * (8 * 32 + 8 * 32) + 4
  counter = 3 * 4
  before = 2 * 4 + 64 * 2
  assert program.hbm_bytes == 24 * (product + update + counter) + before


# Fusions within fusions: a product takes its kernel out of a stack of three,
# writes its result into a row of a buffer, and adds what is handed on whole.
NESTED = """\
%take (s: f32[3,16,32]) -> f32[16,32] {
  %s = f32[3,16,32] parameter(0)
  %one = f32[1,16,32] slice(%s), slice={[1:2], [0:16], [0:32]}
  ROOT %view = f32[16,32] bitcast(%one)
}

%hand (h: f32[256]) -> f32[8,32] {
  %h = f32[256] parameter(0)
  ROOT %as = f32[8,32] bitcast(%h)
}

%put (buffer: f32[5,8,32], row: f32[1,8,32]) -> f32[5,8,32] {
  %buffer = f32[5,8,32] parameter(0)
  %row = f32[1,8,32] parameter(1)
  %zero = s32[] constant(0)
  ROOT %dus = f32[5,8,32] dynamic-update-slice(%buffer, %row, %zero, %zero, %zero)
}

%product (a: f32[8,16], stack: f32[3,16,32], kept: f32[5,8,32], flat: f32[256]) -> f32[5,8,32] {
  %a = f32[8,16] parameter(0)
  %stack = f32[3,16,32] parameter(1)
  %kept = f32[5,8,32] parameter(2)
  %flat = f32[256] parameter(3)
  %kernel = f32[16,32] fusion(%stack), kind=kLoop, calls=%take
  %more = f32[8,32] fusion(%flat), kind=kLoop, calls=%hand
  %dot = f32[8,32] dot(%a, %kernel), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %sum = f32[8,32] add(%dot, %more)
  %row = f32[1,8,32] bitcast(%sum)
  ROOT %next = f32[5,8,32] fusion(%kept, %row), kind=kLoop, calls=%put
}

ENTRY %main (a: f32[8,16], stack: f32[3,16,32], kept: f32[5,8,32], flat: f32[256]) -> f32[5,8,32] {
  %a = f32[8,16] parameter(0)
  %stack = f32[3,16,32] parameter(1)
  %kept = f32[5,8,32] parameter(2)
  %flat = f32[256] parameter(3)
  ROOT %result = f32[5,8,32] fusion(%a, %stack, %kept, %flat), kind=kOutput, calls=%product
}
"""


def test_traffic_of_fusions_within_fusions():
  # One of the three kernels is read and one row of the five written.
  expected = 4 * (8 * 16 + 16 * 32 + 256 + 8 * 32)
  assert read_program(NESTED).hbm_bytes == expected


@pytest.mark.parametrize(
  'text, multiply_adds',
  [
    # A batch of 16 products of 4 x 8 by 8 x 5, as libtpu writes it: a window
    # that passes over holes.
    (
      'f32[16,4,5] convolution(%a, %b), window={size=16 stride=15 '
      'lhs_dilate=16}, dim_labels=0bf_0io->0bf',
      16 * 4 * 8 * 5,
    ),
    # The same over padding, with the window reversed.
    (
      'f32[16,4,5] convolution(%a, %b), window={size=16 pad=15_15 '
      'rhs_reversal=1}, dim_labels=0bf_0io->0bf',
      None,
    ),
    ('f32[4,5] convolution(%c, %d), dim_labels=bf_io->bf', 4 * 8 * 5),
  ],
)
def test_products_written_as_convolutions(text, multiply_adds):
  if multiply_adds is None:
    # 31 - 16 + 1 outputs of 16 inputs padded by 15: each output meets those
    # inputs that its window covers, 1 + 2 + ... + 16 of them in all.
    multiply_adds = sum(range(1, 17)) * 4 * 8 * 5
    text = text.replace('15_15', '15_0')
  module = (
    'ENTRY %main (a: f32[16,4,8]) -> f32[1] {\n'
    '  %a = f32[16,4,8] parameter(0)\n  %b = f32[16,8,5] parameter(1)\n'
    '  %c = f32[4,8] parameter(2)\n  %d = f32[8,5] parameter(3)\n'
    f'  ROOT %r = {text}\n}}\n'
  )
  assert read_program(module).flops == 2 * multiply_adds


@pytest.mark.parametrize(
  'groups, expected',
  [
    ('{{0,1},{2,3}}', [[0, 1], [2, 3]]),
    ('[2,2]<=[4]', [[0, 1], [2, 3]]),
    ('[2,2]<=[2,2]T(1,0)', [[0, 2], [1, 3]]),
    ("mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
    ("mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
    ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}", [[0, 1], [2, 3]]),
    ("mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
    ("mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
  ],
)
def test_every_way_to_write_groups(groups, expected):
  module = (
    'ENTRY %main (a: f32[8]) -> f32[8] {\n  %a = f32[8] parameter(0)\n'
    f'  ROOT %r = f32[8] all-reduce(%a), channel_id=1, replica_groups={groups},'
    ' use_global_device_ids=true, to_apply=%add\n}\n'
  )
  [one] = read_program(module).collectives
  assert one.groups.tolist() == expected


def test_mesh_axes_of_groups():
  mesh = {'data': 2, 'fsdp': 2, 'model': 2}
  of = lambda groups: collectives.mesh_axes(np.array(groups), mesh)
  assert of([[0, 1], [2, 3]]) == 'model'
  assert of([[0, 2, 4, 6], [1, 3, 5, 7]]) == 'data+fsdp'
  assert of([[0, 3], [1, 2]]) == 'part of fsdp+model'
  assert of([[0], [1]]) == ''


def ring(kind, size, places, chip='v5p', groups=None):
  network = Network(chips.chip_named(chip), np.array(places))
  groups = np.arange(len(places))[None] if groups is None else groups
  return network.seconds(
    collectives.Collective('c', kind, 1, size, np.array(groups))
  )


def test_collectives_on_a_torus_by_hand():
  line = [(i, 0, 0) for i in range(4)]
  gigabyte = 1e9
  # A closed ring of four: two links of 90 GB/s each, three quarters to move.
  assert ring('all-gather', gigabyte, line) == pytest.approx(0.75 / 180)
  assert ring('reduce-scatter', gigabyte, line) == pytest.approx(0.75 / 180)
  assert ring('all-reduce', gigabyte, line) == pytest.approx(1.5 / 180)
  assert ring('all-to-all', gigabyte, line) == pytest.approx(1 / 180)
  # Two dimensions have twice the links.
  square = [(i, j, 0) for i in range(4) for j in range(4)]
  assert ring('all-gather', gigabyte, square) == pytest.approx(0.9375 / 360)
  # A v5e of four is no ring, and its links are half as fast.
  assert ring('all-gather', gigabyte, [p[:2] for p in line], 'v5e') == (
    pytest.approx(0.75 / 45)
  )
  # Every second chip of the ring: two groups share the links.
  assert ring('all-gather', gigabyte, line, groups=[[0, 2], [1, 3]]) == (
    pytest.approx(0.5 / 90)
  )
  # A switch gives every GPU of a machine its whole bandwidth; between machines
  # each has a network card.
  gpus = [(i // 8, i % 8) for i in range(16)]
  assert ring('all-gather', gigabyte, gpus, 'h100', [range(8)]) == (
    pytest.approx(0.875 / 450)
  )
  assert ring('all-gather', gigabyte, gpus, 'h100', [[0, 8]]) == (
    pytest.approx(0.5 / 50)
  )
  # Small ones take a microsecond a chip on the way; one device takes nothing.
  assert ring('all-reduce', 8.0, line) == pytest.approx(2e-6)
  assert ring('all-reduce', gigabyte, line, groups=[[0], [1]]) == 0.0


def test_a_permutation_takes_its_longest_way():
  line = [(i, 0, 0) for i in range(4)]
  pairs = [[0, 1], [1, 2], [2, 3], [3, 0]]
  secs = ring('collective-permute', 1e9, line, groups=pairs)
  # 3 -> 0 is one step around the ring.
  assert secs == pytest.approx(1 / 90)


def test_text_that_is_no_program():
  with pytest.raises(ValueError, match='no ENTRY'):
    hlo.parse('HloModule nothing')
  with pytest.raises(ValueError, match='no HLO instruction'):
    hlo.parse('ENTRY %m (a: f32[]) -> f32[] {\n  what is this\n}\n')
