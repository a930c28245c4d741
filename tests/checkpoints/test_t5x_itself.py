"""T5X's own models and checkpoints, where T5X is installed."""

from __future__ import annotations

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util

from p4lm.errors import UserError
from p4lm.models.recommender import Recommender
from p4lm.runs import conversion

LAYOUTS = ('t5', 'scalable_t5')
SIZES = {
  'vocab_size': 96,
  'emb_dim': 20,
  'num_heads': 3,
  'num_encoder_layers': 3,
  'num_decoder_layers': 2,
  'head_dim': 6,
  'mlp_dim': 28,
  'mlp_activations': ('gelu', 'linear'),
  'logits_via_embedding': False,
  'dtype': 'float32',
}


@pytest.fixture(scope='module')
def t5x():
  """Its module of that name."""
  try:
    importlib.import_module('t5x.checkpoints')
  except ImportError as error:
    pytest.skip(
      f'no T5X ({error}): pip install git+https://github.com/google-research/t5x'
    )
  return lambda name: importlib.import_module(f't5x.{name}')


@pytest.fixture(scope='module')
def texts():
  """Prompts of 30 and 40 tokens, responses, and what a decoder reads."""
  generator = np.random.default_rng(0)
  prompts = generator.integers(2, 90, (3, 40))
  prompts[1, 30:] = 0
  responses = generator.integers(2, 90, (3, 35))
  return prompts, np.pad(responses[:, :-1], ((0, 0), (1, 0))), responses


@pytest.fixture(scope='module', params=LAYOUTS)
def saved(t5x, texts, request, tmp_path_factory):
  """(layout, T5X's checkpoint directory, its parameters, its logits)."""
  network = t5x(f'examples.{request.param}.network')
  model = network.Transformer(network.T5Config(**SIZES))
  arguments = [jnp.asarray(text) for text in texts]
  with jax.numpy_rank_promotion('allow'):
    variables = dict(
      model.init(jax.random.key(0), *arguments, enable_dropout=False)
    )
  generator = np.random.default_rng(1)
  # Scales and biases begin as ones and zeros, which would hide a mix-up.
  variables['params'] = jax.tree.map(
    lambda leaf: jnp.asarray(
      leaf + 0.1 * generator.normal(size=leaf.shape), jnp.float32
    ),
    variables['params'],
  )
  directory = tmp_path_factory.mktemp(request.param)
  state = t5x('train_state').InferenceState.create(
    t5x('train_state').flax.core.freeze(variables)
  )
  partitioner = t5x('partitioning').PjitPartitioner(num_partitions=1)
  checkpointer = t5x('checkpoints').Checkpointer(
    state, partitioner, str(directory)
  )
  checkpointer.save(state)
  logits = _their_logits(network, variables['params'], texts)
  return request.param, directory, _flat(variables['params']), logits


def test_its_checkpoint_gives_its_logits(saved, texts):
  _, directory, _, expected = saved
  source = conversion.open_source(str(directory))
  logits = _logits(source, texts)
  np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_it_restores_what_is_exported(t5x, saved, texts, layout, tmp_path):
  """By its own function; in its own layout every number is the same."""
  own, directory, parameters, expected = saved
  source = conversion.open_source(str(directory))
  if (own, layout) == ('scalable_t5', 't5'):
    # There each layer has a position bias of its own.
    with pytest.raises(UserError, match="use 'scalable_t5'"):
      conversion.write_t5x(tmp_path, source, layout=layout)
    return
  conversion.write_t5x(tmp_path, source, layout=layout)
  (step,) = tmp_path.glob('checkpoint_*')
  restored = t5x('checkpoints').load_t5x_checkpoint(str(step))
  target = _flat(restored['target'])
  if layout == own:
    assert target.keys() == parameters.keys()
    for name, value in parameters.items():
      np.testing.assert_array_equal(target[name], value, err_msg=name)
  network = t5x(f'examples.{layout}.network')
  logits = _their_logits(network, restored['target'], texts)
  np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


def _flat(tree):
  return traverse_util.flatten_dict(dict(tree), sep='/')


def _their_logits(network, parameters, texts):
  model = network.Transformer(network.T5Config(**SIZES))
  arguments = [jnp.asarray(text) for text in texts]
  # Our tests forbid it, their code is written with it.
  with jax.numpy_rank_promotion('allow'):
    return model.apply({'params': parameters}, *arguments, enable_dropout=False)


def _logits(source, texts):
  """Those of p4lm's model with the source's parameters."""
  prompts, _, responses = texts
  config = conversion.recommender_config(source)
  graphdef, state = nnx.split(
    nnx.eval_shape(lambda: Recommender(config, rngs=nnx.Rngs(0)))
  )
  for path, variable in nnx.to_flat_state(state):
    value = np.empty(variable.get_value().shape, np.float32)
    source.fill('/'.join(map(str, path[1:])), value)
    variable.set_value(jnp.asarray(value))
  model = nnx.merge(graphdef, state)
  no_users = jnp.zeros((len(prompts), 0, 1)), jnp.zeros((len(prompts), 0), int)
  return model(jnp.asarray(prompts), jnp.asarray(responses), *no_users)
