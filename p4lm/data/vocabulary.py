"""SentencePiece vocabularies, identical to SeqIO's and free of TensorFlow.

SeqIO tokenizes while it caches; training, decoding and serving must turn ids
into text and text into ids without importing it. `Vocabulary` reproduces
`seqio.SentencePieceVocabulary(path, extra_ids=100)`: the same ids for the same
text, and the same hundred sentinels behind the pieces of the model file.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import pathlib
import struct
import tempfile
from collections.abc import Iterable, Sequence

import sentencepiece

from p4lm.errors import UserError

EXTRA_IDS = 100
PAD_ID = 0
EOS_ID = 1
UNK_ID = 2
# Padding, end of sequence, begin of sequence, unknown.
_GEMMA_IDS = (0, 1, 2, 3)
PLACEHOLDER = '<extra_id_0>'
_GEMMA_PLACEHOLDER = '<unused0>'

# Any ASCII text can be encoded even if the corpus lacks some character.
_REQUIRED_CHARACTERS = ''.join(chr(c) for c in range(33, 127))
# Words are counted before anything is learnt, so this many lines suffice.
_MAX_SENTENCES = 2_000_000
_MAX_SENTENCE_BYTES = 1 << 16


class Vocabulary:
  """Ids and texts of one SentencePiece model file.

  In a file like T5's, ids 0, 1, 2 are padding, end of sequence and unknown.
  The ids `size - 1 - k` (k = 0..99) are the sentinels `<extra_id_k>`, written
  in text at the start of a word; `<extra_id_0>` marks where a soft token
  enters. In a file like Gemma's, 2 begins a text, 3 is unknown, and the piece
  `<unused0>` of the file itself is what `<extra_id_0>` means.

  Attributes:
    path: the model file.
    size: number of ids, sentinels included.
    unk_id: unknown.
    bos_id: begins a prompt, or None.
    placeholder: the piece that `<extra_id_0>` in a text becomes.
    soft_token_id: its id; None where the file has no room for it.
    contents: of the model file.
    sha256: its hash, for manifests and checkpoints.
  """

  pad_id = PAD_ID
  eos_id = EOS_ID
  file_name = 'vocabulary.model'

  def __init__(self, model: bytes, path: str | os.PathLike[str]):
    """Wraps a serialized model; most callers want `Vocabulary.load`."""
    self.path = pathlib.Path(path)
    self.contents = model
    self.sha256 = hashlib.sha256(model).hexdigest()
    _check_whole(model, self.path)
    self._processor = _load_processor(model + _sentinel_pieces(), self.path)
    self.unk_id, self.bos_id, self.placeholder = UNK_ID, None, PLACEHOLDER
    if _special_ids(self._processor) == _GEMMA_IDS:
      self._processor = _load_processor(model, self.path)
      self.bos_id, self.unk_id = _GEMMA_IDS[2:]
      self.placeholder = _GEMMA_PLACEHOLDER
    else:
      _check_special_ids(self._processor, self.path)
    self.size = self._processor.get_piece_size()
    soft = self._processor.piece_to_id(self.placeholder)
    if self.bos_id is None:
      soft = self.size - 1
    self.soft_token_id = None if soft == self.unk_id else soft

  @classmethod
  def load(cls, path: str | os.PathLike[str]) -> Vocabulary:
    """Reads a SentencePiece model file, such as T5's `spiece.model`.

    Raises:
      UserError: the file is missing, is no SentencePiece model, or reserves
        other ids than T5's or Gemma's.
    """
    path = pathlib.Path(path)
    try:
      model = path.read_bytes()
    except OSError as error:
      raise UserError(
        f'cannot read the vocabulary {path}: {error.strerror}. '
        'Give the path of a SentencePiece model (run make_data to train one).'
      ) from error
    return cls(model, path)

  @classmethod
  def train(
    cls,
    texts: Iterable[str],
    path: str | os.PathLike[str],
    *,
    size: int,
    seed: int = 0,
  ) -> Vocabulary:
    """Trains a unigram model on texts, writes it and returns it loaded.

    The file depends on `texts`, `size` and `seed` alone: one thread, and the
    seed matters only where a corpus exceeds two million lines and is sampled.
    Every character of the corpus and every printable ASCII one is a piece;
    digits are split. A corpus with fewer distinct pieces gets a smaller
    vocabulary than asked for.

    Args:
      texts: the corpus, one text an element; blank ones are skipped.
      path: where the model file goes; written whole or not at all.
      size: number of ids wanted, the hundred sentinels included.
      seed: of the sample drawn from a very large corpus.

    Raises:
      UserError: `size` cannot hold the characters, or no text is given.
    """
    path = pathlib.Path(path)
    lines = (line for line in (t.strip() for t in texts) if line)
    first = next(lines, None)
    if first is None:
      raise UserError('cannot train a vocabulary: texts holds no text.')
    sentencepiece.set_random_generator_seed(seed)
    model = io.BytesIO()
    try:
      sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=itertools.chain([first], lines),
        model_writer=model,
        model_type='unigram',
        vocab_size=size - EXTRA_IDS,
        hard_vocab_limit=False,
        character_coverage=1.0,
        required_chars=_REQUIRED_CHARACTERS,
        split_digits=True,
        pad_id=PAD_ID,
        eos_id=EOS_ID,
        unk_id=UNK_ID,
        bos_id=-1,
        num_threads=1,
        input_sentence_size=_MAX_SENTENCES,
        shuffle_input_sentence=True,
        max_sentence_length=_MAX_SENTENCE_BYTES,
        minloglevel=3,
      )
    except (RuntimeError, OSError) as error:
      raise UserError(
        f'cannot train a vocabulary of size={size} (it counts {EXTRA_IDS} '
        f'sentinels): {_last_clause(error)}. Raise size.'
      ) from error
    vocabulary = cls(model.getvalue(), path)
    _write_atomically(path, model.getvalue())
    return vocabulary

  def encode(self, text: str) -> list[int]:
    """Ids of a text, without an end-of-sequence id."""
    return self._processor.encode(self._written(text), out_type=int)

  def encode_prompt(self, text: str) -> list[int]:
    """`encode`, behind the id that begins a text where there is one."""
    first = [] if self.bos_id is None else [self.bos_id]
    return first + self.encode(text)

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """`encode` of each text."""
    return self._processor.encode(
      [self._written(text) for text in texts], out_type=int
    )

  def decode(self, ids: Iterable[int]) -> str:
    """Text of ids up to the first end of sequence, padding dropped.

    Ids outside the vocabulary (a padded embedding table can emit them) read as
    unknown, as in SeqIO.
    """
    return self._processor.decode(self._readable(ids))

  def decode_batch(self, rows: Iterable[Iterable[int]]) -> list[str]:
    """`decode` of each row."""
    return [self.decode(row) for row in rows]

  def _written(self, text: str) -> str:
    return text.replace(PLACEHOLDER, self.placeholder)

  def _readable(self, ids: Iterable[int]) -> list[int]:
    kept = []
    for token in ids:
      token = int(token)
      if token == EOS_ID:
        break
      if token not in (PAD_ID, self.bos_id):
        kept.append(token if 0 <= token < self.size else self.unk_id)
    return kept


def _check_whole(model: bytes, path: pathlib.Path) -> None:
  """Refuses a file cut off between two pieces, which parses but is wrong.

  A whole model ends in its trainer (2) and normalizer (3) settings; a half
  copied one has pieces (1) alone and would tokenize without normalization.
  """
  try:
    last_field = None
    position = 0
    while position < len(model):
      tag, position = _read_varint(model, position)
      last_field, wire_type = tag >> 3, tag & 7
      if wire_type != 2:
        raise ValueError(f'wire type {wire_type} at byte {position}')
      length, position = _read_varint(model, position)
      position += length
    if position != len(model) or last_field in (None, 1):
      raise ValueError('it ends early')
  except ValueError as error:
    raise _not_a_model(path, error) from error


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
  value = shift = 0
  while True:
    if position >= len(data) or shift > 63:
      raise ValueError('it ends early')
    byte = data[position]
    position += 1
    value |= (byte & 0x7F) << shift
    shift += 7
    if byte < 0x80:
      return value, position


def _not_a_model(path: pathlib.Path, error: Exception) -> UserError:
  return UserError(
    f'{path} is not a whole SentencePiece model ({_last_clause(error)}). '
    'Give a file such as spiece.model, or run make_data to train one.'
  )


def _load_processor(
  model: bytes, path: pathlib.Path
) -> sentencepiece.SentencePieceProcessor:
  processor = sentencepiece.SentencePieceProcessor()
  try:
    processor.LoadFromSerializedProto(model)
  except RuntimeError as error:
    raise _not_a_model(path, error) from error
  return processor


def _check_special_ids(
  processor: sentencepiece.SentencePieceProcessor, path: pathlib.Path
) -> None:
  pad, eos, _, unk = _special_ids(processor)
  if (pad, eos, unk) != (PAD_ID, EOS_ID, UNK_ID):
    raise UserError(
      f'{path} has (pad, eos, unk) ids {(pad, eos, unk)}; p4lm needs '
      f'{(PAD_ID, EOS_ID, UNK_ID)}, as in T5. Train the model with '
      '--pad_id=0 --eos_id=1 --unk_id=2.'
    )


def _special_ids(
  processor: sentencepiece.SentencePieceProcessor,
) -> tuple[int, int, int, int]:
  return (
    processor.pad_id(),
    processor.eos_id(),
    processor.bos_id(),
    processor.unk_id(),
  )


def _sentinel_pieces() -> bytes:
  """Wire format of the sentinel pieces, to append to a serialized model.

  In protocol buffers the concatenation of two messages appends the second's
  repeated fields to the first's, so no generated class is needed (they tie the
  reader to a protobuf version). Field 1 of the model is a piece: its text (1),
  score (2) and type (3), where 4 means user defined.
  """
  pieces = []
  for index in reversed(range(EXTRA_IDS)):
    text = f'▁<extra_id_{index}>'.encode()
    piece = b'\x0a' + bytes([len(text)]) + text
    piece += b'\x15' + struct.pack('<f', 0.0) + b'\x18\x04'
    pieces.append(b'\x0a' + bytes([len(piece)]) + piece)
  return b''.join(pieces)


def _last_clause(error: Exception) -> str:
  """The readable end of SentencePiece's 'INTERNAL: file(line) [test] why.'."""
  text = str(error).strip()
  if text.endswith(']'):
    return 'it cannot be parsed'
  return text.split('] ')[-1].rstrip('.')


def _write_atomically(path: pathlib.Path, content: bytes) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
  try:
    with os.fdopen(handle, 'wb') as f:
      f.write(content)
    os.chmod(partial, 0o644)
    os.replace(partial, path)
  except BaseException:
    os.unlink(partial)
    raise
