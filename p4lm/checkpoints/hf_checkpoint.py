"""A Hugging Face directory as parameters of ours, and back, bit by bit.

Reading goes parameter by parameter and, within one, layer by layer; so does
writing. What the directory holds beside the tensors (its config.json, their
types, its tokenizer) is kept in `origin/` of the model directory, so that a
model converted back is what it was.
"""

from __future__ import annotations

import collections
import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from p4lm.checkpoints import hf_config
from p4lm.checkpoints.hf_names import TensorName, aliases, tensor_names
from p4lm.checkpoints.safetensors_files import (
  DTYPES,
  Tensor,
  TensorFiles,
  write_files,
)
from p4lm.errors import UserError
from p4lm.models.language_model import LMConfig

ORIGIN = 'origin'
_TYPES = 'tensor_types.json'
_KEPT = (
  'config.json',
  'generation_config.json',
  'spiece.model',
  'tokenizer.model',
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
)
_VOCABULARIES = ('spiece.model', 'tokenizer.model')
_SHOWN = 12
_LANGUAGE_MODEL = 'language_model.'
_IMAGES = ('vision_tower.', 'multi_modal_projector.')
_TORCH_TYPES = {
  'F64': 'float64',
  'F32': 'float32',
  'F16': 'float16',
  'BF16': 'bfloat16',
}

Shapes = Mapping[str, tuple[int, ...]]


class HFCheckpoint:
  """A directory that `save_pretrained` wrote.

  Args:
    directory: holds config.json and safetensors files.
    dtype: of our computation.
  Attributes:
    config: sizes.
    eos_id: ends a response; -1 for none.
    stop_ids: further ids that do.
    vocabulary_path: its SentencePiece model, or None.
  Raises:
    UserError: damaged files, or an architecture that is not p4lm's.
  """

  def __init__(self, directory: Path, dtype: str = 'float32'):
    self.directory = directory
    self._theirs, others = hf_config.text_part(
      read_json(directory / 'config.json')
    )
    theirs = self._theirs
    try:
      self.config = hf_config.sizes_of(theirs, dtype)
    except UserError as error:
      raise UserError(f'{directory}: {error}') from error
    self.eos_id, self.stop_ids = hf_config.token_ids_of(theirs)
    found = [directory / name for name in _VOCABULARIES]
    self.vocabulary_path = next((p for p in found if p.is_file()), None)
    self._files = TensorFiles(directory)
    if others:
      self._leave_out_images()
    self._names = tensor_names(self.config)

  def _leave_out_images(self) -> None:
    """Keeps the tensors of the language model, named as in a plain one."""
    places = self._files.places
    kept = {
      name.removeprefix(_LANGUAGE_MODEL): place
      for name, place in places.items()
      if name.startswith(_LANGUAGE_MODEL)
    }
    others = [name for name in places if not name.startswith(_LANGUAGE_MODEL)]
    unknown = [name for name in others if not name.startswith(_IMAGES)]
    if unknown:
      raise UserError(
        f'{self.directory} holds tensors that are no part of Gemma 3: '
        + ', '.join(unknown[:_SHOWN])
      )
    logging.warning(
      '%s: %d tensors that read images are left out',
      self.directory,
      len(others),
    )
    self._files.places = kept

  def check(self, shapes: Shapes) -> None:
    """Compares every tensor with the parameters wanted, by header alone.

    Args:
      shapes: {parameter of the language model: shape}, layers stacked.
    Raises:
      UserError: names every tensor that is missing, left over or misshapen.
    """
    wanted = {
      tensor: shape
      for name, shape in shapes.items()
      for tensor, shape in their_shapes(name, self._names[name], shape)
    }
    places = self._files.places
    problems = [f'{name} is missing' for name in wanted if name not in places]
    problems += [
      f'{name} is left over'
      for name in places
      if name not in wanted and name not in aliases(self.config)
    ]
    problems += [
      f'{name} is {list(places[name].shape)}, config.json tells of '
      f'{list(shape)}'
      for name, shape in wanted.items()
      if name in places and places[name].shape != shape
    ]
    if problems:
      more = len(problems) - _SHOWN
      shown = problems[:_SHOWN] + [f'{more} more'] * (more > 0)
      raise UserError(
        f'{self.directory} is not the model of its config.json: '
        + '; '.join(shown)
      )

  def fill(self, name: str, target: np.ndarray) -> None:
    """Writes a parameter's values into an array of its shape."""
    entry = self._names[name]
    layers = target if entry.stacked else target[None]
    for layer, tensor in zip(layers, entry.of_layers(len(layers))):
      values = self._files.read(tensor)
      if entry.linear:
        inputs = values.shape[1]
        # A view of the target: reshaping values.T would copy them first.
        layer.reshape(inputs, -1)[...] = values.T
      else:
        layer[...] = values

  def keep_origin(self, directory: Path) -> None:
    """Writes `origin/`: what converting back needs beside the parameters."""
    origin = directory / ORIGIN
    origin.mkdir(exist_ok=True)
    for name in _KEPT:
      if (self.directory / name).is_file():
        shutil.copyfile(self.directory / name, origin / name)
    (origin / 'config.json').write_text(
      json.dumps(self._theirs, indent=2) + '\n'
    )
    types = {n: p.dtype for n, p in sorted(self._files.places.items())}
    usual = collections.Counter(types.values()).most_common(1)[0][0]
    others = {name: t for name, t in types.items() if t != usual}
    text = json.dumps({'usual': usual, 'others': others}, indent=2)
    (origin / _TYPES).write_text(text + '\n')


def write_hf(
  directory: Path,
  config: LMConfig,
  shapes: Shapes,
  read: Callable[[str], np.ndarray],
  *,
  origin: Path | None = None,
  eos_ids: Sequence[int] = (1,),
  dtype: str | None = None,
  shard_bytes: int = 2 * 2**30,
) -> None:
  """Writes a directory that `from_pretrained` reads.

  Args:
    directory: gets config.json and safetensors files.
    config: sizes.
    shapes: {parameter of the language model: shape}.
    read: values of a parameter; asked for one after another.
    origin: what `keep_origin` wrote, for the types, config.json and tokenizer
      of a model that came from there.
    eos_ids: what ends a text, written where there is no origin.
    dtype: of the tensors ('F32', 'BF16', 'F16'); the origin's by default.
    shard_bytes: size of a file at most.
  Raises:
    UserError: the model is of no published family.
  """
  types = {'usual': 'F32', 'others': {}}
  theirs = None
  if origin is not None and (origin / _TYPES).is_file():
    types = read_json(origin / _TYPES)
    kept = read_json(origin / 'config.json')
    if hf_config.same_function(config, kept):
      theirs = kept
    # config.json comes last: it says that all else is there.
    for name in _KEPT[1:]:
      if (origin / name).is_file():
        shutil.copyfile(origin / name, directory / name)
  if theirs is None:
    theirs = hf_config.config_json_of(config, eos_ids)
  if dtype is not None:
    types = {'usual': dtype, 'others': {}}
  usual = types['usual']
  if dtype is not None or not {'dtype', 'torch_dtype'} & set(theirs):
    kept = {name: v for name, v in theirs.items() if name != 'dtype'}
    theirs = {**kept, 'torch_dtype': _TORCH_TYPES[usual]}
  names = tensor_names(config)
  tensors, source = [], {}
  for name, shape in shapes.items():
    for index, (tensor, size) in enumerate(
      their_shapes(name, names[name], shape)
    ):
      kind = types['others'].get(tensor, usual)
      tensors.append(Tensor(tensor, kind, size))
      source[tensor] = (name, index)
  held: tuple[str, np.ndarray | None] = ('', None)

  def values_of(tensor: Tensor) -> np.ndarray:
    nonlocal held
    name, index = source[tensor.name]
    if held[0] != name:
      held = ('', None)  # Lets go of the last one before the next is read.
      held = (name, read(name))
    entry, values = names[name], held[1]
    layer = values[index] if entry.stacked else values
    if entry.linear:
      layer = layer.reshape(tensor.shape[1], tensor.shape[0]).T
    return layer.astype(DTYPES[tensor.dtype])

  write_files(directory, tensors, values_of, shard_bytes=shard_bytes)
  (directory / 'config.json').write_text(json.dumps(theirs, indent=2) + '\n')


def their_shapes(
  name: str, entry: TensorName, shape: tuple[int, ...]
) -> list[tuple[str, tuple[int, ...]]]:
  """(tensor, its shape there) for each layer of a parameter."""
  layers = shape[0] if entry.stacked else 1
  size = shape[1:] if entry.stacked else shape
  if entry.linear:
    # Attention's output takes heads and their width; all else one axis.
    inputs = math.prod(size[: 2 if name.endswith('/out/kernel') else 1])
    size = (math.prod(size) // inputs, inputs)
  return [(tensor, size) for tensor in entry.of_layers(layers)]


def read_json(path: Path) -> dict:
  """A JSON object.

  Raises:
    UserError: no such file, or no such contents.
  """
  try:
    found = json.loads(path.read_text(encoding='utf-8'))
  except OSError as error:
    raise UserError(f'cannot read {path}: {error.strerror}') from error
  except ValueError as error:
    raise UserError(f'{path} is damaged: {error}') from error
  if not isinstance(found, dict):
    raise UserError(f'{path} holds no JSON object')
  return found
