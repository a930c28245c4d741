"""Latent semantic analysis against SciPy and by its properties."""

import numpy as np
import pytest
import scipy.sparse.linalg

from p4lm.errors import UserError
from p4lm.writers import sentence_encoder
from p4lm.writers.sentence_encoder import LSAEncoder

CORPUS = [
  'a heist in paris', 'the heist of the bank', 'bank robbers plan a heist',
  'robbers in paris', 'an alien ship in space', 'the ship lands in space',
  'an alien meets an astronaut', 'astronaut lost in space', 'a bank in paris',
]  # fmt: skip


def test_words_of_one_subject_are_near():
  encoder = LSAEncoder.fit(CORPUS, width=3)
  vectors = encoder.encode(['heist', 'robbers of a bank', 'alien', 'astronaut'])
  cosines = vectors @ vectors.T
  assert cosines[0, 1] > 0.7 and cosines[2, 3] > 0.7
  assert cosines[:2, 2:].max() < 0.2


def test_rows_have_length_one_and_unknown_texts_zero():
  vectors = LSAEncoder.fit(CORPUS, width=4).encode(['Heist!', 'zzz', ''])
  np.testing.assert_allclose(
    np.linalg.norm(vectors, axis=1), [1, 0, 0], atol=1e-6
  )
  assert vectors.dtype == np.float32


def test_full_width_keeps_the_cosines_of_tf_idf():
  encoder = LSAEncoder.fit(CORPUS, width=50, min_documents=1)
  tokens = [sentence_encoder._tokens(text) for text in CORPUS]
  matrix = sentence_encoder._tf_idf(tokens, encoder.words, encoder.weights)
  expected = (matrix @ matrix.T).toarray()
  vectors = encoder.encode(CORPUS)
  np.testing.assert_allclose(vectors @ vectors.T, expected, atol=1e-5)


def test_tf_idf_by_hand():
  """Two of three documents have 'b', once and twice; 'a' is in one."""
  encoder = LSAEncoder.fit(['a b', 'b b', 'c'], width=3, min_documents=1)
  idf = {1: np.log(4 / 2) + 1, 2: np.log(4 / 3) + 1}
  assert encoder.words == {'b': 0, 'a': 1, 'c': 2}
  np.testing.assert_allclose(encoder.weights, [idf[2], idf[1], idf[1]], 1e-6)
  row = np.array([(1 + np.log(2)) * idf[2], idf[1], 0])
  found = sentence_encoder._tf_idf(
    [['b', 'b', 'a']], encoder.words, encoder.weights
  )
  np.testing.assert_allclose(
    found.toarray()[0], row / np.linalg.norm(row), rtol=1e-6
  )


def test_singular_vectors_agree_with_scipy():
  rng = np.random.default_rng(0)
  # Five strong directions over noise, as a corpus of few subjects has.
  dense = rng.standard_normal((80, 5)) @ rng.standard_normal((5, 60)) * 3
  matrix = scipy.sparse.csr_matrix(dense + 0.1 * rng.standard_normal((80, 60)))
  found = sentence_encoder._right_singular_vectors(matrix, 5, seed=0)
  _, _, right = scipy.sparse.linalg.svds(matrix, 5)
  np.testing.assert_allclose(
    np.linalg.svd(right @ found)[1], np.ones(5), atol=1e-6
  )
  np.testing.assert_allclose(found.T @ found, np.eye(5), atol=1e-6)


def test_equal_arguments_give_equal_vectors_and_files(tmp_path):
  one = LSAEncoder.fit(CORPUS, width=3, seed=1)
  two = LSAEncoder.fit(CORPUS, width=3, seed=1)
  np.testing.assert_array_equal(one.projection, two.projection)
  one.save(tmp_path / 'encoder.npz')
  loaded = LSAEncoder.load(tmp_path / 'encoder.npz')
  np.testing.assert_array_equal(loaded.encode(CORPUS), one.encode(CORPUS))


def test_what_cannot_be_fitted_or_loaded_is_told(tmp_path):
  with pytest.raises(UserError, match='needs a larger corpus'):
    LSAEncoder.fit(['one', 'two'])
  (tmp_path / 'x.npz').write_bytes(b'PK')
  with pytest.raises(UserError, match='no saved sentence encoder'):
    LSAEncoder.load(tmp_path / 'x.npz')
