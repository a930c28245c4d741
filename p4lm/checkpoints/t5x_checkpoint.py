"""T5X checkpoints of T5 as parameters of ours, and back.

A checkpoint is a directory `checkpoint_STEP` with a MessagePack file
`checkpoint`, a tree of names whose leaves are small arrays or tell the Zarr
directory that holds a large one. There are two layouts of the same model:

                    t5                       scalable_t5
  layers            encoder/layers_3/...     encoder/encoder/..., axis 1
  attention         [embed, heads * kv]      [embed, layers, heads, kv]
  position bias     one for a stack          one for each layer

The sizes are read off the shapes; the number of heads is that of the bias.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from flax import serialization, traverse_util

from p4lm.checkpoints import zarr_files
from p4lm.errors import UserError
from p4lm.models.t5_config import T5Config

LAYOUTS = ('t5', 'scalable_t5')
_FILE = 'checkpoint'
_VERSION = 3
_ATTENTIONS = {
  'encoder': {'attention': 'attention'},
  'decoder': {
    'self_attention': 'self_attention',
    'cross_attention': 'encoder_decoder_attention',
  },
}
_STACKED = re.compile(r'^(encoder|decoder)/layers/')
_RELATIVE = 'relative_bias/embedding'

Shapes = Mapping[str, tuple[int, ...]]


def find_file(path: Path) -> Path | None:
  """The MessagePack file of a checkpoint, or None.

  Args:
    path: that file, the directory of a step, or one of several steps, of which
      the newest is taken.
  """
  if path.is_dir():
    steps = [p for p in path.glob('checkpoint_*') if p.name[11:].isdigit()]
    if steps:
      path = max(steps, key=lambda p: int(p.name[11:]))
    path = path / _FILE
  return path if path.is_file() else None


class T5XCheckpoint:
  """A checkpoint that T5X wrote.

  Args:
    file: its MessagePack file.
    dtype: of our computation.
  Attributes:
    config: sizes, read off the shapes.
    layout: 't5' or 'scalable_t5'.
  Raises:
    UserError: a damaged file, or one that holds no T5.
  """

  def __init__(self, file: Path, dtype: str = 'float32'):
    self.file = file
    self._leaves = _target(file)
    self._shapes = {name: self._shape(name) for name in self._leaves}
    scanned = 'encoder/encoder/relpos_bias/rel_embedding' in self._leaves
    self.layout = 'scalable_t5' if scanned else 't5'
    try:
      self.config = self._sizes(dtype)
    except KeyError as error:
      raise UserError(
        f'{file} holds no T5 as T5X lays it out: {error.args[0]} is missing'
      ) from error

  def check(self, shapes: Shapes) -> None:
    """Compares every array with the parameters wanted, without reading it.

    Raises:
      UserError: names every array that is missing, left over or misshapen.
    """
    wanted = dict(
      pair
      for name, shape in shapes.items()
      for pair in their_shapes(name, shape, self.config, self.layout)
    )
    problems = [f'{name} is missing' for name in wanted.keys() - self._leaves]
    problems += [
      f'{name} is left over' for name in self._leaves.keys() - wanted.keys()
    ]
    problems += [
      f'{name} is {self._shapes[name]}, expected {wanted[name]}'
      for name in wanted.keys() & self._leaves.keys()
      if self._shapes[name] != wanted[name]
    ]
    if problems:
      more = len(problems) - 12
      shown = sorted(problems)[:12] + [f'{more} more'] * (more > 0)
      raise UserError(f'{self.file} holds no whole T5: {"; ".join(shown)}')

  def fill(self, name: str, target: np.ndarray) -> None:
    """Writes a parameter's values into an array of its shape."""
    names = [
      n for n, _ in their_shapes(name, target.shape, self.config, self.layout)
    ]
    if len(names) == 1:
      values = np.moveaxis(self._read(names[0]), *_axes(name, self.layout))
      values = _relative_turned(name, values)
      if name.endswith(_RELATIVE) and values.ndim > target.ndim:
        values = values[0]  # `_layers_differ` found them all equal.
      target[...] = values.reshape(target.shape)
      return
    for layer, leaf in zip(target, names):
      layer[...] = self._read(leaf).reshape(layer.shape)

  def _read(self, name: str) -> np.ndarray:
    leaf = self._leaves[name]
    return zarr_files.read_array(leaf) if isinstance(leaf, Path) else leaf

  def _shape(self, name: str) -> tuple[int, ...]:
    leaf = self._leaves[name]
    if isinstance(leaf, Path):
      return zarr_files.shape_and_type(leaf)[0]
    return np.shape(leaf)

  def _sizes(self, dtype: str) -> T5Config:
    shape = self._shapes
    vocab, width = shape['token_embedder/embedding']
    if self.layout == 't5':
      heads, buckets = shape['encoder/relpos_bias/rel_embedding']
      first = 'encoder/layers_0'
      d_kv = shape[f'{first}/attention/query/kernel'][1] // heads
    else:
      first = 'encoder/encoder'
      heads, _, buckets = shape[f'{first}/relpos_bias/rel_embedding']
      d_kv = shape[f'{first}/attention/query/kernel'][-1]
    gated = f'{first}/mlp/wi_1/kernel' in shape
    hidden = shape[f'{first}/mlp/{"wi_0" if gated else "wi"}/kernel'][-1]
    return T5Config(
      vocab_size=vocab,
      d_model=width,
      d_ff=hidden,
      num_heads=heads,
      d_kv=d_kv,
      num_encoder_layers=self._num_layers('encoder'),
      num_decoder_layers=self._num_layers('decoder'),
      relative_attention_num_buckets=buckets,
      relative_bias_per_layer=self._layers_differ(),
      feed_forward='gated-gelu' if gated else 'relu',
      tie_embeddings='decoder/logits_dense/kernel' not in shape,
      dtype=dtype,
    )

  def _layers_differ(self) -> bool:
    """Whether layers have position biases that they could not share."""
    if self.layout == 't5':
      return False
    biases = [
      self._read(f'{stack}/{stack}/relpos_bias/rel_embedding')
      for stack in _ATTENTIONS
    ]
    return any((bias != bias[:, :1]).any() for bias in biases)

  def _num_layers(self, stack: str) -> int:
    if self.layout == 'scalable_t5':
      return self._shapes[f'{stack}/{stack}/relpos_bias/rel_embedding'][1]
    found = [re.match(rf'{stack}/layers_(\d+)/', n) for n in self._leaves]
    return 1 + max((int(m.group(1)) for m in found if m), default=-1)


def write_t5x(
  directory: Path,
  config: T5Config,
  shapes: Shapes,
  read: Callable[[str], np.ndarray],
  *,
  layout: str,
  step: int,
) -> None:
  """Writes `checkpoint_STEP`, which T5X reads the parameters from.

  It has no states of an optimizer.

  Args:
    directory: gets it.
    config: sizes.
    shapes: {parameter of the language model: shape}.
    read: values of a parameter; asked for one after another.
    layout: 't5' or 'scalable_t5'. In the latter each layer gets the bias that
      they share here.
    step: in its name and in the file.
  Raises:
    UserError: layer-wise biases for the layout `t5`.
  """
  if config.relative_bias_per_layer and layout == 't5':
    raise UserError(
      'each layer of this model has a position bias of its own, which the '
      "layout 't5' has no place for; use 'scalable_t5'"
    )
  final = directory / f'checkpoint_{step}'
  partial = directory / f'.checkpoint_{step}.partial'
  partial.mkdir(parents=True, exist_ok=True)
  target: dict[tuple[str, ...], dict] = {}
  for name, shape in shapes.items():
    values = read(name)
    theirs = their_shapes(name, shape, config, layout)
    parts = values if len(theirs) > 1 else [values]
    for part, (leaf, size) in zip(parts, theirs):
      if len(theirs) == 1:
        part = _stretched(name, part, config, layout)
        start, end = _axes(name, layout)
        part = np.moveaxis(_relative_turned(name, part), end, start)
      path = f'target.{leaf.replace("/", ".")}'
      part = np.asarray(part, np.float32).reshape(size)
      metadata = zarr_files.write_array(partial / path, part)
      target[tuple(leaf.split('/'))] = {
        'driver': 'zarr',
        'dtype': 'float32',
        'kvstore': {'driver': 'file', 'path': path},
        'metadata': metadata,
      }
  contents = {
    'version': _VERSION,
    'optimizer': {
      'target': traverse_util.unflatten_dict(target),
      'state': {'step': np.int32(step)},
    },
  }
  (partial / _FILE).write_bytes(serialization.msgpack_serialize(contents))
  partial.rename(final)


def their_shapes(
  name: str, shape: tuple[int, ...], config: T5Config, layout: str
) -> list[tuple[str, tuple[int, ...]]]:
  """(name there, shape there) of what a parameter is made of."""
  if name == 'token_embedder/embedding':
    return [(name, shape)]
  if name == 'logits_dense/kernel':
    return [('decoder/logits_dense/kernel', shape)]
  stack, rest = name.split('/', 1)
  if rest == 'final_norm/scale':
    return [(f'{stack}/{stack}_norm/scale', shape)]
  scanned = layout == 'scalable_t5'
  if rest == _RELATIVE:
    buckets, heads = shape[-2:]
    if not scanned:
      return [(f'{stack}/relpos_bias/rel_embedding', (heads, buckets))]
    layers = getattr(config, f'num_{stack}_layers')
    place = f'{stack}/{stack}/relpos_bias/rel_embedding'
    return [(place, (heads, layers, buckets))]
  leaf = _layer_name(stack, rest.removeprefix('layers/'), config)
  layers, size = shape[0], shape[1:]
  if scanned:
    return [(f'{stack}/{stack}/{leaf}', (size[0], layers, *size[1:]))]
  if leaf.endswith('/out/kernel'):
    size = (size[0] * size[1], size[2])
  elif len(size) == 3:
    size = (size[0], size[1] * size[2])
  return [(f'{stack}/layers_{i}/{leaf}', size) for i in range(layers)]


def _layer_name(stack: str, ours: str, config: T5Config) -> str:
  """The name within a layer there."""
  module, *rest = ours.split('/')
  tail = '/'.join(rest)
  if module == 'ffn':
    gated = config.feed_forward == 'gated-gelu'
    return f'mlp/{tail if gated else tail.replace("wi_0", "wi")}'
  if module.endswith('_norm'):
    kind = module.removesuffix('_norm').replace('ffn', 'mlp')
    return f'pre_{kind}_layer_norm/{tail}'
  return f'{_ATTENTIONS[stack][module]}/{tail}'


def _axes(name: str, layout: str) -> tuple[int, int]:
  """From which axis there to which axis here layers move."""
  per_layer = _STACKED.match(name) or name.endswith(_RELATIVE)
  return (1, 0) if per_layer and layout == 'scalable_t5' else (0, 0)


def _relative_turned(name: str, values: np.ndarray) -> np.ndarray:
  """A position bias with heads and buckets exchanged; else the values."""
  return np.swapaxes(values, -1, -2) if name.endswith(_RELATIVE) else values


def _stretched(
  name: str, values: np.ndarray, config: T5Config, layout: str
) -> np.ndarray:
  """A bias that all layers share, once for each of them."""
  if not name.endswith(_RELATIVE) or layout == 't5' or values.ndim == 3:
    return values
  layers = getattr(config, f'num_{name.split("/")[0]}_layers')
  return np.broadcast_to(values, (layers, *values.shape))


def _target(file: Path) -> dict[str, Path | np.ndarray]:
  """{parameter: its array, or the directory that holds it}."""
  try:
    contents = serialization.msgpack_restore(file.read_bytes())
    tree = contents['optimizer']['target']
    flat = traverse_util.flatten_dict(
      tree, is_leaf=lambda _, leaf: isinstance(leaf, dict) and 'driver' in leaf
    )
    assert flat
  except Exception as error:
    # MessagePack reports damage by many kinds of exception.
    raise UserError(
      f'{file} is no T5X checkpoint, or damaged: {error!r}'
    ) from error
  leaves = {}
  for path, leaf in flat.items():
    name = '/'.join(path)
    if isinstance(leaf, dict):
      place = leaf['kvstore'].get('path') or leaf.get('path', '')
      directory = file.parent / Path(place.rstrip('/')).name
      if not (directory / '.zarray').is_file():
        raise UserError(f'{file} names {directory}, which holds no array')
      leaf = directory
    leaves[name] = leaf
  return leaves
