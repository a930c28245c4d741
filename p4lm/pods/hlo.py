"""Reads XLA's optimised HLO text into computations and instructions.

Only what costs are counted from: names, opcodes, shapes with their memory
space, operands, and the attributes as text. A line of the format:

  ROOT %dot.3 = f32[8,4]{1,0} dot(%a, %b), lhs_contracting_dims={1}, ...
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re

_BITS = {
  'pred': 8,
  'token': 0,
  'opaque': 0,
  'bf16': 16,
  's4': 4,
  'u4': 4,
  's2': 2,
  'u2': 2,
}
_ARRAY = re.compile(r'([a-z]\w*)\[([\d,<= ]*)\](?:\{([^{}]*)\})?')
_SPACE = re.compile(r'S\((\d+)\)')
_HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$')
_NAME = re.compile(r'^\s*(ROOT )?%?([\w.\-]+) = ')
_OPERAND = re.compile(r'%([\w.\-]+)')
_COMMENT = re.compile(r'/\*[^*]*\*/')


@dataclasses.dataclass(frozen=True)
class ArrayShape:
  """An array's element type, dimensions and where it lies.

  Attributes:
    dtype: XLA's name, such as 'bf16'.
    dims: its dimensions.
    space: of memory: 0 is the device's main memory, others are on the chip.
  """

  dtype: str
  dims: tuple[int, ...]
  space: int = 0

  @property
  def size(self) -> int:
    return math.prod(self.dims)

  @property
  def bytes(self) -> float:
    """Without the padding that a tiled layout adds."""
    return self.size * _bits(self.dtype) / 8


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation.

  Attributes:
    name, opcode: as written.
    shapes: of the result's arrays; one unless the result is a tuple.
    operands: names.
    arguments: the text between the parentheses.
    attributes: the text after them.
  """

  name: str
  opcode: str
  shapes: tuple[ArrayShape, ...]
  operands: tuple[str, ...]
  arguments: str
  attributes: str

  @property
  def shape(self) -> ArrayShape:
    return self.shapes[0]

  def attribute(self, name: str) -> str | None:
    """The text of an attribute, without its braces; None when it is absent."""
    match = re.search(rf'(?:^|[\s,{{"]){name}"?[=:]', self.attributes)
    if match is None:
      return None
    rest = self.attributes[match.end() :]
    if rest.startswith('{'):
      return rest[1 : _closing(rest, 0)]
    return re.match(r'"?([^,\s"}]*)', rest).group(1)

  def numbers(self, name: str) -> tuple[int, ...]:
    """An attribute such as {0,1} as integers; empty when it is absent."""
    return tuple(map(int, re.findall(r'\d+', self.attribute(name) or '')))

  def called(self, name: str) -> str | None:
    """The computation that an attribute names."""
    match = re.search(rf'\b{name}=%?([\w.\-]+)', self.attributes)
    return match and match.group(1)


@dataclasses.dataclass(frozen=True)
class Computation:
  """A function of the program; `root` is what it returns."""

  name: str
  instructions: dict[str, Instruction]
  root: Instruction

  @functools.cached_property
  def users(self) -> dict[str, list[Instruction]]:
    """The instructions that read each instruction."""
    users: dict[str, list[Instruction]] = {n: [] for n in self.instructions}
    for instruction in self.instructions.values():
      for operand in dict.fromkeys(instruction.operands):
        if operand in users:
          users[operand].append(instruction)
    return users

  @functools.cached_property
  def parameters(self) -> dict[int, Instruction]:
    """Parameters by their number."""
    return {
      int(i.arguments): i
      for i in self.instructions.values()
      if i.opcode == 'parameter'
    }

  def operand(self, instruction: Instruction, index: int) -> Instruction:
    return self.instructions[instruction.operands[index]]


@dataclasses.dataclass(frozen=True)
class Module:
  """A whole program."""

  computations: dict[str, Computation]
  entry: Computation


def parse(text: str) -> Module:
  """Reads a module's text, as `compiled.as_text()` gives it.

  Raises:
    ValueError: the text has no entry computation, or a line that is no
      instruction.
  """
  computations, entry = {}, None
  name, is_entry, lines = None, False, []
  for line in _COMMENT.sub('', text).splitlines():
    if name is None:
      if header := _HEADER.match(line):
        is_entry, name, lines = bool(header[1]), header[2], []
    elif line.startswith('}'):
      computations[name] = _computation(name, lines)
      entry = computations[name] if is_entry else entry
      name = None
    elif line.strip():
      lines.append(line)
  if entry is None:
    raise ValueError('the text has no ENTRY computation')
  return Module(computations, entry)


def _computation(name: str, lines: list[str]) -> Computation:
  instructions, root = {}, None
  for line in lines:
    instruction, is_root = _instruction(line)
    instructions[instruction.name] = instruction
    if is_root or root is None:
      root = instruction
  return Computation(name, instructions, root)


def _instruction(line: str) -> tuple[Instruction, bool]:
  match = _NAME.match(line)
  if match is None:
    raise ValueError(f'no HLO instruction: {line[:120]!r}')
  rest = line[match.end() :]
  end = _closing(rest, 0) + 1 if rest.startswith('(') else rest.index(' ')
  shapes = _shapes(rest[:end])
  rest = rest[end:].lstrip()
  opcode, _, _ = rest.partition('(')
  start = len(opcode)
  close = _closing(rest, start)
  arguments = rest[start + 1 : close]
  operands = () if opcode in ('parameter', 'constant') else _names(arguments)
  return (
    Instruction(
      match[2], opcode, shapes, operands, arguments, rest[close + 1 :]
    ),
    match[1] is not None,
  )


def _names(arguments: str) -> tuple[str, ...]:
  named = tuple(_OPERAND.findall(arguments))
  # Some printers leave out the percent sign.
  return named or tuple(a.split()[-1] for a in arguments.split(',') if a)


def _shapes(text: str) -> tuple[ArrayShape, ...]:
  shapes = []
  for dtype, dims, layout in _ARRAY.findall(text):
    space = _SPACE.search(layout)
    sizes = tuple(int(d.strip('<= ')) for d in dims.split(',') if d.strip())
    shapes.append(ArrayShape(dtype, sizes, int(space[1]) if space else 0))
  return tuple(shapes)


def _closing(text: str, start: int) -> int:
  """Index of the bracket that closes the one at `start`."""
  depth, quoted = 0, False
  for index in range(start, len(text)):
    character = text[index]
    if character == '"':
      quoted = not quoted
    elif quoted:
      continue
    elif character in '({[':
      depth += 1
    elif character in ')}]':
      depth -= 1
      if depth == 0:
        return index
  raise ValueError(f'a bracket is not closed: {text[start : start + 80]!r}')


def _bits(dtype: str) -> int:
  if dtype in _BITS:
    return _BITS[dtype]
  if dtype.startswith('f8'):
    return 8
  if dtype.startswith('f4'):
    return 4
  digits = re.search(r'\d+', dtype)
  return int(digits[0]) if digits else 0
