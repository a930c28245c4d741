"""What a step needs of a chip's memory."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import jax
import numpy as np

from p4lm.pods.chips import GIB


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes of one chip.

  Attributes:
    arguments: what the program is called with.
    temporaries: what it makes on the way.
    outputs: what it gives.
    aliased: the part of the outputs that lies where arguments lay.
    code: the program itself.
    beside: arrays of the job that it does not read.
  """

  arguments: float
  temporaries: float
  outputs: float
  aliased: float
  code: float = 0.0
  beside: float = 0.0

  @property
  def total(self) -> float:
    return (
      self.arguments
      + self.temporaries
      + self.outputs
      - self.aliased
      + self.code
      + self.beside
    )


def of_compiled(compiled: Any, beside: float = 0.0) -> Memory:
  """The memory of a program, as its compiler says."""
  stats = compiled.memory_analysis()
  return Memory(
    arguments=stats.argument_size_in_bytes,
    temporaries=stats.temp_size_in_bytes,
    outputs=stats.output_size_in_bytes,
    aliased=stats.alias_size_in_bytes,
    code=stats.generated_code_size_in_bytes,
    beside=beside,
  )


def bytes_a_chip(tree: Any) -> float:
  """Bytes that arrays, real or described, take on one chip."""
  return float(sum(_shard_bytes(leaf) for leaf in jax.tree.leaves(tree)))


def _shard_bytes(leaf: jax.Array | jax.ShapeDtypeStruct) -> float:
  shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
    return 8.0 * math.prod(shape)
  return np.dtype(leaf.dtype).itemsize * math.prod(shape)


def asked_for(message: str) -> float | None:
  """Bytes that a compiler's message says are needed; None of another message.

  >>> asked_for('Ran out of memory in memory space hbm. Used 21.50G of 15.75G')
  23085449216.0
  """
  match = re.search(r'[Uu]sed ([\d.]+)([KMG]) of', message)
  if match is None:
    return None
  return float(match[1]) * GIB / {'G': 1, 'M': 2**10, 'K': 2**20}[match[2]]
