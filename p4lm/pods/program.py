"""What a compiled program does, with the bodies of its loops multiplied.

XLA's own `cost_analysis` counts the body of a loop once. Here every
instruction has the number of times that it runs: the trip counts of the loops
around it, read from their conditions.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from p4lm.pods import collectives, hlo, operations
from p4lm.pods.collectives import Collective
from p4lm.pods.hlo import Computation, Instruction, Module


@dataclasses.dataclass(frozen=True)
class Operation:
  """An instruction and what one run of it takes, on one device.

  Attributes:
    name: of the instruction.
    times: how often it runs.
    flops: of its products.
    hbm_bytes: read and written in main memory.
    open_loop: whether it runs in a loop that may end early; `times` is then
      the most that it can be.
    asynchronous: whether other operations run meanwhile.
  """

  name: str
  times: int
  flops: float
  hbm_bytes: float
  open_loop: bool = False
  asynchronous: bool = False


@dataclasses.dataclass(frozen=True)
class Loop:
  """A loop of a program.

  Attributes:
    name: of the instruction.
    trips: how often its body runs each time; None when the text does not say.
    ends_early: whether `trips` is only the most.
  """

  name: str
  trips: int | None
  ends_early: bool = False


@dataclasses.dataclass(frozen=True)
class Program:
  """Everything that a program does on one device."""

  operations: tuple[Operation, ...]
  collectives: tuple[Collective, ...]
  loops: tuple[Loop, ...]

  @property
  def flops(self) -> float:
    """Of all matrix products."""
    return sum(o.times * o.flops for o in self.operations)

  @property
  def hbm_bytes(self) -> float:
    """Read from and written to main memory."""
    return sum(o.times * o.hbm_bytes for o in self.operations)

  def part(self, *, open_loop: bool) -> Program:
    """What runs inside (or outside) of loops that may end early."""
    return Program(
      tuple(o for o in self.operations if o.open_loop == open_loop),
      tuple(c for c in self.collectives if c.open_loop == open_loop),
      self.loops,
    )


def read_program(text: str) -> Program:
  """The costs of a module's text, as `compiled.as_text()` gives it.

  A loop whose trip count the text does not say is taken to run once, and is
  listed with `trips` None.
  """
  walk = _Walk(hlo.parse(text))
  walk.computation(walk.module.entry, 1, False)
  return Program(
    tuple(walk.operations), tuple(walk.collectives), tuple(walk.loops)
  )


class _Walk:
  """Visits every computation as often as the program runs it."""

  def __init__(self, module: Module):
    self.module = module
    self.operations: list[Operation] = []
    self.collectives: list[Collective] = []
    self.loops: list[Loop] = []

  def computation(self, computation: Computation, times: int, open_loop: bool):
    # An asynchronous collective appears in the fusion that starts it, in those
    # that carry it on and in the one that ends it, with one channel.
    channels: set[str] = set()
    for instruction in computation.instructions.values():
      if instruction.opcode == 'while':
        self._loop(computation, instruction, times, open_loop)
      elif instruction.opcode in ('call', 'conditional'):
        self._branches(instruction, times, open_loop)
      else:
        self._operation(computation, instruction, times, open_loop, channels)

  def _loop(self, computation, instruction, times, open_loop):
    loop = _trips(self.module, computation, instruction)
    self.loops.append(loop)
    body = self.module.computations[instruction.called('body')]
    trips = 1 if loop.trips is None else loop.trips
    self.computation(body, times * trips, open_loop or loop.ends_early)

  def _branches(self, instruction, times, open_loop):
    names = re.findall(r'%([\w.\-]+)', instruction.attributes)
    called = [n for n in dict.fromkeys(names) if n in self.module.computations]
    if instruction.opcode == 'call':
      called = called[:1]
    # Of several branches the first is taken as an example of its like.
    for name in called[:1]:
      self.computation(self.module.computations[name], times, open_loop)

  def _operation(self, computation, instruction, times, open_loop, channels):
    flops = 0.0
    asynchronous = False
    for inner, one in _inside(self.module, computation, instruction):
      flops += operations.product_flops(inner, one)
      asynchronous |= 'AsyncCollective' in one.attributes
    for inner, one in _inside(self.module, computation, instruction):
      if not collectives.is_collective(one):
        continue
      channel = one.attribute('channel_id')
      if channel is None or channel not in channels:
        self.collectives.append(
          collectives.read(inner, one, times, open_loop, asynchronous)
        )
      channels.add(channel)
    moved = operations.memory_bytes(self.module, computation, instruction)
    if flops or moved:
      self.operations.append(
        Operation(
          instruction.name,
          times,
          flops,
          moved,
          open_loop,
          instruction.opcode.endswith('-start'),
        )
      )


def _inside(
  module: Module, computation: Computation, instruction: Instruction
) -> Iterator[tuple[Computation, Instruction]]:
  """The instruction, or all that it calls, with their computations."""
  yield computation, instruction
  called = instruction.called('calls')
  if called in module.computations:
    inner = module.computations[called]
    for one in inner.instructions.values():
      yield from _inside(module, inner, one)


def _trips(module, computation, instruction) -> Loop:
  """How often a loop's body runs."""
  known = re.search(
    r'"?known_trip_count"?:\{"?n"?:"?(\d+)', instruction.attributes
  )
  if known:
    return Loop(instruction.name, int(known[1]))
  condition = module.computations[instruction.called('condition')]
  bounds = [
    (bound, one is condition.root)
    for inner, one in _condition(module, condition)
    if (bound := _bound(module, condition, inner, one)) is not None
  ]
  if not bounds:
    return Loop(instruction.name, None)
  (index, limit), _ = bounds[0]
  first = _first_value(computation, instruction, index)
  exact = _is_count(module, condition)
  return Loop(instruction.name, max(limit - first, 0), not exact)


def _condition(module, condition):
  for one in condition.instructions.values():
    yield from _inside(module, condition, one)


def _is_count(module: Module, condition: Computation) -> bool:
  """Whether a condition compares a counter and does nothing else."""
  return not any(
    one.opcode in ('and', 'reduce', 'not', 'or')
    for _, one in _condition(module, condition)
  )


def _bound(module, condition, computation, one):
  """(index of the counter in the loop's tuple, limit) of `counter < limit`."""
  if one.opcode != 'compare' or one.attribute('direction') not in ('LT', 'GT'):
    return None
  sides = [_source(module, condition, computation, n) for n in one.operands]
  if one.attribute('direction') == 'GT':
    sides.reverse()
  counter, limit = sides
  if counter is None or limit is None:
    return None
  if counter.opcode != 'get-tuple-element' or limit.opcode != 'constant':
    return None
  if not re.fullmatch(r'-?\d+', limit.arguments.strip()):
    return None
  return int(counter.attribute('index')), int(limit.arguments)


def _source(module, condition, computation, name) -> Instruction | None:
  """What a value is, seen through copies and into the caller of a fusion."""
  one = computation.instructions[name]
  while one.opcode in ('copy', 'bitcast', 'convert'):
    one = computation.instructions[one.operands[0]]
  if one.opcode != 'parameter' or computation is condition:
    return one
  for caller in condition.instructions.values():
    if caller.called('calls') == computation.name:
      return _source(
        module, condition, condition, caller.operands[int(one.arguments)]
      )
  return None


def _first_value(computation, loop, index) -> int:
  """The counter's value before the loop; 0 where the text does not say."""
  start = computation.instructions.get(loop.operands[0])
  if start is None or start.opcode != 'tuple':
    return 0
  one = computation.instructions.get(start.operands[index])
  while one is not None and one.opcode in ('copy', 'bitcast'):
    one = computation.instructions.get(one.operands[0])
  if one is None or one.opcode != 'constant':
    return 0
  return int(one.arguments)
