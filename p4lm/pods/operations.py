"""FLOPs and memory traffic of single HLO instructions."""

from __future__ import annotations

import itertools
import math
import re

from p4lm.pods.hlo import Computation, Instruction, Module

# These name, arrange or wait for values that others have computed.
_FREE = frozenset(
  'parameter constant tuple get-tuple-element bitcast after-all iota domain'
  ' partition-id replica-id while call conditional opt-barrier'
  ' add-dependency rng-get-and-update-state'.split()
)
_VIEWS = ('bitcast', 'custom-call', 'copy-done')
_SLICES = ('dynamic-slice', 'slice', 'gather')


def product_flops(computation: Computation, instruction: Instruction) -> float:
  """FLOPs of one matrix product or convolution; 0 of anything else."""
  if instruction.opcode == 'dot':
    left = computation.operand(instruction, 0).shape
    summed = instruction.numbers('lhs_contracting_dims')
    depth = math.prod(left.dims[axis] for axis in summed)
    return 2.0 * instruction.shape.size * depth
  if instruction.opcode == 'convolution':
    return _convolution_flops(computation, instruction)
  return 0.0


def _convolution_flops(computation, instruction) -> float:
  """2 x multiply-adds that meet an element, not padding or a hole.

  XLA writes batched products as convolutions whose windows pass over holes
  (dilation) and padding, so most positions of a window meet nothing.
  """
  left = computation.operand(instruction, 0).shape.dims
  right = computation.operand(instruction, 1).shape.dims
  result = instruction.shape.dims
  labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', instruction.attributes)
  left_labels, right_labels, result_labels = labels.groups()
  window = _window(instruction.attribute('window') or '')
  met = 1
  for axis in sorted(set(left_labels) & set('0123456789')):
    met *= _positions_met(
      left[left_labels.index(axis)],
      result[result_labels.index(axis)],
      {name: values[int(axis)] for name, values in window.items()},
    )
  groups = int(instruction.attribute('feature_group_count') or 1)
  batch_groups = int(instruction.attribute('batch_group_count') or 1)
  inputs = left[left_labels.index('f')] // groups
  outputs = right[right_labels.index('o')]
  rows = left[left_labels.index('b')] // batch_groups
  return 2.0 * met * inputs * outputs * rows


def _window(text: str) -> dict[str, list]:
  """{'size': [...], 'stride': [...], ...} of a window with all defaults."""
  fields = dict(re.findall(r'(\w+)=([\d_x\-]+)', text))
  size = [int(s) for s in fields.get('size', '').split('x') if s]
  ones = 'x'.join(['1'] * len(size))
  pad = fields.get('pad', 'x'.join(['0_0'] * len(size)))
  numbers = lambda name: [int(n) for n in fields.get(name, ones).split('x')]
  return {
    'size': size,
    'stride': numbers('stride') if size else [],
    'lhs_dilate': numbers('lhs_dilate') if size else [],
    'rhs_dilate': numbers('rhs_dilate') if size else [],
    'low': [int(p.split('_')[0]) for p in pad.split('x') if p],
  }


def _positions_met(inputs: int, outputs: int, window: dict[str, int]) -> int:
  """Pairs of a window's element and an output that meet an input."""
  met = 0
  for k, out in itertools.product(range(window['size']), range(outputs)):
    at = out * window['stride'] - window['low'] + k * window['rhs_dilate']
    hole = at % window['lhs_dilate']
    met += not hole and 0 <= at // window['lhs_dilate'] < inputs
  return met


def memory_bytes(
  module: Module, computation: Computation, instruction: Instruction
) -> float:
  """Bytes that an instruction reads from and writes to main memory.

  A fusion reads its parameters and writes its results once. Of a parameter
  that it only slices the slices count, of a result that it updates in place
  the update.
  """
  opcode = instruction.opcode
  if opcode in _FREE or opcode.endswith('-done'):
    return 0.0
  if opcode == 'fusion':
    fused = module.computations[instruction.called('calls')]
    return _fusion_bytes(module, computation, instruction, fused)
  if opcode in _SLICES:
    return 2 * _written(instruction)
  if opcode == 'dynamic-update-slice':
    return 2 * _bytes(computation.operand(instruction, 1))
  if opcode == 'scatter':
    return 3 * _bytes(computation.operand(instruction, 2))
  read = sum(
    _bytes(computation.instructions[name])
    for name in dict.fromkeys(instruction.operands)
    if name in computation.instructions
  )
  if opcode.endswith('-start'):
    return _started_bytes(computation, instruction)
  return read + _written(instruction)


def _started_bytes(computation, instruction) -> float:
  """Of an asynchronous copy or slice, whose tuple repeats its operands."""
  results = [s for s in instruction.shapes if s.dims]
  operands = [
    shape
    for name in instruction.operands
    for shape in computation.instructions[name].shapes
  ]
  for shape in operands:
    if shape in results:
      results.remove(shape)
  written = sum(shape.bytes for shape in results)
  read = sum(min(s.bytes, written) for s in operands if not s.space)
  return read + sum(shape.bytes for shape in results if not shape.space)


def _fusion_bytes(module, computation, instruction, fused) -> float:
  total = 0.0
  for number, name in enumerate(instruction.operands):
    operand = computation.instructions.get(name)
    if operand is not None and number in fused.parameters:
      parameter = fused.parameters[number]
      total += _read_bytes(module, fused, parameter, _bytes(operand))
  roots = [fused.root]
  if fused.root.opcode == 'tuple':
    roots = [fused.instructions[name] for name in fused.root.operands]
  for shape, root in zip(instruction.shapes, roots):
    inner, source = _through_views(module, fused, root)
    if shape.space or source.opcode == 'parameter':
      continue
    if source.opcode == 'dynamic-update-slice':
      total += inner.operand(source, 1).shape.bytes
    else:
      total += shape.bytes
  return total


def _read_bytes(module, fused, parameter, whole: float) -> float:
  """What a fusion reads of a parameter of `whole` bytes.

  Its users may be fusions too, as where a product takes a layer's kernel out
  of a stack.
  """
  if not whole or len(parameter.shapes) > 1:
    return whole
  read, pending, seen = 0.0, [parameter], set()
  while pending:
    source = pending.pop()
    for user in fused.users[source.name]:
      if user.name in seen:
        continue
      seen.add(user.name)
      if user.opcode in _VIEWS:
        pending.append(user)
      elif user.opcode in _SLICES and user.operands[0] == source.name:
        read += user.shape.bytes
      elif user.opcode == 'fusion':
        read += _read_inside(module, user, source, whole)
      elif user.opcode != 'tuple' and not (
        user.opcode == 'dynamic-update-slice'
        and user.operands[0] == source.name
      ):
        return whole
  return min(read, whole)


def _read_inside(module, fusion, source, whole: float) -> float:
  """What a fusion within a fusion reads of one of its operands."""
  inner = module.computations[fusion.called('calls')]
  # What it hands on as it came has users that are not followed.
  shown = inner.root
  while shown.opcode in _VIEWS:
    shown = inner.instructions[shown.operands[0]]
  numbers = [i for i, name in enumerate(fusion.operands) if name == source.name]
  return sum(
    whole
    if shown is inner.parameters[number]
    else _read_bytes(module, inner, inner.parameters[number], whole)
    for number in numbers
  )


def _through_views(module, computation, instruction):
  """What an instruction shows, and the computation where that is."""
  while True:
    if instruction.opcode == 'fusion':
      computation = module.computations[instruction.called('calls')]
      instruction = computation.root
      continue
    if instruction.opcode not in ('bitcast', 'copy'):
      return computation, instruction
    source = computation.instructions[instruction.operands[0]]
    if instruction.opcode == 'copy' and source.opcode != 'dynamic-update-slice':
      return computation, instruction
    instruction = source


def _bytes(instruction: Instruction) -> float:
  return sum(s.bytes for s in instruction.shapes if not s.space)


_written = _bytes
