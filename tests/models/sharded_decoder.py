"""A decoder-only model on one device and on a mesh of four; prints JSON."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tiny_models import (
  DECODER,
  DECODER_CONFIG,
  make_batch,
  make_responses,
)

from p4lm.decoding.sampler import SamplerConfig, sample
from p4lm.models.recommender import Recommender
from p4lm.partitioning.build import build_model
from p4lm.partitioning.mesh import make_mesh
from p4lm.partitioning.shardings import put_batch

LM = dataclasses.replace(DECODER, scan_unroll=1)
CONFIG = dataclasses.replace(DECODER_CONFIG, lm=LM)
FEATURES = {
  **make_batch(batch=4),
  'response_tokens': make_responses(rows=4),
}


def quantities(mesh=None):
  """Loss, gradients and greedy tokens."""
  graphdef, state = build_model(
    lambda: Recommender(CONFIG, rngs=nnx.Rngs(0)), 3, mesh
  )
  batch = {name: np.asarray(value) for name, value in FEATURES.items()}
  batch = put_batch(batch, mesh) if mesh is not None else batch
  responses = batch.pop('response_tokens')

  def loss(state, batch, responses):
    logits = nnx.merge(graphdef, state)(
      batch['prompt_tokens'],
      responses,
      batch['cf_embeddings'],
      batch['cf_kind_ids'],
    )
    logps = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(logps, responses[..., None], -1).mean()

  value, gradient = jax.jit(jax.value_and_grad(loss))(state, batch, responses)
  config = SamplerConfig(6, greedy=True, num_samples=2)
  drawn = sample(graphdef, state, batch, jax.random.key(0), config, 7)
  split = sum(
    not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state)
  )
  return {
    'loss': np.asarray(value),
    'gradient': [np.asarray(leaf) for leaf in jax.tree.leaves(gradient)],
    'tokens': np.asarray(drawn.response_tokens),
  }, split


def main():
  one, _ = quantities()
  mesh = make_mesh('data=1,fsdp=2,model=2')
  with jax.set_mesh(mesh):
    four, split = quantities(mesh)
  gaps = [
    np.abs(a - b).max() for a, b in zip(one['gradient'], four['gradient'])
  ]
  report = {
    'loss': float(abs(one['loss'] - four['loss'])),
    'gradient': float(max(gaps)),
    'tokens': int((one['tokens'] != four['tokens']).sum()),
    'split_parameters': split,
  }
  print(json.dumps(report))


if __name__ == '__main__':
  main()
