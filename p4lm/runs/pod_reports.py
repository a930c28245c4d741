"""Compiles planned steps for a pod, or plans them on paper."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import jax

from p4lm.models import flops as flops_lib
from p4lm.pods import memory, paper, program, report, roofline
from p4lm.pods.collectives import Network
from p4lm.pods.report import StepReport
from p4lm.pods.topologies import Topology
from p4lm.runs.planned_steps import PlannedStep


def compiled_reports(
  step: PlannedStep, topology: Topology, mesh: jax.sharding.Mesh
) -> list[StepReport]:
  """Compiles a step ahead of time and reads what it would do.

  A program that the compiler refuses for want of memory gives a report whose
  source is 'refused'.
  """
  began = time.monotonic()
  beside = memory.bytes_a_chip(step.beside)
  try:
    with jax.set_mesh(mesh):
      compiled = step.lower().compile()
  except jax.errors.JaxRuntimeError as error:
    asked = memory.asked_for(str(error))
    if asked is None:
      raise
    return _refused(step, topology, mesh, asked + beside)
  secs = time.monotonic() - began
  whole = program.read_program(compiled.as_text())
  network = Network.of(topology.chip, list(mesh.devices.flat))
  sizes = memory.of_compiled(compiled, beside)
  return [
    _report(
      step,
      name,
      topology,
      mesh,
      'compiled',
      sizes,
      flops=part.flops,
      hbm_bytes=part.hbm_bytes,
      secs=report.seconds(roofline.step_time(part, network)),
      collectives=report.summed_collectives(
        part.collectives, mesh.shape, network
      ),
      loops={loop.name: loop.trips for loop in part.loops},
      compile_secs=round(secs, 1),
    )
    for name, part in _parts(step, whole)
  ]


def paper_reports(
  step: PlannedStep, topology: Topology, mesh: jax.sharding.Mesh, sizes: Any
) -> list[StepReport]:
  """The same by rules of thumb; nothing of a model that is not counted."""
  if not flops_lib.is_counted(sizes) or None in step.parts.values():
    return []
  network = Network.of(topology.chip, list(mesh.devices.flat))
  reports = []
  for name, counted in step.parts.items():
    plan = paper.PaperStep(
      flops_lib.sizes_of(sizes),
      step.shapes,
      counted,
      weights=_size(step.state)
      if not step.trains
      else _size(step.state.params) + _size(step.state.frozen),
      state_bytes=memory.bytes_a_chip(step.state),
      mesh_shape=dict(mesh.shape),
      beside_bytes=memory.bytes_a_chip(step.beside),
      itemsize=2 if sizes.dtype == 'bfloat16' else 4,
      trains=step.trains,
      accumulate=step.accumulate,
    )
    passes = step.shapes.response_length if name == 'decode' else None
    reports.append(
      _report(
        step,
        name,
        topology,
        mesh,
        'paper',
        paper.paper_memory(plan, passes),
        flops=counted.executed / mesh.size,
        hbm_bytes=0.0,
        secs=report.seconds(paper.paper_time(plan, network, passes)),
        collectives=report.summed_collectives(
          paper.paper_collectives(plan, passes), mesh.shape, network
        ),
      )
    )
  return reports


def _parts(step: PlannedStep, whole: program.Program):
  """The step's parts, and what of its program belongs to each."""
  if len(step.parts) == 1:
    return [(next(iter(step.parts)), whole)]
  # What is drawn token by token runs in the loop that may end early.
  before, loop = step.parts
  return [
    (before, whole.part(open_loop=False)),
    (loop, whole.part(open_loop=True)),
  ]


def _report(step, name, topology, mesh, source, sizes, **measured):
  counted = step.parts[name]
  return StepReport(
    job=step.job,
    step=name,
    mesh=report.mesh_text(mesh.shape),
    source=source,
    memory=report.memory_bytes(sizes),
    limit=topology.chip.hbm_bytes,
    paper_flops=counted and counted.executed / mesh.size,
    model_flops=counted and counted.model / mesh.size,
    peak_flops=topology.chip.peak_flops,
    **measured,
  )


def _refused(step, topology, mesh, asked: float) -> list[StepReport]:
  sizes = dataclasses.replace(_NOTHING, temporaries=asked)
  return [
    _report(
      step,
      name,
      topology,
      mesh,
      'refused',
      sizes,
      flops=0.0,
      hbm_bytes=0.0,
      secs={},
      collectives=[],
      note='the compiler found no way to fit it',
    )
    for name in step.parts
  ]


_NOTHING = memory.Memory(0.0, 0.0, 0.0, 0.0)


def _size(tree: Any) -> float:
  return float(sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)))
