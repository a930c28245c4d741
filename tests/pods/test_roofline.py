"""Rooflines, memory and tables, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from p4lm.errors import UserError
from p4lm.pods import chips, memory, roofline, topologies
from p4lm.pods.collectives import Collective, Network
from p4lm.pods.memory import Memory
from p4lm.pods.program import Operation, Program
from p4lm.pods.report import StepReport, best_mesh, seconds

V5E = chips.chip_named('v5e')
NETWORK = Network(V5E, np.array([(i, 0) for i in range(4)]))
ALL = np.arange(4)[None]


def gather(asynchronous, size=45e9 / 0.75):
  """A collective of one second."""
  return Collective('c', 'all-gather', 1, size, ALL, False, asynchronous)


def test_what_runs_one_after_the_other_adds_up():
  program = Program(
    (
      Operation('product', 2, 197e12, 819e9 / 2),  # 1 s, or 0.5 s of memory
      Operation('softmax', 1, 0.0, 819e9 * 3),  # 3 s of memory
      Operation('prefetch', 1, 0.0, 819e9, asynchronous=True),
    ),
    (gather(True), gather(False)),
    (),
  )
  time = roofline.step_time(program, NETWORK)
  assert time.compute == pytest.approx(2)
  assert time.memory == pytest.approx(1 + 3 + 1)
  assert time.device == pytest.approx(2 + 3)
  assert (time.links, time.exposed_links) == pytest.approx((2, 1))
  assert time.overlapped == pytest.approx(5)
  assert time.compiled == pytest.approx(6)
  assert time.serial == pytest.approx(7)
  assert time.bound_by == 'memory'


def test_prefetches_fill_the_memory_and_nothing_else():
  program = Program(
    (
      Operation('product', 1, 197e12, 0.0),
      Operation('prefetch', 4, 0.0, 819e9, asynchronous=True),
    ),
    (),
    (),
  )
  assert roofline.step_time(program, NETWORK).device == pytest.approx(4)


def report(mesh, secs, total, step='update', source='compiled'):
  return StepReport(
    job='train_lm',
    step=step,
    mesh=mesh,
    source=source,
    memory={'total': total},
    limit=16.0,
    flops=10.0,
    paper_flops=10.0,
    model_flops=8.0,
    hbm_bytes=0.0,
    secs={'compiled': secs, 'overlapped': secs / 2, 'serial': 2 * secs},
    peak_flops=100.0,
    collectives=[],
  )


def test_the_best_mesh_is_the_fastest_that_fits():
  rows = [
    report('a', 1.0, 17.0),
    report('b', 3.0, 15.0),
    report('b', 3.0, 15.0, 'decode'),
    report('c', 4.0, 16.0),
    report('c', 1.0, 16.0, 'decode'),
    report('d', 0.5, 1.0, source='refused'),
  ]
  assert best_mesh(rows, 'train_lm') == 'c'
  assert best_mesh(rows[:1], 'train_lm') is None
  assert best_mesh(rows, 'train_rl') is None


def test_mfu_counts_what_the_model_needs():
  row = report('a', 0.1, 1.0)
  assert row.mfu() == pytest.approx(0.8)
  assert row.mfu('overlapped') == pytest.approx(1.6)
  assert StepReport.from_json(row.to_json()) == row
  refused = report('a', 0.1, 20.0, source='refused')
  assert not refused.fits and refused.cells()[3] == '–'


def test_memory_counts_reused_arguments_once():
  assert Memory(8.0, 5.0, 7.0, 6.0, 1.0, 2.0).total == 8 + 5 + 7 - 6 + 1 + 2
  assert memory.asked_for('something else') is None


def test_seconds_of_a_report():
  time = roofline.StepTime(1.0, 2.0, 3.0, 0.5, 2.5)
  assert seconds(time)['compiled'] == 3.0 and seconds(time)['serial'] == 5.5


@pytest.mark.parametrize(
  'name, message',
  [
    ('v5e', "'v5e' is no pod; write a TPU generation"),
    ('v9:4x4', 'no pod'),
    ('h100:8', 'no pod'),
    ('h100:2x2x2', 'a h100 pod has 2 dimensions'),
    ('v5p:4x4', 'a v5p pod has 3 dimensions, such as 4x4x4'),
    ('v5e:4x4x4', 'a v5e pod has 2 dimensions'),
    ('', 'no pod'),
  ],
)
def test_pods_that_are_none(name, message):
  with pytest.raises(UserError, match=message):
    topologies.get_topology(name)


def test_a_pod_on_paper(monkeypatch):
  monkeypatch.setattr(topologies.importlib.util, 'find_spec', lambda _: None)
  pod = topologies.get_topology('v5p:2x2x4')
  assert not pod.compiles and pod.chip.name == 'v5p' and len(pod.devices) == 16
  assert {d.coords for d in pod.devices} == set(np.ndindex(2, 2, 4))
  gpus = topologies.get_topology('h100:2x8')
  assert len(gpus.devices) == 16 and gpus.devices[8].coords[:2] == (1, 0)
  flat = topologies.get_topology('v5e:2x4')
  assert {d.coords for d in flat.devices} == set(np.ndindex(2, 4, 1))
