"""Run by test_program in a process with eight fake devices.

Compiles small programs whose costs a person can count, and prints as JSON what
`read_program` finds in them.
"""

import json
import sys

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from p4lm.partitioning.mesh import make_mesh
from p4lm.pods.collectives import mesh_axes
from p4lm.pods.program import read_program

MESH = make_mesh('data=2,fsdp=2,model=2')


def costs(function, *arguments):
  """What is found in a compiled function, ready for JSON."""
  compiled = jax.jit(function).lower(*arguments).compile()
  program = read_program(compiled.as_text())
  return {
    'flops': program.flops,
    'xla_flops': compiled.cost_analysis().get('flops'),
    'loops': [(loop.trips, loop.ends_early) for loop in program.loops],
    'open_flops': program.part(open_loop=True).flops,
    'collectives': sorted(
      (c.kind, mesh_axes(c.groups, MESH.shape), c.times, c.bytes)
      for c in program.collectives
    ),
  }


def array(*shape, spec=None):
  sharding = None if spec is None else NamedSharding(MESH, spec)
  return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)


def mapped(function, inputs, outputs):
  return jax.shard_map(
    function, mesh=MESH, in_specs=inputs, out_specs=outputs, check_vma=False
  )


def collectives():
  """One of each kind, and one in a loop."""

  def loop(x):
    body = lambda x, _: (jax.lax.psum(x, ('data', 'fsdp')) * 0.5, None)
    return jax.lax.scan(body, x, length=5)[0]

  x = array(16, 64)
  return {
    'psum': costs(
      mapped(lambda x: jax.lax.psum(x, 'model'), P('model'), P()), x
    ),
    'all_gather': costs(
      mapped(
        lambda x: jax.lax.all_gather(x, 'fsdp', tiled=True), P('fsdp'), P()
      ),
      x,
    ),
    'psum_scatter': costs(
      mapped(
        lambda x: jax.lax.psum_scatter(x, 'data', tiled=True), P(), P('data')
      ),
      x,
    ),
    'ppermute': costs(
      mapped(
        lambda x: jax.lax.ppermute(x, 'model', [(0, 1), (1, 0)]),
        P('model'),
        P('model'),
      ),
      x,
    ),
    'loop': costs(mapped(loop, P('model'), P('model')), x),
  }


def products():
  """Matrix products, alone and in loops."""
  weights, x = array(6, 32, 32), array(8, 32)

  def scanned(weights, x):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

  def nested(weights, x):
    inner = lambda x, w: (jnp.tanh(x @ w), None)
    outer = lambda x, _: (jax.lax.scan(inner, x, weights)[0], None)
    return jax.lax.scan(outer, x, length=3)[0]

  def early(weights, x):
    unfinished = lambda loop: (loop[0] < 7) & ~jnp.all(loop[1] > 1e9)
    extend = lambda loop: (loop[0] + 1, jnp.tanh(loop[1] @ weights[0]))
    x = x @ weights[1]
    return jax.lax.while_loop(unfinished, extend, (0, x))[1]

  batched = lambda a, b: jnp.einsum('bhqk,bhmk->bhqm', a, b)
  sharded = lambda x, w: jnp.tanh(x @ w)
  return {
    'product': costs(lambda x, w: x @ w, x, array(32, 16)),
    'batched': costs(batched, array(2, 3, 5, 8), array(2, 3, 7, 8)),
    'scanned': costs(scanned, weights, x),
    'nested': costs(nested, weights, x),
    'early': costs(early, weights, x),
    'sharded': costs(
      sharded,
      array(16, 32, spec=P('data', 'model')),
      array(32, 64, spec=P('model', None)),
    ),
  }


if __name__ == '__main__':
  json.dump({**collectives(), **products()}, sys.stdout)
