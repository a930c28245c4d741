"""The mesh shapes that are worth a try."""

from __future__ import annotations

_LARGEST_TENSOR = 8


def sensible_meshes(chips: int, *, rows: int, heads: int) -> list[str]:
  """MESH_SHAPEs for a number of chips, as text.

  Powers of two on data, fsdp and model, whose product is all chips: model
  divides the heads and is at most 8 (its all-reduces stand in the way of every
  layer), data and fsdp divide the batch. What is over when the chips are no
  power of two goes to data.

  >>> sensible_meshes(4, rows=8, heads=2)
  ['fsdp=4', 'fsdp=2,model=2', 'data=2,fsdp=2', 'data=2,model=2', 'data=4']
  """
  shapes = []
  for data in _divisors(chips):
    for model in _divisors(min(_LARGEST_TENSOR, chips)):
      fsdp, rest = divmod(chips, data * model)
      if rest or heads % model or rows % (data * fsdp):
        continue
      if fsdp != 1 and chips % fsdp:
        continue
      sizes = {'data': data, 'fsdp': fsdp, 'model': model}
      shapes.append(
        ','.join(f'{axis}={size}' for axis, size in sizes.items() if size > 1)
        or 'data=1'
      )
  return shapes


def _divisors(number: int) -> list[int]:
  """Powers of two that divide a number, and the number itself."""
  powers = [2**i for i in range(number.bit_length()) if number % 2**i == 0]
  return powers if number in powers else [*powers, number]
