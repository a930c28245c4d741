"""How long a step would take at least, from its program and its chip.

Three resources: the matrix units, the main memory, the links between chips.
A product cannot be quicker than its FLOPs at the peak, nor than its bytes at
the memory's bandwidth; what runs one after the other adds up:

  compute    FLOPs / peak
  memory     bytes / bandwidth
  links      the collectives, each alone on its links
  device     max(sum over operations of max(compute, memory), memory)

  overlapped  max(device, links)                  all communication is hidden
  compiled    max(device, hidden) + exposed       as the program arranges it
  serial      device + links                      none is hidden

No kernel reaches its roofline, so a machine takes longer than `compiled`; and
a program whose communication is better hidden than the text shows takes less.
"""

from __future__ import annotations

import dataclasses

from p4lm.pods.chips import Chip
from p4lm.pods.collectives import Network
from p4lm.pods.program import Program


@dataclasses.dataclass(frozen=True)
class StepTime:
  """Seconds of one step on a chip; see the equations above."""

  compute: float
  memory: float
  links: float
  exposed_links: float
  device: float

  @property
  def overlapped(self) -> float:
    return max(self.device, self.links)

  @property
  def compiled(self) -> float:
    hidden = self.links - self.exposed_links
    return max(self.device, hidden) + self.exposed_links

  @property
  def serial(self) -> float:
    return self.device + self.links

  @property
  def bound_by(self) -> str:
    """What takes longest: 'compute', 'memory' or 'links'."""
    times = {name: getattr(self, name) for name in _RESOURCES}
    return max(times, key=times.get)


_RESOURCES = ('compute', 'memory', 'links')


def step_time(program: Program, network: Network) -> StepTime:
  """The roofline of a program on one chip of a network."""
  chip = network.chip
  busy = sum(
    operation.times * operation_secs(operation.flops, operation.hbm_bytes, chip)
    for operation in program.operations
    if not operation.asynchronous
  )
  memory = program.hbm_bytes / chip.hbm_bandwidth
  links, exposed = 0.0, 0.0
  for collective in program.collectives:
    secs = collective.times * network.seconds(collective)
    links += secs
    exposed += 0.0 if collective.asynchronous else secs
  return StepTime(
    compute=program.flops / chip.peak_flops,
    memory=memory,
    links=links,
    exposed_links=exposed,
    device=max(busy, memory),
  )


def operation_secs(flops: float, hbm_bytes: float, chip: Chip) -> float:
  """The roofline of one operation."""
  return max(flops / chip.peak_flops, hbm_bytes / chip.hbm_bandwidth)
