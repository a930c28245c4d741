"""The one function that makes a device mesh."""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from p4lm.errors import UserError

MESH_AXES = ('replica', 'data', 'fsdp', 'model')


def make_mesh(
  shape: Mapping[str, int] | str | None = None,
  *,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """A mesh with the axes replica, data, fsdp and model, in that order.

  Axes that `shape` leaves out have size 1, so every rule of
  `partitioning.rules` names an existing axis on every mesh. All axes are Auto:
  the compiler propagates shardings from the arguments of a jitted function.

  >>> dict(make_mesh('data=1').shape)
  {'replica': 1, 'data': 1, 'fsdp': 1, 'model': 1}

  Args:
    shape: axis sizes, as a mapping or as text such as 'data=2,model=2'; one
      size may be -1 and takes what the others leave. None or '' puts every
      device on `data`.
    devices: the devices to use; all of them by default.

  Returns:
    A Mesh. With a single process a shape smaller than the device count uses
    the first devices; several processes must use every device.

  Raises:
    UserError: an unknown axis, a size that is no positive integer, or a
      product that does not divide the number of devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  sizes = _axis_sizes(shape, len(devices))
  total = math.prod(sizes.values())
  written = ','.join(f'{axis}={size}' for axis, size in sizes.items())
  if total > len(devices) or len(devices) % total:
    raise UserError(
      f'MESH_SHAPE {written} needs {total} devices, which does not divide the'
      f' {len(devices)} present; choose sizes whose product does.'
    )
  if jax.process_count() > 1 and total != len(devices):
    raise UserError(
      f'MESH_SHAPE {written} uses {total} of {len(devices)} devices; with'
      f' {jax.process_count()} processes it must use all of them.'
    )
  return _laid_out(tuple(sizes.values()), devices[:total])


def _laid_out(sizes: tuple[int, ...], devices: list[jax.Device]) -> Mesh:
  """A mesh whose axes lie along the dimensions of a TPU's torus.

  Where no axis is a product of whole dimensions, such as 32 x 2 on 4 x 4 x 4,
  dimensions are divided between axes.
  """
  types = (AxisType.Auto,) * len(MESH_AXES)
  try:
    return jax.make_mesh(
      sizes, MESH_AXES, axis_types=types, devices=np.array(devices)
    )
  except NotImplementedError:
    placed = mesh_utils.create_device_mesh(
      sizes, devices, allow_split_physical_axes=True
    )
    return Mesh(placed, MESH_AXES, axis_types=types)


def _axis_sizes(
  shape: Mapping[str, int] | str | None, num_devices: int
) -> dict[str, int]:
  given = _parse(shape) if isinstance(shape, str) else dict(shape or {})
  if not given:
    given = {'data': -1}
  for axis, size in given.items():
    if axis not in MESH_AXES:
      raise UserError(
        f'MESH_SHAPE names the axis {axis!r}; the axes are'
        f' {", ".join(MESH_AXES)}.'
      )
    if not isinstance(size, int) or (size < 1 and size != -1):
      raise UserError(
        f'MESH_SHAPE gives {axis} the size {size!r}; a size is a positive'
        ' integer, or -1 for what the other axes leave.'
      )
  open_axes = [axis for axis, size in given.items() if size == -1]
  if len(open_axes) > 1:
    raise UserError(
      f'MESH_SHAPE gives -1 to {" and ".join(open_axes)}; one axis at most'
      ' can take what the others leave.'
    )
  if open_axes:
    known = math.prod(size for size in given.values() if size != -1)
    given[open_axes[0]] = max(num_devices // known, 1)
  return {axis: given.get(axis, 1) for axis in MESH_AXES}


def _parse(text: str) -> dict[str, int]:
  sizes: dict[str, int] = {}
  for entry in filter(None, (part.strip() for part in text.split(','))):
    axis, separator, size = (part.strip() for part in entry.partition('='))
    if not separator or not size.lstrip('-').isdigit():
      raise UserError(
        f'MESH_SHAPE {text!r}: cannot read {entry!r}; write axis=size pairs'
        " such as 'data=2,model=2'."
      )
    if axis in sizes:
      raise UserError(f'MESH_SHAPE {text!r} names the axis {axis!r} twice.')
    sizes[axis] = int(size)
  return sizes
