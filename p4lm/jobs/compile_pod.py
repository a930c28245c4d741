"""Compiles a job's steps for a pod that is not here, and says what they take.

  p4lm compile_pod --gin_file=runs/train_lm.gin --gin.MODEL=t5_1_1_xxl \
    --gin.TOPOLOGY=v5e:16x16 --gin.MESH_SHAPE=data=2,fsdp=128 \
    --gin.BATCH_SIZE=2048 --gin.OUTPUT_DIR=runs/pod

With libtpu (`pip install 'p4lm[tpu]'`) the real program is compiled ahead of
time, on any machine and without a TPU; without it the plan is made on paper.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import tqdm

from p4lm import output_directory
from p4lm.errors import UserError
from p4lm.evaluation.text_tables import markdown, plain
from p4lm.partitioning.mesh import make_mesh
from p4lm.pods import meshes as mesh_choice
from p4lm.pods import report
from p4lm.pods.chips import GIB
from p4lm.pods.report import StepReport
from p4lm.pods.topologies import Topology, get_topology
from p4lm.runs import planned_steps, pod_reports
from p4lm.runs.planned_steps import ModelPlan, PlannedStep

JOBS = ('train_lm', 'train_reward', 'train_rl')


def compile_pod(
  *,
  planned: Mapping[str, Mapping[str, Any]],
  topology: str,
  output_dir: str,
  model: Any,
  prompt_length: int,
  response_length: int,
  mesh_shape: str | None = None,
  meshes: Sequence[str] | str | None = None,
  cf_width: int = 0,
  vectors: int = 2,
  num_compiled: int = 3,
) -> None:
  """Memory, FLOPs, collectives, time and MFU of a job's steps on a pod.

  Writes `results.json` and `results.md`; a step that was compiled by an
  earlier start is not compiled again.

  Args:
    planned: {job: its arguments}, from the run files given.
    topology: such as 'v5e:16x16'.
    output_dir: gets the results.
    model: sizes of the language model, `vocab_size` included.
    prompt_length, response_length: P and L in tokens.
    mesh_shape: such as 'fsdp=64,model=4'; by default every chip is on `data`.
    meshes: several of them, or 'all': every sensible one is planned on paper
      and the `num_compiled` best are compiled.
    cf_width: E of the CF vectors; 0 for a model of text alone.
    vectors: CF vectors of a prompt.
    num_compiled: see `meshes`.
  Raises:
    UserError: bad input, or a job that fits on none of the meshes (after
      everything has been written).
  """
  jobs = {job: planned[job] for job in JOBS if job in planned}
  if not jobs:
    raise UserError(
      'compile_pod needs the job that it is to plan: give its run file, such '
      f'as --gin_file=runs/train_lm.gin (one of {", ".join(JOBS)})'
    )
  pod = get_topology(topology)
  directory = output_directory.claim(output_dir)
  # The pod's devices are only described; no accelerator here is needed.
  jax.config.update('jax_platforms', 'cpu')
  plan = ModelPlan(model, prompt_length, response_length, cf_width, vectors)
  chosen = _meshes(pod, plan, jobs, mesh_shape, meshes, num_compiled)
  reports = _Reports(directory, pod, plan)
  work = [(mesh, s) for mesh in chosen for s in _steps(jobs, plan, mesh)]
  for number, (mesh, step) in enumerate(work, start=1):
    reports.add(step, mesh, f'{number} of {len(work)}')
  reports.show(list(jobs))


class _Reports:
  """What is known so far, on disk after every step."""

  def __init__(self, directory: Path, pod: Topology, plan: ModelPlan):
    self._directory, self._pod, self._plan = directory, pod, plan
    self._earlier = _read_results(directory / 'results.json')
    self.reports: list[StepReport] = []

  def add(
    self, step: PlannedStep, mesh: jax.sharding.Mesh, number: str
  ) -> None:
    """Compiles a step, or takes what an earlier start found.

    Args:
      step: what is compiled.
      mesh: for these devices.
      number: which of all it is, for people.
    """
    text = report.mesh_text(mesh.shape)
    wanted = {(step.job, part, text) for part in step.parts}
    found = [r for r in self._earlier if (r.job, r.step, r.mesh) in wanted]
    if len(found) < len(wanted):
      names = ' and '.join(step.parts)
      if self._pod.compiles:
        print(f'{number}: compiling {step.job} {names} on {text}', flush=True)
        found = pod_reports.compiled_reports(step, self._pod, mesh)
        print(f'  {found[0].compile_secs:.0f} s', flush=True)
      else:
        found = pod_reports.paper_reports(
          step, self._pod, mesh, self._plan.sizes
        )
    self.reports += found
    self._write()

  def show(self, jobs: Sequence[str]) -> None:
    """Prints the table and the best mesh of each job.

    Raises:
      UserError: a job fits on none of the meshes.
    """
    print(plain(report.HEADER, [r.cells() for r in self.reports]))
    if not self._pod.compiles:
      print(f'On paper alone: {self._why_on_paper()}')
    best = self._best()
    for job, mesh in best.items():
      if mesh is not None:
        print(f'{job}: {mesh} is best of the meshes above.')
    print(f'Results: {self._directory / "results.md"}')
    for job, mesh in best.items():
      if mesh is None:
        raise UserError(self._too_large(job))

  def _best(self) -> dict[str, str | None]:
    jobs = dict.fromkeys(r.job for r in self.reports)
    return {job: report.best_mesh(self.reports, job) for job in jobs}

  def _why_on_paper(self) -> str:
    if self._pod.chip.torus_ring is None:
      return 'JAX compiles for GPUs only where one is.'
    return (
      'libtpu is not installed here, so nothing was compiled '
      "(pip install 'p4lm[tpu]')."
    )

  def _too_large(self, job: str) -> str:
    own = [r for r in self.reports if r.job == job and not r.fits]
    least = min(own, key=lambda r: r.memory['total'])
    return (
      f'{job} does not fit on {self._pod.name}: its {least.step} needs '
      f'{least.memory["total"] / GIB:.1f} GiB of the '
      f'{least.limit / GIB:.1f} GiB of a {self._pod.chip.name} chip on the '
      f'mesh {least.mesh}. Take a mesh with more fsdp or model, a smaller '
      'BATCH_SIZE, FitConfig.accumulate, remat, or a larger TOPOLOGY'
    )

  def _write(self) -> None:
    about = {
      'topology': self._pod.name,
      'chips': len(self._pod.devices),
      'best': self._best(),
    }
    self._put('results.json', report.dumps(self.reports, about))
    lines = [f'# {self._pod.name}, {len(self._pod.devices)} chips', '']
    lines += [markdown(report.HEADER, [r.cells() for r in self.reports]), '']
    for job, mesh in self._best().items():
      lines.append(f'{job}: {mesh or "no mesh"} is best.')
    self._put('results.md', '\n'.join(lines) + '\n')

  def _put(self, name: str, text: str) -> None:
    partial = self._directory / f'.{name}.partial'
    partial.write_text(text, encoding='utf-8')
    os.replace(partial, self._directory / name)


def _meshes(pod, plan, jobs, mesh_shape, meshes, num_compiled):
  """The meshes to compile for, most promising first where they are many."""
  make = lambda shape: make_mesh(shape, devices=pod.devices)
  if meshes is None:
    meshes = [mesh_shape]
  if meshes != 'all':
    return [_whole(make(shape), pod, shape) for shape in meshes]
  ranked = []
  shapes = mesh_choice.sensible_meshes(
    len(pod.devices),
    rows=min(arguments['batch_size'] for arguments in jobs.values()),
    heads=plan.sizes.num_heads,
  )
  for shape in tqdm.tqdm(shapes, 'planning on paper', unit='mesh'):
    mesh = make(shape)
    try:
      steps = _steps(jobs, plan, mesh)
    except UserError:
      continue  # It does not divide some parameter.
    found = [
      one
      for step in steps
      for one in pod_reports.paper_reports(step, pod, mesh, plan.sizes)
    ]
    secs = sum(one.secs['compiled'] for one in found)
    ranked.append((not all(r.fits for r in found), secs, len(ranked), mesh))
  ranked.sort(key=lambda row: row[:3])
  if pod.compiles:
    ranked = ranked[:num_compiled]
  return [mesh for *_, mesh in ranked]


def _whole(mesh, pod, shape):
  if mesh.size != len(pod.devices):
    raise UserError(
      f'MESH_SHAPE {shape} uses {mesh.size} chips, and {pod.name} has '
      f'{len(pod.devices)}; choose sizes whose product is that'
    )
  return mesh


def _steps(jobs, plan: ModelPlan, mesh) -> list[PlannedStep]:
  makers = {
    'train_lm': planned_steps.supervised_steps,
    'train_reward': planned_steps.reward_steps,
    'train_rl': planned_steps.reinforce_steps,
  }
  steps = []
  for job, arguments in jobs.items():
    read = inspect.signature(makers[job]).parameters
    own = {name: arguments[name] for name in arguments.keys() & read.keys()}
    steps += makers[job](plan, mesh, **own)
  return steps


def _read_results(path: Path) -> list[StepReport]:
  """Reports of an earlier start; none where the file is missing or cut."""
  try:
    return [
      StepReport.from_json(r) for r in json.loads(path.read_text())['steps']
    ]
  except (OSError, ValueError, KeyError, TypeError):
    return []
