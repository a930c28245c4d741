"""Byte-pair vocabularies (GPT-2's kind), as GGUF files carry them.

A text is divided by a pattern into words, a word into bytes, and the pairs of
neighbours that stand first in a list of merges are joined until none is left.
A byte is written as one printable character, which is how the list has it.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from p4lm.errors import UserError

_SPACE = '\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000'
_GPT_2 = (
  "'s|'t|'re|'ve|'m|'ll|'d| ?{L}+| ?{N}+"
  '| ?[^{s}{l}{n}]+|[{s}]+(?![^{s}])|[{s}]+'
)
_LLAMA_3 = (
  "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
  '|[^\r\n{l}{n}]?{L}+|{N}{{1,3}}| ?[^{s}{l}{n}]+[\r\n]*'
  '|[{s}]*[\r\n]+|[{s}]+(?![^{s}])|[{s}]+'
)
# How the kinds that llama.cpp names divide a text: one pattern after another,
# each within what the one before it left together.
_PATTERNS = {
  'gpt-2': (_GPT_2,),
  'smollm': ('{N}', _GPT_2),
  'llama-bpe': (_LLAMA_3,),
}


class BytePairVocabulary:
  """Ids and texts of a byte-pair vocabulary, which is a JSON file.

  Attributes:
    contents: of the file.
    path: None, it may not be written yet.
    size: number of ids.
    eos_id: ends a response.
    bos_id: begins a prompt, or None.
    soft_token_id: None, it has no placeholder.
    sha256: hash of the file.
  """

  soft_token_id = None
  path = None
  file_name = 'vocabulary.json'

  def __init__(self, contents: bytes, name: str | os.PathLike = 'GGUF'):
    """Wraps what `make` or `load` has.

    Raises:
      UserError: damaged contents; `name` tells whose.
    """
    try:
      found = json.loads(contents)
      tokens, merges = found['tokens'], found['merges']
      self.eos_id, self.bos_id = found['eos_id'], found['bos_id']
      self._whole = set(found['whole'])
      patterns = _PATTERNS[found['pattern']]
    except (ValueError, KeyError, TypeError) as error:
      raise UserError(f'the vocabulary {name} is damaged: {error!r}') from error
    self.contents = contents
    self.sha256 = hashlib.sha256(contents).hexdigest()
    self.size = len(tokens)
    self._tokens = tokens
    self._ids = {token: index for index, token in enumerate(tokens)}
    pairs = (tuple(merge.split(' ')) for merge in merges)
    self._rank = {pair: rank for rank, pair in enumerate(pairs)}
    self._patterns = [_compiled(pattern) for pattern in patterns]
    longest = sorted(self._whole, key=len, reverse=True)
    self._whole_pattern = re.compile(
      '|'.join(map(re.escape, longest)) or '(?!)'
    )

  @classmethod
  def load(cls, path: str | os.PathLike) -> BytePairVocabulary:
    """Reads a vocabulary's file.

    Raises:
      UserError: no such file, or a damaged one.
    """
    try:
      return cls(Path(path).read_bytes(), path)
    except OSError as error:
      raise UserError(
        f'cannot read the vocabulary {path}: {error.strerror}'
      ) from error

  @classmethod
  def make(
    cls,
    tokens: Sequence[str],
    merges: Sequence[str],
    *,
    pattern: str,
    whole: Iterable[str],
    eos_id: int,
    bos_id: int | None,
  ) -> BytePairVocabulary:
    """A vocabulary of these tokens.

    Args:
      tokens: by id.
      merges: pairs joined by a space, the first to be merged first.
      pattern: how texts are divided: 'gpt-2', 'smollm' or 'llama-bpe'.
      whole: tokens that stand for themselves, such as <|im_start|>.
      eos_id, bos_id: see the class.
    Raises:
      UserError: an unknown pattern.
    """
    if pattern not in _PATTERNS:
      raise UserError(
        f'p4lm divides texts as {", ".join(_PATTERNS)}, not as {pattern!r}'
      )
    contents = {
      'kind': 'byte pairs',
      'pattern': pattern,
      'eos_id': eos_id,
      'bos_id': bos_id,
      'whole': sorted(whole),
      'tokens': list(tokens),
      'merges': list(merges),
    }
    text = json.dumps(contents, ensure_ascii=False, indent=0)
    return cls((text + '\n').encode())

  def encode(self, text: str) -> list[int]:
    """Ids of a text, without an end-of-sequence id."""
    ids, start = [], 0
    for match in self._whole_pattern.finditer(text):
      ids += self._encode_plain(text[start : match.start()])
      ids.append(self._ids[match.group()])
      start = match.end()
    return ids + self._encode_plain(text[start:])

  def encode_prompt(self, text: str) -> list[int]:
    """`encode`, behind the id that begins a text where there is one."""
    first = [] if self.bos_id is None else [self.bos_id]
    return first + self.encode(text)

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """`encode` of each text."""
    return [self.encode(text) for text in texts]

  def decode(self, ids: Iterable[int]) -> str:
    """Text of ids up to the first end of sequence.

    Ids outside of the vocabulary are left out; bytes that are no UTF-8 read as
    the replacement character.
    """
    parts = []
    for token in itertools.takewhile(lambda i: i != self.eos_id, ids):
      token = self._tokens[token] if 0 <= token < self.size else ''
      if token in self._whole:
        parts.append(token.encode())
      else:
        parts.append(bytes(_bytes_by_character()[c] for c in token))
    return b''.join(parts).decode('utf-8', errors='replace')

  def decode_batch(self, rows: Iterable[Iterable[int]]) -> list[str]:
    """`decode` of each row."""
    return [self.decode(row) for row in rows]

  def _encode_plain(self, text: str) -> list[int]:
    pieces = [text]
    for pattern in self._patterns:
      pieces = [part for piece in pieces for part in _divided(piece, pattern)]
    characters = _characters_by_byte()
    ids = []
    for piece in pieces:
      word = ''.join(characters[byte] for byte in piece.encode())
      ids += [self._ids[part] for part in self._merged(word)]
    return ids

  def _merged(self, word: str) -> list[str]:
    parts = list(word)
    last = len(self._rank)
    while len(parts) > 1:
      ranks = [self._rank.get(pair, last) for pair in itertools.pairwise(parts)]
      best = min(ranks)
      if best == last:
        break
      joined, index = [], 0
      while index < len(parts):
        if index < len(ranks) and ranks[index] == best:
          joined.append(parts[index] + parts[index + 1])
          index += 2
        else:
          joined.append(parts[index])
          index += 1
      parts = joined
    return parts


def _divided(text: str, pattern: re.Pattern[str]) -> list[str]:
  """The matches of a pattern and what lies between them."""
  pieces, start = [], 0
  for match in pattern.finditer(text):
    pieces += [text[start : match.start()], match.group()]
    start = match.end()
  return [piece for piece in [*pieces, text[start:]] if piece]


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
  letters, numbers = _category('L'), _category('N')
  return re.compile(
    pattern.format(
      l=letters, n=numbers, s=_SPACE, L=f'[{letters}]', N=f'[{numbers}]'
    )
  )


@functools.cache
def _category(first: str) -> str:
  """The characters of a general category, as the inside of [...]."""
  ranges, start = [], None
  for code in range(sys.maxunicode + 2):
    inside = (
      code <= sys.maxunicode and unicodedata.category(chr(code))[0] == first
    )
    if inside and start is None:
      start = code
    elif not inside and start is not None:
      ranges.append(f'{re.escape(chr(start))}-{re.escape(chr(code - 1))}')
      start = None
  return ''.join(ranges)


@functools.cache
def _characters_by_byte() -> dict[int, str]:
  """A printable character for every byte; printable ones are themselves."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  table = {byte: chr(byte) for byte in printable}
  others = [byte for byte in range(256) if byte not in table]
  return table | {byte: chr(256 + n) for n, byte in enumerate(others)}


@functools.cache
def _bytes_by_character() -> dict[str, int]:
  return {character: byte for byte, character in _characters_by_byte().items()}
