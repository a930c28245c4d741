"""Collectives of a program: their bytes, their mesh axes, their time."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from p4lm.pods.chips import Chip
from p4lm.pods.hlo import Computation, Instruction

KINDS = (
  'all-reduce',
  'all-gather',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
  'collective-broadcast',
  'ragged-all-to-all',
)
# A message passes one chip in about a microsecond.
_HOP_SECS = 1e-6


@dataclasses.dataclass(frozen=True)
class Collective:
  """A collective and what one run of it moves, for one device.

  Attributes:
    name, kind: of the instruction.
    times: how often it runs.
    bytes: of the larger of its operand and its result: what an all-gather
      gives, what a reduce-scatter takes.
    groups: int [groups, devices], positions in the mesh's order; for a
      permutation its (source, target) pairs.
    open_loop: see `program.Operation`.
    asynchronous: whether the program does other work meanwhile.
  """

  name: str
  kind: str
  times: int
  bytes: float
  groups: np.ndarray
  open_loop: bool = False
  asynchronous: bool = False


def is_collective(instruction: Instruction) -> bool:
  """True for a collective, or the start of an asynchronous one."""
  return instruction.opcode.removesuffix('-start') in KINDS


def read(
  computation: Computation,
  instruction: Instruction,
  times: int,
  open_loop: bool,
  asynchronous: bool,
) -> Collective:
  """The collective of an instruction for which `is_collective` holds."""
  kind = instruction.opcode.removesuffix('-start')
  started = instruction.opcode.endswith('-start')
  operands = sum(
    shape.bytes
    for name in instruction.operands
    for shape in computation.instructions[name].shapes
  )
  results = sum(shape.bytes for shape in instruction.shapes)
  if started and kind in ('all-gather', 'collective-permute'):
    # The tuple of a start repeats the operands.
    results -= operands
  if kind == 'all-reduce' and _is_sliced(computation, instruction):
    kind = 'reduce-scatter'
  return Collective(
    instruction.name,
    kind,
    times,
    max(operands, results),
    device_groups(instruction),
    open_loop,
    asynchronous or started,
  )


def device_groups(instruction: Instruction) -> np.ndarray:
  """int [groups, devices] of a collective's groups; pairs of a permutation.

  XLA writes them out, {{0,1},{2,3}}; as a transposed range,
  [2,2]<=[2,2]T(1,0); or by the axes of a mesh, mesh['a'=2,'b'=2] {'a'}.
  """
  text = instruction.attributes
  name = 'replica_groups'
  if 'source_target_pairs=' in text:
    name = 'source_target_pairs'
  rest = text[text.index(f'{name}=') + len(name) + 1 :]
  if rest.startswith('{'):
    groups = re.findall(r'\{([\d, ]+)\}', rest[: rest.index('}}') + 1 or None])
    return np.array([[int(n) for n in g.split(',')] for g in groups])
  if rest.startswith('mesh['):
    return _mesh_groups(rest)
  shape, _, source = rest.partition('<=')
  return _range(source).reshape([int(n) for n in re.findall(r'\d+', shape)])


def _mesh_groups(text: str) -> np.ndarray:
  """Groups along axes of a mesh that the text describes.

  mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'} is a mesh of 4 x 2 whose
  devices are the range [2,4], transposed; {'a':(2)2} is the part of size 2 of
  the axis 'a' that comes after a part of size 2.
  """
  mesh, devices, chosen = re.match(
    r'mesh\[([^\]]*)\](?:, device_ids=\((.*?)\) (?=\{))?[^{]*\{([^}]*)\}', text
  ).groups()
  sizes = {n: int(s) for n, s in re.findall(r"'?(\w+)'?=(\d+)", mesh)}
  ids = _range(devices or f'[{math.prod(sizes.values())}]')
  parts: dict[str, tuple[int, int]] = {}
  for name, before, size in re.findall(
    r"'?(\w+)'?(?::\((\d+)\)(\d+))?", chosen
  ):
    parts[name] = (int(before or 1), int(size or sizes[name]))
  split, inner = [], []
  for name, size in sizes.items():
    before, part = parts.get(name, (1, 1))
    if name in parts:
      inner.append(len(split) + 1)
    split += [before, part, size // (before * part)]
  outer = [axis for axis in range(len(split)) if axis not in inner]
  size = math.prod(split[axis] for axis in inner)
  return ids.reshape(split).transpose(outer + inner).reshape(-1, size)


def _range(text: str) -> np.ndarray:
  """Device ids of [2,4]T(1,0): 0 .. 7 in that shape, transposed; or a list."""
  match = re.match(r'\[([\d,]+)\](?:T\(([\d,]+)\))?', text)
  if match is None:
    return np.array([int(n) for n in re.findall(r'\d+', text)])
  shape = [int(n) for n in match[1].split(',')]
  ids = np.arange(math.prod(shape)).reshape(shape)
  if match[2]:
    ids = ids.transpose([int(n) for n in match[2].split(',')])
  return ids


def mesh_axes(groups: np.ndarray, mesh_shape: Mapping[str, int]) -> str:
  """The mesh axes that a collective's groups run along, joined by '+'.

  'part of ' is said before axes that a group does not span; '' of a group of
  one device.

  >>> mesh_axes(np.array([[0, 2], [1, 3]]), {'data': 2, 'model': 2})
  'data'
  """
  places = np.array(np.unravel_index(groups, tuple(mesh_shape.values())))
  varies = (places != places[:, :, :1]).any(axis=(1, 2))
  axes = [name for name, differs in zip(mesh_shape, varies) if differs]
  spanned = math.prod(mesh_shape[name] for name in axes)
  joined = '+'.join(axes)
  return joined if groups.shape[1] == spanned else f'part of {joined}'


@dataclasses.dataclass(frozen=True)
class Network:
  """How the devices of a mesh are wired.

  Attributes:
    chip: gives the links.
    places: int [devices, dimensions], each device's place in the torus in the
      mesh's order.
  """

  chip: Chip
  places: np.ndarray

  @classmethod
  def of(cls, chip: Chip, devices: Sequence) -> Network:
    """The network of JAX devices; those without coordinates are switched."""
    coords = [getattr(d, 'coords', None) or (i,) for i, d in enumerate(devices)]
    places = np.array(coords)
    if chip.torus_ring is None:
      # (machine, GPU): described devices say so, real ones by their process.
      described = places.shape[1] > 1
      machines = places[:, 0] if described else _processes(devices)
      places = np.stack([machines, np.arange(len(devices))], axis=1)
    return cls(chip, places)

  @property
  def extent(self) -> np.ndarray:
    """Chips along each dimension of the torus."""
    return self.places.max(axis=0) + 1

  def seconds(self, collective: Collective) -> float:
    """Time of one run of a collective, if nothing else uses the links.

    Around rings, in both directions at once: an all-gather or reduce-scatter
    of V bytes over n devices moves V (n-1)/n through each device, an
    all-reduce twice that, an all-to-all V n / 4 around a ring.
    """
    groups = collective.groups
    size = groups.shape[1]
    if not groups.size or size == 1:
      return 0.0
    if collective.kind == 'collective-permute':
      return self._permutation_secs(collective)
    bandwidth, hops = self._ring(groups[0])
    moved = collective.bytes * (size - 1) / size
    if collective.kind == 'all-reduce':
      moved *= 2
    elif collective.kind.endswith('all-to-all') and self.chip.torus_ring:
      moved = collective.bytes * size / 4
    return max(moved / bandwidth, hops * _HOP_SECS)

  def _permutation_secs(self, collective) -> float:
    hops = 1
    if self.chip.torus_ring:
      gaps = self._gaps(collective.groups)
      hops = int(gaps.sum(axis=1).max(initial=0))
    per_link = collective.bytes / self.chip.link_bandwidth
    return max(hops * per_link, hops * _HOP_SECS)

  def _gaps(self, pairs: np.ndarray) -> np.ndarray:
    """int [pairs, dimensions]: steps between sources and targets."""
    extent = self.extent
    gaps = np.abs(self.places[pairs[:, 0]] - self.places[pairs[:, 1]])
    ring = extent >= self.chip.torus_ring
    return np.where(ring, np.minimum(gaps, extent - gaps), gaps)

  def _ring(self, group: np.ndarray) -> tuple[float, int]:
    """Bytes/s through each device of a group, and its longest way."""
    if self.chip.torus_ring is None:
      # A ring over several machines is as fast as what lies between them.
      machines = np.unique(self.places[group, :-1], axis=0)
      within = len(machines) == 1
      return (
        self.chip.link_bandwidth if within else self.chip.node_bandwidth
      ), 1
    bandwidth, hops = 0.0, 0
    for dimension, size in enumerate(self.extent):
      taken = np.unique(self.places[group, dimension])
      if len(taken) == 1:
        continue
      # Devices that are not neighbours share their links with other groups.
      shared = int(np.diff(taken).max())
      closed = shared * len(taken) == size and size >= self.chip.torus_ring
      links = 2 if closed else 1
      bandwidth += links * self.chip.link_bandwidth / shared
      hops += len(taken) // 2 if closed else len(taken) - 1
    return bandwidth or self.chip.link_bandwidth, max(hops, 1)


def _processes(devices: Sequence) -> np.ndarray:
  return np.array([getattr(d, 'process_index', 0) for d in devices])


def _is_sliced(computation: Computation, instruction: Instruction) -> bool:
  """Whether only a device's own part of an all-reduce's result is kept.

  XLA for TPUs writes a reduce-scatter as a fusion of the two.
  """
  users = computation.users[instruction.name]
  return bool(users) and all(
    user.opcode == 'dynamic-slice' and user is computation.root
    for user in users
  )
