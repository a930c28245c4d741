"""Run by test_sharded_model in a process with four fake devices.

Prints, as JSON, how far losses, gradients and sampled tokens on each mesh are
from those on one device.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tiny_models import CONFIG, make_batch, make_responses

from p4lm.decoding.sampler import SamplerConfig, sample
from p4lm.models.recommender import Recommender
from p4lm.partitioning.build import build_model
from p4lm.partitioning.mesh import make_mesh
from p4lm.partitioning.shardings import put_batch

MESHES = ('data=2,model=2', 'fsdp=2,model=2')


def run(shape, devices):
  """Loss, gradient, samples and the placement of the parameters."""
  mesh = make_mesh(shape, devices=devices)
  make = lambda: Recommender(CONFIG, rngs=nnx.Rngs(0))
  graphdef, state = build_model(make, seed=3, mesh=mesh)
  batch = make_batch(batch=8)
  batch['responses'] = make_responses(rows=8)
  batch = put_batch(batch, mesh)

  def loss(state, batch):
    logits = nnx.merge(graphdef, state)(
      batch['prompt_tokens'],
      batch['responses'],
      batch['cf_embeddings'],
      batch['cf_kind_ids'],
    )
    logps = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(logps, batch['responses'][..., None], -1)
    return -chosen.mean()

  config = SamplerConfig(max_length=6, top_p=0.9, num_samples=2)
  with jax.set_mesh(mesh):
    value, gradient = jax.jit(jax.value_and_grad(loss))(state, batch)
    drawn = sample(graphdef, state, batch, jax.random.key(0), config, 1)
  return {
    'loss': value,
    'gradient': gradient,
    'parameters': state,
    'tokens': drawn.response_tokens,
    'logps': drawn.logps,
  }


def main():
  """Compares every mesh with one device."""
  devices = jax.devices()
  expected = run('data=1', devices[:1])
  report = {}
  for shape in MESHES:
    actual = run(shape, devices)
    report[shape] = {
      name: max(
        float(np.abs(np.asarray(a) - np.asarray(b)).max())
        for a, b in zip(
          jax.tree.leaves(actual[name]), jax.tree.leaves(expected[name])
        )
      )
      for name in expected
    }
    report[shape]['split_parameters'] = sum(
      not leaf.sharding.is_fully_replicated
      for leaf in jax.tree.leaves(actual['parameters'])
    )
  json.dump(report, sys.stdout)


if __name__ == '__main__':
  main()
