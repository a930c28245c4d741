"""Texts to unit vectors whose cosine says how alike they are in subject.

`SentenceEncoder` is the interface; `LSAEncoder` is the one that needs nothing
but the corpus: latent semantic analysis, that is TF-IDF followed by a truncated
singular value decomposition (Deerwester et al. 1990).
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import scipy.sparse

from p4lm.errors import UserError

_WORD = re.compile(r"[a-z0-9][a-z0-9'-]*")
_POWER_STEPS = 2
_OVERSAMPLING = 16


class SentenceEncoder(Protocol):
  """Anything that turns texts into comparable vectors."""

  def encode(self, texts: Sequence[str]) -> np.ndarray:
    """float32 [B, width], unit rows, 0 for a text without a known word."""


@dataclasses.dataclass(frozen=True)
class LSAEncoder:
  """Latent semantic analysis, fitted on a corpus.

  Attributes:
    words: {word: column}, V words.
    weights: float32 [V], inverse document frequencies log((1+n)/(1+df)) + 1.
    projection: float32 [V, width], right singular vectors of the corpus.
  """

  words: dict[str, int]
  weights: np.ndarray
  projection: np.ndarray

  @classmethod
  def fit(
    cls,
    corpus: Sequence[str],
    *,
    width: int = 96,
    min_documents: int = 2,
    max_words: int = 8000,
    seed: int = 0,
  ) -> LSAEncoder:
    """Fits the encoder; equal arguments give equal vectors.

    Args:
      corpus: documents.
      width: of the vectors; fewer if the corpus has fewer words or documents.
      min_documents: words in fewer documents are left out.
      max_words: the most frequent are kept.
      seed: of the randomised decomposition.
    Raises:
      UserError: no word is in `min_documents` documents.
    """
    tokens = [_tokens(text) for text in corpus]
    frequencies: dict[str, int] = {}
    for words in tokens:
      for word in set(words):
        frequencies[word] = frequencies.get(word, 0) + 1
    kept = sorted(
      (word for word, df in frequencies.items() if df >= min_documents),
      key=lambda word: (-frequencies[word], word),
    )[:max_words]
    if not kept:
      raise UserError(
        f'no word of the {len(corpus)} texts is in {min_documents} of them; '
        'the sentence encoder needs a larger corpus'
      )
    words = {word: column for column, word in enumerate(kept)}
    df = np.array([frequencies[word] for word in kept], np.float64)
    weights = (np.log((1 + len(tokens)) / (1 + df)) + 1).astype(np.float32)
    matrix = _tf_idf(tokens, words, weights)
    width = min(width, *matrix.shape)
    return cls(words, weights, _right_singular_vectors(matrix, width, seed))

  def encode(self, texts: Sequence[str]) -> np.ndarray:
    """float32 [B, width], unit rows; unknown words count for nothing."""
    tokens = [_tokens(text) for text in texts]
    vectors = _tf_idf(tokens, self.words, self.weights) @ self.projection
    return _unit_rows(np.asarray(vectors, np.float32))

  def save(self, path: str | os.PathLike) -> None:
    """Writes an .npz without pickles."""
    with open(path, 'wb') as file:
      np.savez(
        file,
        words=np.array(list(self.words)),
        weights=self.weights,
        projection=self.projection,
      )

  @classmethod
  def load(cls, path: str | os.PathLike) -> LSAEncoder:
    """Reads what `save` wrote.

    Raises:
      UserError: no such file, or not of this kind.
    """
    try:
      with np.load(path, allow_pickle=False) as arrays:
        words = arrays['words'].tolist()
        weights, projection = arrays['weights'], arrays['projection']
    except (OSError, KeyError, ValueError) as error:
      raise UserError(
        f'{path} is no saved sentence encoder: {error}'
      ) from error
    return cls({w: i for i, w in enumerate(words)}, weights, projection)


def _tokens(text: str) -> list[str]:
  return [word.strip("'-") for word in _WORD.findall(text.lower())]


def _tf_idf(tokens, words, weights) -> scipy.sparse.csr_matrix:
  """csr float64 [B, V], (1 + log tf) idf, unit rows."""
  pairs = [
    (row, words[word])
    for row, spoken in enumerate(tokens)
    for word in spoken
    if word in words
  ]
  rows, columns = np.array(pairs, np.int64).reshape(-1, 2).T
  matrix = scipy.sparse.csr_matrix(
    (np.ones(len(rows), np.float32), (rows, columns)),
    shape=(len(tokens), len(words)),
  )
  matrix.sum_duplicates()
  matrix.data = (1 + np.log(matrix.data)) * weights[matrix.indices]
  norms = np.sqrt(np.asarray(matrix.multiply(matrix).sum(1)).ravel())
  scale = scipy.sparse.diags(1 / np.maximum(norms, 1e-12))
  return (scale @ matrix.astype(np.float64)).tocsr()


def _right_singular_vectors(
  matrix: scipy.sparse.csr_matrix, width: int, seed: int
) -> np.ndarray:
  """float32 [V, width], by randomised subspace iteration (Halko et al. 2011).

  The sign of each vector is fixed by its largest entry.
  """
  rng = np.random.default_rng(seed)
  size = min(width + _OVERSAMPLING, *matrix.shape)
  basis = rng.standard_normal((matrix.shape[1], size))
  for _ in range(_POWER_STEPS):
    basis = _orthonormal(matrix.T @ _orthonormal(matrix @ basis))
  # With orthonormal columns Q of the row space, the right singular vectors of
  # M are Q times the eigenvectors of (M Q)^T (M Q).
  image = matrix @ basis
  _, rotation = np.linalg.eigh(image.T @ image)
  vectors = basis @ rotation[:, ::-1][:, :width]
  largest = np.abs(vectors).argmax(0)
  signs = np.sign(vectors[largest, np.arange(vectors.shape[1])])
  return np.ascontiguousarray(vectors * signs, np.float32)


def _orthonormal(columns: np.ndarray) -> np.ndarray:
  """An orthonormal basis of the columns' span, by their Gram matrix.

  Several times faster than a QR of a tall matrix, and it drops directions that
  a small corpus does not have.
  """
  for _ in range(2):
    values, vectors = np.linalg.eigh(columns.T @ columns)
    keep = values > 1e-10 * values[-1]
    columns = columns @ (vectors[:, keep] / np.sqrt(values[keep]))
  return columns


def _unit_rows(vectors: np.ndarray) -> np.ndarray:
  norms = np.linalg.norm(vectors, axis=1, keepdims=True)
  return vectors / np.maximum(norms, 1e-12)
