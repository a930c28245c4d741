"""Run by test_sharded_model in a process with eight fake devices.

Prints, as JSON, how far losses, gradients, updates and sampled tokens on each
mesh are from those on one device.
"""

import dataclasses
import functools
import itertools
import json
import sys

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from tiny_models import CONFIG, DECODER_CONFIG, make_batch, make_responses

from p4lm.decoding.sampler import SamplerConfig, sample
from p4lm.models.grouped_attention import KeyPart, attend_parts
from p4lm.models.recommender import Recommender
from p4lm.partitioning.build import build_model
from p4lm.partitioning.mesh import make_mesh
from p4lm.partitioning.shardings import batch_sharding, put_batch, put_state
from p4lm.pods import program
from p4lm.pods.collectives import mesh_axes
from p4lm.runs.model_losses import maximum_likelihood
from p4lm.training.optimizers import OptimizerConfig
from p4lm.training.state import TrainState
from p4lm.training.step import make_train_step

# Sizes that every mesh of eight devices divides, and a layer of each stack:
# every mesh is a program of its own to compile.
ADAPTER = dataclasses.replace(CONFIG.adapter, hidden_width=16)
ONE_LAYER = {'num_encoder_layers': 1, 'num_decoder_layers': 1}
MODELS = {
  't5': dataclasses.replace(
    CONFIG,
    lm=dataclasses.replace(CONFIG.lm, num_heads=8, d_kv=2, **ONE_LAYER),
    adapter=ADAPTER,
  ),
}
# Of which sampling alone is compared: tied embeddings, shared key heads.
SAMPLED_DECODER = dataclasses.replace(
  DECODER_CONFIG,
  lm=dataclasses.replace(DECODER_CONFIG.lm, num_layers=2),
  adapter=ADAPTER,
)
SHAPES = [
  f'data={data},fsdp={fsdp},model={model}'
  for data, fsdp, model in itertools.product((1, 2, 4, 8), repeat=3)
  if data * fsdp * model == 8
]
# (optimizer, microbatches) of whole updates.
UPDATES = [('adamw', 2), ('adafactor', 2)]
# The mesh of updates and samples, whose parameters are also drawn on it.
SHAPE = 'data=2,fsdp=2,model=2'


@functools.cache
def drawn(config):
  """A model on one device."""
  make = lambda: Recommender(config, rngs=nnx.Rngs(0))
  return build_model(make, seed=3)


def built(config, shape, devices):
  """A mesh, a model on it and a batch."""
  mesh = make_mesh(shape, devices=devices)
  graphdef, state = drawn(config)
  state = put_state(state, mesh)
  batch = make_batch(batch=16)
  batch['response_tokens'] = make_responses(rows=16)
  # Rows of different lengths: microbatches differ in weight.
  lengths = np.arange(16)[:, None] % 7 + 1
  batch['response_mask'] = np.arange(7)[None] < lengths
  return mesh, graphdef, state, put_batch(batch, mesh)


def gradients(config, shape, devices):
  """Loss and gradient, and the parameters that they are of."""
  mesh, graphdef, state, batch = built(config, shape, devices)
  loss_fn = maximum_likelihood(graphdef)

  def loss(state, batch):
    return loss_fn(state, nnx.State({}), batch, None)[0]

  with jax.set_mesh(mesh):
    value, gradient = jax.jit(jax.value_and_grad(loss))(state, batch)
  return {'loss': value, 'gradient': gradient, 'parameters': state}


def born(config, devices):
  """Parameters that are sharded as they are drawn."""
  mesh = make_mesh(SHAPE, devices=devices)
  make = lambda: Recommender(config, rngs=nnx.Rngs(0))
  return {'parameters': build_model(make, seed=3, mesh=mesh)[1]}


def samples(config, shape, devices):
  """Sampled tokens and log-probabilities, and the axes that sampling uses.

  The axes are those that collectives run along in the loop over tokens.
  """
  mesh, graphdef, state, batch = built(config, shape, devices)
  sampler = SamplerConfig(max_length=6, top_p=0.9, num_samples=2)
  dynamic = state, batch, jax.random.key(0)
  with jax.set_mesh(mesh):
    compiled = sample.lower(graphdef, *dynamic, sampler, 1).compile()
    found = compiled(*dynamic)
  loop = program.read_program(compiled.as_text()).part(open_loop=True)
  axes = {mesh_axes(one.groups, mesh.shape) for one in loop.collectives}
  arrays = {'tokens': found.response_tokens, 'logps': found.logps}
  return arrays, sorted(axes)


def updates(config, shape, devices, name, accumulate):
  """Parameters, moments and metrics after two updates."""
  mesh, graphdef, params, batch = built(config, shape, devices)
  # No warm-up or decay: the first updates are as large as later ones. Small
  # tables are factored too.
  made = OptimizerConfig(name, 1e-2, weight_decay=0.01)
  state = TrainState.create(
    params, made.make(4), jax.random.key(0), frozen=nnx.State({})
  )
  state = put_state(state, mesh)
  step = make_train_step(
    maximum_likelihood(graphdef),
    made.make(4),
    accumulate=accumulate,
    state_shardings=jax.tree.map(lambda leaf: leaf.sharding, state),
    batch_sharding=batch_sharding(mesh),
  )
  with jax.set_mesh(mesh):
    for _ in range(2):
      state, metrics = step(state, batch)
  return {
    'loss': metrics['loss'],
    'grad_norm': metrics['grad_norm'],
    'updated': state.params,
    'moments': state.opt_state,
  }


def shared_key_head(devices):
  """Attention of split query heads to one key head, and its collectives."""
  mesh = make_mesh(SHAPE, devices=devices)
  key = jax.random.key(5)
  query = jax.random.normal(key, (8, 4, 3, 6))
  keys = jax.random.normal(jax.random.fold_in(key, 1), (4, 1, 5, 6))
  mask = np.ones((8, 3, 5), bool)

  def attend(query, keys):
    return attend_parts(query, [KeyPart(keys, keys, mask)], scale=0.5)

  split = jax.jit(
    attend,
    in_shardings=(
      NamedSharding(mesh, PartitionSpec('data', 'model')),
      NamedSharding(mesh, PartitionSpec('data')),
    ),
  )
  compiled = split.lower(query, keys).compile()
  found, expected = split(query, keys), jax.jit(attend)(query, keys)
  kinds = [c.kind for c in program.read_program(compiled.as_text()).collectives]
  return differences({'context': found}, {'context': expected}) | {
    'collectives': kinds
  }


def differences(actual, expected):
  """The largest difference of each quantity, and what was split."""
  report = {
    name: max(
      float(np.abs(np.float64(a) - np.float64(b)).max())
      for a, b in zip(
        jax.tree.leaves(actual[name]), jax.tree.leaves(expected[name])
      )
    )
    for name in expected
  }
  for name in {'parameters', 'moments'} & actual.keys():
    report[f'split_{name}'] = sum(
      not leaf.sharding.is_fully_replicated
      for leaf in jax.tree.leaves(actual[name])
    )
  return report


def compared_samples(config, devices, one):
  """Samples on SHAPE against those on one device."""
  found, axes = samples(config, SHAPE, devices)
  expected, _ = samples(config, *one)
  return differences(found, expected) | {'loop_axes': axes}


def main():
  """Compares every mesh with one device."""
  devices, report = jax.devices(), {}
  for model, config in MODELS.items():
    one = ('data=1', devices[:1])
    expected = gradients(config, *one)
    report[model] = {
      shape: differences(gradients(config, shape, devices), expected)
      for shape in SHAPES
    }
    report[f'{model} born'] = differences(
      born(config, devices), {'parameters': drawn(config)[1]}
    )
    report[f'{model} samples'] = compared_samples(config, devices, one)
    report[f'{model} updates'] = {
      name: differences(
        updates(config, SHAPE, devices, name, accumulate),
        updates(config, *one, name, 1),
      )
      for name, accumulate in UPDATES
    }
  report['decoder samples'] = compared_samples(SAMPLED_DECODER, devices, one)
  report['shared key head'] = shared_key_head(devices)
  json.dump(report, sys.stdout)


if __name__ == '__main__':
  main()
