"""Llama models in GGUF files, dequantised to float32.

The `gguf` package (extra `convert`) reads the files and knows the quantised
types. A file that was made of a Hugging Face model has the queries' and keys'
rows in another order, because its readers turn neighbouring entries of a head
where the others turn halves; they are put back here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from p4lm.checkpoints.hf_checkpoint import their_shapes
from p4lm.checkpoints.hf_names import TensorName
from p4lm.data.byte_pairs import BytePairVocabulary
from p4lm.errors import UserError
from p4lm.models.decoder_config import DecoderConfig
from p4lm.models.rope import RopeScaling, frequencies

_MAGIC = b'GGUF'
_LAYER = 'blk.{i}.'
_NAMES = {
  'token_embedder/embedding': TensorName('token_embd.weight'),
  'logits_dense/kernel': TensorName('output.weight', linear=True),
  'decoder/final_norm/scale': TensorName('output_norm.weight'),
  'decoder/layers/attention_norm/scale': TensorName(
    _LAYER + 'attn_norm.weight'
  ),
  'decoder/layers/ffn_norm/scale': TensorName(_LAYER + 'ffn_norm.weight'),
  **{
    f'decoder/layers/{ours}/kernel': TensorName(
      f'{_LAYER}{theirs}.weight', linear=True
    )
    for ours, theirs in {
      'attention/query': 'attn_q',
      'attention/key': 'attn_k',
      'attention/value': 'attn_v',
      'attention/out': 'attn_output',
      'ffn/wi_0': 'ffn_gate',
      'ffn/wi_1': 'ffn_up',
      'ffn/wo': 'ffn_down',
    }.items()
  },
}
_ROPE_FACTORS = 'rope_freqs.weight'
# Factors of Llama 3.1 and 3.2; the other figures are the same in both.
_LLAMA_3_FACTORS = (8.0, 32.0)
_CONTROL, _USER_DEFINED = 3, 4


def is_gguf(path: Path) -> bool:
  """Whether a file begins as GGUF files do."""
  if not path.is_file():
    return False
  with path.open('rb') as file:
    return file.read(len(_MAGIC)) == _MAGIC


class GGUFCheckpoint:
  """A Llama model in a GGUF file.

  Args:
    path: the file.
    dtype: of our computation.
  Attributes:
    config: sizes.
    eos_id: ends a response; -1 for none.
  Raises:
    UserError: `gguf` is not installed, or the file is damaged, of another
      architecture or lacks a field.
  """

  def __init__(self, path: Path, dtype: str = 'float32'):
    try:
      import gguf
    except ImportError as error:
      raise UserError(
        "GGUF files need the package gguf: pip install 'p4lm[convert]'"
      ) from error
    self._gguf, self.path = gguf, path
    try:
      reader = gguf.GGUFReader(os.fspath(path))
      self._tensors = {tensor.name: tensor for tensor in reader.tensors}
    except Exception as error:
      # The reader has no error of its own for files that are cut short.
      raise UserError(f'{path} is damaged or cut short: {error}') from error
    self._fields: Mapping = reader.fields
    kind = self._field('general.architecture')
    if kind != 'llama':
      raise UserError(f'{path} holds a {kind!r} model; p4lm reads llama')
    self.config = self._sizes(dtype)
    self.eos_id = self._field('tokenizer.ggml.eos_token_id', -1)

  def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Compares every tensor with the parameters wanted, by header alone.

    Raises:
      UserError: names every tensor that is missing, left over, misshapen or of
        a type that gguf cannot read.
    """
    wanted = dict(
      pair
      for name, shape in shapes.items()
      for pair in their_shapes(name, _NAMES[name], shape)
    )
    problems = [f'{name} is missing' for name in wanted.keys() - self._tensors]
    problems += [
      f'{name} is left over'
      for name in self._tensors.keys() - wanted.keys() - {_ROPE_FACTORS}
    ]
    for name in wanted.keys() & self._tensors.keys():
      tensor = self._tensors[name]
      found = tuple(int(size) for size in reversed(tensor.shape))
      if found != wanted[name]:
        problems.append(f'{name} is {found}, its sizes tell of {wanted[name]}')
      try:
        self._values(tensor, rows=1)
      except NotImplementedError:
        problems.append(f'{name} has the type {tensor.tensor_type.name}')
    if problems:
      shown = '; '.join(sorted(problems)[:12])
      raise UserError(f'{self.path} is not what its sizes tell: {shown}')

  def fill(self, name: str, target: np.ndarray) -> None:
    """Writes a parameter's values into an array of its shape."""
    entry = _NAMES[name]
    layers = target if entry.stacked else target[None]
    for layer, tensor in zip(layers, entry.of_layers(len(layers))):
      values = self._values(self._tensors[tensor])
      if name.endswith(('/query/kernel', '/key/kernel')):
        values = _halves_from_neighbours(values, self.config.d_kv)
      if entry.linear:
        layer.reshape(values.shape[1], -1)[...] = values.T
      else:
        layer[...] = values

  def vocabulary(self) -> BytePairVocabulary | None:
    """The file's own byte-pair vocabulary; None where it has another.

    Raises:
      UserError: it divides texts in a way that p4lm does not know.
    """
    if self._field('tokenizer.ggml.model', None) != 'gpt2':
      return None
    tokens = self._field('tokenizer.ggml.tokens')
    kinds = self._field('tokenizer.ggml.token_type')
    bos_id = None
    if self._field('tokenizer.ggml.add_bos_token', False):
      bos_id = self._field('tokenizer.ggml.bos_token_id')
    return BytePairVocabulary.make(
      tokens,
      self._field('tokenizer.ggml.merges'),
      pattern=self._field('tokenizer.ggml.pre', 'gpt-2'),
      whole=[
        token
        for token, kind in zip(tokens, kinds)
        if kind in (_CONTROL, _USER_DEFINED)
      ],
      eos_id=self.eos_id,
      bos_id=bos_id,
    )

  def _sizes(self, dtype: str) -> DecoderConfig:
    field = lambda name, *default: self._field(f'llama.{name}', *default)
    heads = field('attention.head_count')
    width = field('embedding_length') // heads
    width = field('attention.key_length', field('rope.dimension_count', width))
    base = field('rope.freq_base', 10000.0)
    return DecoderConfig(
      vocab_size=int(self._tensors['token_embd.weight'].shape[1])
      if 'token_embd.weight' in self._tensors
      else field('vocab_size'),
      d_model=field('embedding_length'),
      d_ff=field('feed_forward_length'),
      num_layers=field('block_count'),
      num_heads=heads,
      num_kv_heads=field('attention.head_count_kv', heads),
      d_kv=width,
      rope_base=base,
      rope_scaling=self._rope_scaling(width, base),
      # The files hold it in float32.
      layer_norm_epsilon=float(
        f'{field("attention.layer_norm_rms_epsilon"):.6g}'
      ),
      tie_embeddings='output.weight' not in self._tensors,
      pad_id=-1,
      dtype=dtype,
    )

  def _rope_scaling(self, width: int, base: float) -> RopeScaling | None:
    """The scaling of Llama 3.1, of which the file has its result alone."""
    kind = self._field('llama.rope.scaling.type', 'none')
    if kind == 'linear':
      return RopeScaling('linear', self._field('llama.rope.scaling.factor'))
    if kind != 'none':
      raise UserError(f'{self.path}: rope scaling {kind!r} is not known')
    if _ROPE_FACTORS not in self._tensors:
      return None
    found = self._values(self._tensors[_ROPE_FACTORS])
    for factor in _LLAMA_3_FACTORS:
      scaling = RopeScaling('llama3', factor)
      ratio = frequencies(width, base) / frequencies(width, base, scaling)
      if found.shape == ratio.shape and np.allclose(found, ratio, rtol=1e-4):
        return scaling
    raise UserError(f'{self.path}: {_ROPE_FACTORS} is no scaling of Llama 3')

  def _values(self, tensor, rows: int | None = None) -> np.ndarray:
    return self._gguf.dequantize(tensor.data[:rows], tensor.tensor_type)

  def _field(self, name: str, *default):
    if name in self._fields:
      return self._fields[name].contents()
    if default:
      return default[0]
    raise UserError(f'{self.path} lacks the field {name}')


def _halves_from_neighbours(values: np.ndarray, head_width: int) -> np.ndarray:
  """Rows of each head from the order x0 x2' ... of neighbours to halves.

  >>> _halves_from_neighbours(np.arange(4)[:, None], 4)[:, 0].tolist()
  [0, 2, 1, 3]
  """
  pairs = values.reshape(-1, head_width // 2, 2, values.shape[-1])
  return np.swapaxes(pairs, 1, 2).reshape(values.shape)
