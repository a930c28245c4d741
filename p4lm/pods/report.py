"""What a step asks of a chip, as rows of tables and as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from p4lm.pods.chips import GIB
from p4lm.pods.collectives import Collective, Network, mesh_axes
from p4lm.pods.memory import Memory
from p4lm.pods.roofline import StepTime

HEADER = (
  'mesh',
  'step',
  'HBM, GiB',
  'compute, ms',
  'HBM, ms',
  'links, ms',
  'step, ms',
  'MFU',
  'FLOPs / paper',
  'most on links',
)


@dataclasses.dataclass(frozen=True)
class StepReport:
  """One step of a job on one mesh.

  Attributes:
    job, step, mesh: names; the mesh as MESH_SHAPE writes it.
    source: 'compiled', 'paper', or 'refused' where the compiler found that
      the program does not fit.
    memory: bytes of one chip by kind, and their `total`.
    limit: bytes that a chip has.
    flops: executed by one chip's program (on paper: by rules).
    paper_flops: executed on one chip as counted on paper; None of a model that
      is not counted.
    model_flops: what the model's mathematics needs, on one chip.
    hbm_bytes: read and written by one chip.
    secs: `compute`, `memory`, `links`, `overlapped`, `compiled`, `serial`.
    peak_flops: of one chip.
    collectives: rows with `kind`, `axes`, `times`, `bytes`, `secs`.
    loops: {loop: trips}; None where the program does not say.
    compile_secs: how long the compiler took.
    note: what else there is to say.
  """

  job: str
  step: str
  mesh: str
  source: str
  memory: dict[str, float]
  limit: float
  flops: float
  paper_flops: float | None
  model_flops: float | None
  hbm_bytes: float
  secs: dict[str, float]
  peak_flops: float
  collectives: list[dict[str, Any]]
  loops: dict[str, int | None] = dataclasses.field(default_factory=dict)
  compile_secs: float = 0.0
  note: str = ''

  @property
  def fits(self) -> bool:
    return self.source != 'refused' and self.memory['total'] <= self.limit

  def mfu(self, arrangement: str = 'compiled') -> float | None:
    """Predicted share of the peak, 'overlapped', 'compiled' or 'serial'."""
    if self.model_flops is None or not self.secs.get(arrangement):
      return None
    return self.model_flops / self.peak_flops / self.secs[arrangement]

  def to_json(self) -> dict[str, Any]:
    """The fields, with what follows from them."""
    mfu = {name: self.mfu(name) for name in _ARRANGEMENTS}
    return dataclasses.asdict(self) | {'fits': self.fits, 'mfu': mfu}

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> StepReport:
    """The report that `to_json` made."""
    names = {field.name for field in dataclasses.fields(cls)}
    return cls(**{k: v for k, v in values.items() if k in names})

  def cells(self) -> list[str]:
    """A row of the table, under HEADER."""
    gib = f'{self.memory["total"] / GIB:.1f} of {self.limit / GIB:.1f}'
    if not self.fits:
      gib += ' !'
    if self.source == 'refused':
      return [self.mesh, self._name, gib] + ['–'] * (len(HEADER) - 3)
    ms = {name: 1e3 * value for name, value in self.secs.items()}
    ratio = '–'
    if self.paper_flops and self.source == 'compiled':
      ratio = f'{self.flops / self.paper_flops:.3f}'
    return [
      self.mesh,
      self._name,
      gib,
      f'{ms["compute"]:.4g}',
      f'{ms["memory"]:.4g}',
      f'{ms["links"]:.4g}',
      f'{ms["compiled"]:.4g} ({ms["overlapped"]:.4g}–{ms["serial"]:.4g})',
      _percent(self.mfu('serial'), self.mfu(), self.mfu('overlapped')),
      ratio,
      self._heaviest(),
    ]

  @property
  def _name(self) -> str:
    mark = ' (paper)' if self.source == 'paper' else ''
    return f'{self.job} {self.step}{mark}'

  def _heaviest(self) -> str:
    rows = sorted(self.collectives, key=lambda row: -row['secs'])
    return ', '.join(
      f'{row["kind"]} {row["axes"]} {row["bytes"] / 1e9:.3g} GB'
      for row in rows[:2]
    )


_ARRANGEMENTS = ('overlapped', 'compiled', 'serial')


def seconds(time: StepTime) -> dict[str, float]:
  """The times of a report."""
  names = ('compute', 'memory', 'links', 'device', *_ARRANGEMENTS)
  return {name: float(getattr(time, name)) for name in names}


def memory_bytes(memory: Memory) -> dict[str, float]:
  """The memory of a report."""
  return dataclasses.asdict(memory) | {'total': memory.total}


def summed_collectives(
  collectives: Sequence[Collective],
  mesh_shape: Mapping[str, int],
  network: Network,
) -> list[dict[str, Any]]:
  """Collectives by kind and mesh axes, the longest first.

  `bytes` are those of one chip, summed over all runs; see `Collective.bytes`.
  """
  rows: dict[tuple[str, str], dict[str, Any]] = {}
  for one in collectives:
    if one.kind == 'collective-permute':
      axes = mesh_axes(one.groups, mesh_shape).removeprefix('part of ')
    else:
      axes = mesh_axes(one.groups, mesh_shape)
    row = rows.setdefault(
      (one.kind, axes),
      {'kind': one.kind, 'axes': axes, 'times': 0, 'bytes': 0.0, 'secs': 0.0},
    )
    row['times'] += one.times
    row['bytes'] += one.times * one.bytes
    row['secs'] += one.times * float(network.seconds(one))
  return sorted(rows.values(), key=lambda row: -row['secs'])


def mesh_text(mesh_shape: Mapping[str, int]) -> str:
  """As MESH_SHAPE writes it, axes of one device left out.

  >>> mesh_text({'data': 2, 'fsdp': 1, 'model': 4})
  'data=2,model=4'
  """
  named = [f'{axis}={size}' for axis, size in mesh_shape.items() if size > 1]
  return ','.join(named) or 'data=1'


def best_mesh(reports: Sequence[StepReport], job: str) -> str | None:
  """The mesh on which all steps of a job fit and take the least time."""
  secs: dict[str, float] = {}
  for report in reports:
    if report.job == job:
      took = report.secs['compiled'] if report.fits else math.inf
      secs[report.mesh] = secs.get(report.mesh, 0.0) + took
  fitting = {mesh: took for mesh, took in secs.items() if took < math.inf}
  return min(fitting, key=fitting.get) if fitting else None


def dumps(reports: Sequence[StepReport], about: Mapping[str, Any]) -> str:
  """results.json."""
  rows = [report.to_json() for report in reports]
  return json.dumps({**about, 'steps': rows}, indent=2) + '\n'


def _percent(low, middle, high) -> str:
  if middle is None:
    return 'unknown'
  return f'{middle:.0%} ({low:.0%}–{high:.0%})'
