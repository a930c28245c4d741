"""A model of any format as parameters read one at a time, and their writing.

The parameters are those of the language model, by the names that p4lm gives
them, float32, layers stacked.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from p4lm.checkpoints import hf_checkpoint, t5x_checkpoint
from p4lm.checkpoints.gguf_checkpoint import GGUFCheckpoint, is_gguf
from p4lm.checkpoints.manager import CheckpointStore
from p4lm.checkpoints.streamed import (
  ArrayReader,
  mapped_arrays,
  save_streamed,
)
from p4lm.data.token_ids import TokenIds
from p4lm.data.vocabulary import Vocabulary
from p4lm.errors import UserError
from p4lm.models import lora
from p4lm.models.language_model import LMConfig, make_language_model
from p4lm.models.recommender import RecommenderConfig
from p4lm.models.selection import parameter_name
from p4lm.models.t5_config import T5Config
from p4lm.runs import model_directory
from p4lm.runs.model_directory import AnyVocabulary
from p4lm.runs.model_info import write_parameter_info

_LM = 'lm/'
# T5X's checkpoints do not tell it.
_T5_EOS_ID = 1
Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Source:
  """A model to convert.

  Attributes:
    config: sizes.
    shapes: {parameter of the language model: shape}.
    fill: (name, float32 array) -> None, writes a parameter's values.
    vocabulary: its own, or what stands for one.
    keep_origin: writes what converting back needs into a model directory.
    origin: of a p4lm model, the directory of what it was made of, or None.
    step: how long it was trained.
    stop_ids: tokens that end a response besides EOS.
  """

  config: LMConfig
  shapes: Shapes
  fill: Callable[[str, np.ndarray], None]
  vocabulary: AnyVocabulary
  keep_origin: Callable[[Path], None] | None = None
  origin: Path | None = None
  step: int = 0
  stop_ids: tuple[int, ...] = ()


def open_source(
  source: str,
  *,
  vocabulary: str | None = None,
  dtype: str | None = None,
  to: str = 'p4lm',
) -> Source:
  """Opens a model and compares it with its sizes; reads no tensor.

  Args:
    source: path; what it holds says its format.
    vocabulary: a SentencePiece model that takes the place of the source's own.
    dtype: of our computation, where `to` is p4lm.
    to: the format wanted, which must be another one.
  Raises:
    UserError: nothing known is there, or it is damaged or misshapen.
  """
  path = Path(source)
  if (path / 'model.json').is_file():
    if to == 'p4lm':
      raise UserError(f'SOURCE {path} is a p4lm model already; give a FORMAT')
    return _p4lm_source(path)
  if (path / 'config.json').is_file():
    if to != 'p4lm':
      raise UserError(
        f'SOURCE {path} is a Hugging Face directory: convert it to p4lm first'
      )
    return _hf_source(path, vocabulary, dtype or 'float32')
  if is_gguf(path):
    if to != 'p4lm':
      raise UserError(f'SOURCE {path} is a GGUF file: convert it to p4lm first')
    return _gguf_source(path, vocabulary, dtype or 'float32')
  t5x = t5x_checkpoint.find_file(path)
  if t5x is not None:
    if to != 'p4lm':
      raise UserError(
        f'SOURCE {path} is a T5X checkpoint: convert it to p4lm first'
      )
    return _t5x_source(t5x, vocabulary, dtype or 'float32')
  raise UserError(
    f'SOURCE {path} is no Hugging Face directory (config.json), no T5X '
    'checkpoint, no GGUF file and no p4lm model (model.json)'
  )


def shapes_of(config: LMConfig) -> dict[str, tuple[int, ...]]:
  """{parameter: shape} of a language model, in a fixed order."""
  state = nnx.state(
    nnx.eval_shape(lambda: make_language_model(config, rngs=nnx.Rngs(0)))
  )
  return {
    parameter_name(path): variable.get_value().shape
    for path, variable in nnx.to_flat_state(state)
  }


def _hf_source(path: Path, vocabulary: str | None, dtype: str) -> Source:
  checkpoint = hf_checkpoint.HFCheckpoint(path, dtype)
  shapes = shapes_of(checkpoint.config)
  checkpoint.check(shapes)
  found = _vocabulary(
    vocabulary or checkpoint.vocabulary_path,
    checkpoint.config,
    checkpoint.eos_id,
    must=vocabulary is not None,
  )
  ends = [checkpoint.eos_id, *checkpoint.stop_ids]
  return Source(
    config=checkpoint.config,
    shapes=shapes,
    fill=checkpoint.fill,
    vocabulary=found,
    keep_origin=checkpoint.keep_origin,
    stop_ids=tuple(i for i in ends if i >= 0 and i != found.eos_id),
  )


def _gguf_source(path: Path, vocabulary: str | None, dtype: str) -> Source:
  checkpoint = GGUFCheckpoint(path, dtype)
  shapes = shapes_of(checkpoint.config)
  checkpoint.check(shapes)
  found = None if vocabulary is not None else checkpoint.vocabulary()
  if found is None:
    found = _vocabulary(
      vocabulary, checkpoint.config, checkpoint.eos_id, must=True
    )
  return Source(checkpoint.config, shapes, checkpoint.fill, found)


def _t5x_source(file: Path, vocabulary: str | None, dtype: str) -> Source:
  checkpoint = t5x_checkpoint.T5XCheckpoint(file, dtype)
  shapes = shapes_of(checkpoint.config)
  checkpoint.check(shapes)
  found = _vocabulary(vocabulary, checkpoint.config, _T5_EOS_ID, must=True)
  return Source(checkpoint.config, shapes, checkpoint.fill, found)


def _vocabulary(
  path, config: LMConfig, eos_id: int, *, must: bool
) -> Vocabulary | TokenIds:
  """The vocabulary in a file, or plain ids where p4lm cannot read it.

  Args:
    path: a SentencePiece model, or None.
    config: the model's sizes.
    eos_id: for plain ids.
    must: whether the user named the file.
  """
  ids = TokenIds(config.vocab_size, eos_id)
  if path is None:
    return ids
  try:
    found = Vocabulary.load(path)
  except UserError as error:
    if must:
      raise
    logging.warning('%s The model takes token ids.', error)
    return ids
  if found.size > config.vocab_size:
    raise UserError(
      f'{path} has {found.size} ids, the model {config.vocab_size} embeddings; '
      'give its own vocabulary'
    )
  return found


def _p4lm_source(path: Path) -> Source:
  card = model_directory.read_card(path)
  if card.kind != 'recommender':
    raise UserError(
      f'SOURCE {path} holds a {card.kind} model, not a language model'
    )
  config = card.model_config()
  reader = ArrayReader(
    CheckpointStore(path / 'checkpoints'), ('params', 'frozen')
  )
  shapes = shapes_of(config.lm)
  problems = [
    f'{name} is {reader.shapes.get(_LM + name, "missing")}, expected {shape}'
    for name, shape in shapes.items()
    if reader.shapes.get(_LM + name) != shape
  ]
  if problems:
    raise UserError(f'SOURCE {path}: ' + '; '.join(problems[:8]))
  others = sorted(n for n in reader.shapes if not n.startswith(_LM))
  if others:
    logging.warning(
      'left out, as they are no part of the language model: %s',
      ', '.join(others),
    )

  return Source(
    config=config.lm,
    shapes=shapes,
    fill=functools.partial(_fill_merged, reader, card.lora),
    vocabulary=model_directory.load_vocabulary(path, card),
    origin=path / hf_checkpoint.ORIGIN,
    step=reader.step,
    stop_ids=card.stop_ids,
  )


def _fill_merged(
  reader: ArrayReader,
  lora_config: Mapping | None,
  name: str,
  target: np.ndarray,
) -> None:
  """Reads a parameter, and adds to a kernel what LoRA learned beside it."""
  target[...] = reader.read(_LM + name)
  base = _LM + name.removesuffix('kernel')
  if not name.endswith('kernel') or base + 'lora_a' not in reader.shapes:
    return
  scale = lora_config['alpha'] / lora_config['rank']
  read = lambda factor: jnp.asarray(reader.read(base + factor))
  factors = read('lora_a'), read('lora_b')
  target += np.asarray(lora.low_rank_update(target.ndim, *factors, scale))


_FINISHED = {
  'p4lm': 'model.json',
  'hf': 'config.json',
  't5x': 'checkpoint_*/checkpoint',
}


def is_finished(directory: Path, format: str) -> bool:
  """Whether the file is there that a conversion writes last."""
  return any(directory.glob(_FINISHED[format]))


def write_p4lm(
  directory: Path,
  source: Source,
  *,
  prompt_length: int,
  response_length: int,
  step_done: Callable[[], object] = lambda: None,
) -> None:
  """Writes a model directory; its card comes last."""
  config = recommender_config(source)

  def fill(name: str, target: np.ndarray) -> None:
    source.fill(name.removeprefix(_LM), target)
    step_done()

  shapes = {_LM + name: shape for name, shape in source.shapes.items()}
  with mapped_arrays(directory / '.scratch', shapes, fill) as arrays:
    save_streamed(directory / 'checkpoints', 0, 'params', arrays)
  if source.keep_origin is not None:
    source.keep_origin(directory)
  model = nnx.eval_shape(
    lambda: make_language_model(config.lm, rngs=nnx.Rngs(0))
  )
  write_parameter_info(directory, nnx.state(model))
  card = model_directory.describe(
    config,
    task='',
    vocabulary=source.vocabulary,
    prompt_length=prompt_length,
    response_length=response_length,
    stop_ids=source.stop_ids,
  )
  model_directory.write_card(directory, card, source.vocabulary)


def recommender_config(source: Source) -> RecommenderConfig:
  """A recommender of text alone around the language model."""
  soft = source.vocabulary.soft_token_id
  if soft is None:
    # Nothing reads it: there are no adapters, and no texts with placeholders.
    soft = source.config.vocab_size - 1
  return RecommenderConfig(source.config, None, soft)


def write_hf(
  directory: Path,
  source: Source,
  *,
  dtype: str | None,
  shard_bytes: int,
  step_done: Callable[[], object] = lambda: None,
) -> None:
  """Writes a directory that `from_pretrained` reads; config.json is last."""

  hf_checkpoint.write_hf(
    directory,
    source.config,
    source.shapes,
    _reader(source, step_done),
    origin=source.origin,
    eos_ids=[source.vocabulary.eos_id, *source.stop_ids],
    dtype=dtype,
    shard_bytes=shard_bytes,
  )
  vocabulary = source.vocabulary
  if isinstance(vocabulary, Vocabulary) and not list(directory.glob('*.model')):
    name = 'spiece.model' if vocabulary.bos_id is None else 'tokenizer.model'
    (directory / name).write_bytes(vocabulary.contents)


def write_t5x(
  directory: Path,
  source: Source,
  *,
  layout: str,
  step_done: Callable[[], object] = lambda: None,
) -> None:
  """Writes a checkpoint that T5X reads."""
  if not isinstance(source.config, T5Config):
    raise UserError('T5X checkpoints are of T5 alone; give another FORMAT')
  if layout not in t5x_checkpoint.LAYOUTS:
    raise UserError(
      f'LAYOUT must be one of {", ".join(t5x_checkpoint.LAYOUTS)}, got '
      f'{layout!r}'
    )
  t5x_checkpoint.write_t5x(
    directory,
    source.config,
    source.shapes,
    _reader(source, step_done),
    layout=layout,
    step=source.step,
  )


def _reader(source: Source, step_done) -> Callable[[str], np.ndarray]:
  """name -> the parameter's values in memory."""

  def read(name: str) -> np.ndarray:
    values = np.empty(source.shapes[name], np.float32)
    source.fill(name, values)
    step_done()
    return values

  return read
