import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p4lm.ops import contrastive

ALL = jnp.ones(32, bool)


def test_identical_embeddings_give_log_b():
  same = jnp.ones((32, 8))
  loss = contrastive.info_nce_loss(same, same, example_mask=ALL)
  np.testing.assert_allclose(loss, 3.465736, rtol=1e-6)


def test_orthonormal_pairs_at_temperature_one_tenth():
  with jax.enable_x64(True):
    basis = 3.0 * jnp.eye(32)
    loss = contrastive.info_nce_loss(basis, basis, example_mask=ALL)
    np.testing.assert_allclose(loss, np.log1p(31 * np.exp(-10)), rtol=1e-12)
    np.testing.assert_allclose(loss, 0.00140641, rtol=1e-5)


def test_padding_is_nobodys_negative():
  embeddings = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)))
  keys = jnp.roll(embeddings, 1, axis=1)
  mask = jnp.arange(6) < 4
  padded = contrastive.info_nce_loss(embeddings, keys, example_mask=mask)
  short = contrastive.info_nce_loss(
    embeddings[:4], keys[:4], example_mask=jnp.ones(4, bool)
  )
  np.testing.assert_allclose(padded, short, rtol=1e-6)


def test_temperature_is_checked():
  with pytest.raises(ValueError, match='temperature'):
    contrastive.info_nce_loss(
      jnp.ones((2, 2)),
      jnp.ones((2, 2)),
      example_mask=jnp.ones(2, bool),
      temperature=0.0,
    )
