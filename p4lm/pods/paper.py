"""A plan on paper, where no compiler knows the pod.

From the shardings of the model's own arrays, which are exact, and from rules
of thumb for the rest:

  memory  state + gradients + the activations that the backward pass needs (a
          layer's input each with remat, else about all of a layer) + the
          largest working set (one layer, or the logits); to draw tokens, the
          weights without fsdp and the keys and values
  links   fsdp: weights are gathered for each pass, or once for all tokens
          that are drawn, gradients reduced and scattered; data, replica:
          gradients reduced; model: two all-reduces of the residual stream a
          layer and pass, three with cross-attention
  HBM     weights a pass, maps' inputs and outputs, scores, the optimizer,
          for each token drawn the keys and values kept

It ranks meshes and tells what cannot fit; a compiler says how much.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from p4lm.models.flops import (
  LanguageModelSizes,
  Shapes,
  Stack,
  UpdateFlops,
  decoder_only_pairs,
)
from p4lm.pods.collectives import Collective, Network
from p4lm.pods.memory import Memory
from p4lm.pods.roofline import StepTime

# Times that a score is written or read in a pass: product, bias, softmax.
_SCORE_PASSES = 5


@dataclasses.dataclass(frozen=True)
class PaperStep:
  """What a plan is made of.

  Attributes:
    lm: the language model.
    shapes: of the whole batch.
    flops: on all chips.
    weights: parameters of the model, in numbers.
    state_bytes, beside_bytes: of one chip.
    mesh_shape: sizes by axis.
    itemsize: bytes of the type that is computed in.
    trains: whether there is a backward pass.
    accumulate: microbatches of a batch.
  """

  lm: LanguageModelSizes
  shapes: Shapes
  flops: UpdateFlops
  weights: float
  state_bytes: float
  mesh_shape: Mapping[str, int]
  beside_bytes: float = 0.0
  itemsize: int = 2
  trains: bool = True
  accumulate: int = 1

  @property
  def shards(self) -> int:
    """Parts that a batch is split into."""
    return math.prod(self.mesh_shape[a] for a in ('replica', 'data', 'fsdp'))

  @property
  def tensor(self) -> int:
    """Parts that a layer is split into."""
    return self.mesh_shape['model']

  @property
  def passes(self) -> int:
    """Times that the weights are read: forward, backward."""
    return (2 if self.trains else 1) * self.accumulate

  def stacks(self) -> list[tuple[Stack, float, float]]:
    """(stack, positions, pairs of query and key) on one data shard."""
    rows = self.shapes.rows / self.shards
    prompts = self.shapes.prompts / self.shards
    prompt, response = self.shapes.prompt_length, self.shapes.response_length
    found = [
      (s, prompts * prompt, prompts * prompt**2) for s in self.lm.encoder
    ]
    for stack in self.lm.decoder:
      positions = rows * response
      pairs = positions * (prompt + response)
      if not self.lm.encoder:
        positions += prompts * prompt
        pairs = decoder_only_pairs(self.shapes) / self.shards
      found.append((stack, positions, pairs))
    return found


def paper_memory(step: PaperStep, passes: int | None = None) -> Memory:
  """The memory of one chip; `passes` as of `paper_collectives`."""
  gradients = activations = 0.0
  held, parts = 0.0, step.accumulate * (passes or 1)
  if passes is not None:
    # Weights that every token needs lie whole but for `model`.
    held = _weight_bytes(step, passes) + _cache_bytes(step)
  working = 0.0
  for stack, positions, pairs in step.stacks():
    positions, pairs = positions / parts, pairs / parts
    layer = _layer_bytes(step, stack, positions, pairs)
    kept = positions * stack.width * step.itemsize if stack.remat else layer
    activations += stack.layers * kept if step.trains else kept
    working = max(working, 2 * layer)
  logits = step.shapes.rows * step.shapes.response_length * step.lm.vocab_size
  logits *= 4 * 2 / (step.shards * step.tensor * parts)
  if step.trains:
    gradients = 4 * step.weights / (step.mesh_shape['fsdp'] * step.tensor)
  return Memory(
    arguments=step.state_bytes,
    temporaries=gradients + held + activations + max(working, logits),
    outputs=0.0,
    aliased=0.0,
    beside=step.beside_bytes,
  )


def paper_collectives(
  step: PaperStep, passes: int | None = None
) -> tuple[Collective, ...]:
  """The collectives that a step cannot do without.

  Args:
    step: what is planned.
    passes: tokens drawn one after the other, each of which reads the weights;
      a step that reads whole responses by default.
  """
  mesh, found = step.mesh_shape, []
  held = _weight_bytes(step, passes)
  add = lambda kind, axes, times, size: found.append(
    Collective(
      'on paper', kind, times, size, axis_groups(mesh, axes), False, True
    )
  )
  if mesh['fsdp'] > 1:
    add('all-gather', ('fsdp',), step.passes, held)
    if step.trains:
      add('reduce-scatter', ('fsdp',), step.accumulate, held)
  if step.trains and mesh['data'] * mesh['replica'] > 1:
    size = 4 * step.weights / (step.tensor * mesh['fsdp'])
    add('all-reduce', ('replica', 'data'), 1, size)
  if step.tensor > 1:
    for stack, positions, _ in step.stacks():
      blocks = stack.layers * (3 if stack.cross else 2) * (passes or 1)
      repeats = (3 if stack.remat else 2) if step.trains else 1
      size = positions * stack.width * step.itemsize / (passes or 1)
      add('all-reduce', ('model',), blocks * repeats, size)
  return tuple(found)


def paper_time(
  step: PaperStep, network: Network, passes: int | None = None
) -> StepTime:
  """The roofline of a step; communication is taken to be hidden."""
  chips = math.prod(step.mesh_shape.values())
  compute = step.flops.executed / chips / network.chip.peak_flops
  moved = _weight_bytes(step, passes) * step.passes
  if passes is not None:
    moved = passes * (moved + _cache_bytes(step))
  moved += 2 * step.state_bytes if step.trains else 0.0
  for stack, positions, pairs in step.stacks():
    repeats = (4 if stack.remat else 3) if step.trains else 1
    layer = _layer_bytes(step, stack, positions, pairs)
    moved += stack.layers * repeats * layer
  memory = moved / network.chip.hbm_bandwidth
  links = sum(
    c.times * network.seconds(c) for c in paper_collectives(step, passes)
  )
  return StepTime(compute, memory, links, 0.0, max(compute, memory))


def axis_groups(mesh: Mapping[str, int], axes: tuple[str, ...]) -> np.ndarray:
  """int [groups, devices] of a collective along some axes of a mesh.

  >>> axis_groups({'data': 2, 'model': 2}, ('data',)).tolist()
  [[0, 2], [1, 3]]
  """
  names = list(mesh)
  ids = np.arange(math.prod(mesh.values())).reshape(tuple(mesh.values()))
  inner = [i for i, name in enumerate(names) if name in axes]
  outer = [i for i in range(len(names)) if i not in inner]
  size = math.prod(mesh[names[i]] for i in inner)
  return ids.transpose(outer + inner).reshape(-1, size)


def _weight_bytes(step: PaperStep, passes: int | None) -> float:
  """Of the weights that a pass reads, those of one model shard.

  Drawing tokens reads those of the decoder and the two tables of words, or
  the one that is both.
  """
  weights = step.weights
  if passes is not None:
    words = 2 * step.lm.vocab_size * step.lm.decoder[0].width
    maps = sum(stack.layers * _maps_size(stack) for stack in step.lm.decoder)
    weights = min(weights, maps + words)
  return weights * step.itemsize / step.tensor


def _maps_size(stack: Stack) -> int:
  attention = [*stack.query_maps(), *stack.key_maps()]
  maps = attention * (2 if stack.cross else 1) + stack.feed_forward_maps()
  return sum(inputs * outputs for inputs, outputs in maps)


def _cache_bytes(step: PaperStep) -> float:
  """Of the keys and values that drawing tokens reads, on one chip."""
  shapes, positions = step.shapes, 0.0
  for stack in step.lm.decoder:
    kept = shapes.rows * shapes.response_length
    if stack.cross or not step.lm.encoder:
      kept += shapes.prompts * shapes.prompt_length
    split = 1 if stack.kv_heads % step.tensor else step.tensor
    width = stack.kv_heads * stack.head_width / split
    positions += stack.layers * kept * 2 * width
  return positions * step.itemsize / step.shards


def _layer_bytes(step, stack, positions, pairs) -> float:
  """Of the arrays that one layer makes."""
  maps = stack.query_maps() + stack.key_maps() + stack.feed_forward_maps()
  split = sum(outputs for _, outputs in maps if outputs != stack.width)
  whole = sum(outputs for _, outputs in maps if outputs == stack.width)
  arrays = positions * (split / step.tensor + whole) * step.itemsize
  scores = stack.heads / step.tensor * pairs * 4
  return arrays + _SCORE_PASSES / 2 * scores
