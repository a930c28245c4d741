"""A tiny regression whose loss reads its key, frozen weights and a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from p4lm.training.state import TrainState
from p4lm.training.step import make_train_step

WIDTH = 3


def optimizer():
  return optax.adam(0.05)


def initial_state(seed=0):
  params = {
    'dense': {'kernel': jnp.arange(1.0, WIDTH + 1), 'bias': jnp.ones(())}
  }
  frozen = {'mixer': jnp.eye(WIDTH) * 0.5}
  return TrainState.create(
    params, optimizer(), jax.random.key(seed), frozen=frozen
  )


def loss_fn(params, frozen, batch, key):
  noise = jax.random.normal(key, batch['x'].shape)
  x = (batch['x'] + 0.1 * noise) @ frozen['mixer']
  predicted = x @ params['dense']['kernel'] + params['dense']['bias']
  loss = jnp.mean((predicted - batch['y']) ** 2)
  return loss, {'tokens': jnp.float32(x.shape[0])}


def batch_of(step, size=4):
  generator = np.random.default_rng(step)
  x = generator.normal(size=(size, WIDTH)).astype(np.float32)
  return {'x': x, 'y': x.sum(axis=1)}


def batches_from(step):
  while True:
    yield batch_of(step)
    step += 1


def make_step(**options):
  return make_train_step(loss_fn, optimizer(), **options)
