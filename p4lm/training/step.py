"""One update: gradients over microbatches, clipping, the optimizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from p4lm.errors import UserError
from p4lm.training.state import TrainState
from p4lm.typing import Array, PyTree

Batch = Mapping[str, Array | np.ndarray]
Metrics = dict[str, Array]
LossFn = Callable[[PyTree, PyTree, Batch, Array], tuple[Array, Metrics]]
PlanFn = Callable[[PyTree, PyTree, Batch, Array], PyTree]

# A loss may report how much its mean weighs (say, response tokens) and how
# many tokens it read, a step how many FLOPs it took; these are sums, every
# other metric is a mean.
LOSS_WEIGHT = 'loss_weight'
TOKENS = 'tokens'
FLOPS = 'flops'


@dataclasses.dataclass(frozen=True)
class TrainStep:
  """A compiled update; see `make_train_step`.

  Attributes:
    update: jitted (mutable part of the state, frozen, batch) -> (its
      successor, metrics); the first argument's memory is reused.
    batch_sharding: where batches go, or None for the default device.
    flops: batch -> FLOPs of its update, reported as the metric `flops`; None
      where they are not known.
  """

  update: Callable
  batch_sharding: jax.sharding.Sharding | None = None
  flops: Callable[[Batch], float] | None = None

  def __call__(
    self, state: TrainState, batch: Batch
  ) -> tuple[TrainState, Metrics]:
    """The next state and the metrics, without waiting for either.

    The arrays of `state` other than its frozen ones are used up.
    """
    mutable, metrics = self.update(
      _mutable(state), state.frozen, self._place(batch)
    )
    if self.flops is not None:
      metrics = {**metrics, FLOPS: self.flops(batch)}
    step, params, opt_state, key = mutable
    return TrainState(step, params, state.frozen, opt_state, key), metrics

  def lower(self, state: TrainState, batch: Batch):
    """Lowers the update for abstract or real arguments, to compile ahead."""
    return self.update.lower(_mutable(state), state.frozen, batch)

  def _place(self, batch: Batch) -> Batch:
    if self.batch_sharding is None:
      return batch
    if jax.process_count() == 1:
      return jax.device_put(batch, self.batch_sharding)
    return jax.tree.map(
      lambda x: jax.make_array_from_process_local_data(self.batch_sharding, x),
      batch,
    )


def make_train_step(
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  *,
  plan: PlanFn | None = None,
  accumulate: int = 1,
  schedule: optax.Schedule | None = None,
  state_shardings: TrainState | None = None,
  batch_sharding: jax.sharding.Sharding | None = None,
  flops: Callable[[Batch], float] | None = None,
) -> TrainStep:
  """Compiles an update of the state by one batch.

  With `accumulate` = A the batch is cut into A microbatches whose gradients
  are averaged before the optimizer sees them. Where `loss_fn` reports
  `loss_weight` w_i (the denominator of its mean), the average is
  sum_i w_i g_i / sum_i w_i: exactly the gradient of the whole batch.

  With a `plan` the step is several updates: the plan turns the batch, with the
  parameters that the step began with, into K batches stacked along a new
  leading axis, and each of them is an update. Metrics are means over the K.

  Args:
    loss_fn: (params, frozen, batch, key) -> (float [] mean loss, metrics).
      Metrics `loss_weight` and `tokens` are sums; the others, means.
    optimizer: over the params.
    plan: (params, frozen, batch, key) -> K batches, every array [K,...].
    accumulate: microbatches a batch; divides the batch size. Where features
      differ in length (B prompts, B * G responses), what belongs to a row of
      the shortest stays together.
    schedule: learning rate by step, to report as `learning_rate`.
    state_shardings: TrainState of shardings that the next state must have;
      by default the compiler keeps those of the arrays given.
    batch_sharding: sharding over the leading axis of every batch feature.
    flops: batch -> FLOPs of its update on all devices together.
  Returns:
    step_fn(state, batch) -> (state, metrics), metrics with `loss` and
    `grad_norm` (before clipping).
  Raises:
    UserError: at the first call, when `accumulate` does not divide the batch.
  """

  def update(mutable, frozen, batch):
    step, params, opt_state, key = mutable
    step_key = jax.random.fold_in(key, step)
    if plan is None:
      params, opt_state, metrics = one_update(
        params, opt_state, frozen, batch, step_key
      )
    else:
      plan_key, updates_key = jax.random.split(step_key)
      batches = plan(params, frozen, batch, plan_key)
      params, opt_state, metrics = several_updates(
        params, opt_state, frozen, batches, updates_key
      )
    if schedule is not None:
      metrics['learning_rate'] = jnp.asarray(schedule(step), jnp.float32)
    return (step + 1, params, opt_state, key), metrics

  def one_update(params, opt_state, frozen, batch, key):
    if accumulate == 1:
      grads, metrics = _gradients(loss_fn, params, frozen, batch, key)
    else:
      grads, metrics = _accumulated_gradients(
        loss_fn, params, frozen, _split(batch, accumulate), key
      )
    metrics['grad_norm'] = optax.tree.norm(grads)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, metrics

  def several_updates(params, opt_state, frozen, batches, key):
    def body(carry, inputs):
      params, opt_state, metrics = one_update(*carry, frozen, *inputs)
      return (params, opt_state), metrics

    keys = jax.random.split(key, len(jax.tree.leaves(batches)[0]))
    (params, opt_state), metrics = jax.lax.scan(
      body, (params, opt_state), (batches, keys)
    )
    metrics = {
      name: jnp.sum(x) if name in (LOSS_WEIGHT, TOKENS) else jnp.mean(x)
      for name, x in metrics.items()
    }
    return params, opt_state, metrics

  shardings = {}
  if state_shardings is not None:
    shardings['out_shardings'] = (_mutable(state_shardings), None)
  return TrainStep(
    jax.jit(update, donate_argnums=0, **shardings), batch_sharding, flops
  )


def _mutable(state: TrainState) -> tuple:
  return state.step, state.params, state.opt_state, state.key


def _gradients(loss_fn, params, frozen, batch, key):
  (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(
    params, frozen, batch, key
  )
  return grads, {**metrics, 'loss': loss}


def _accumulated_gradients(loss_fn, params, frozen, microbatches, key):
  """Weighted mean of gradients and metrics over microbatches [A,B/A,...]."""
  keys = jax.random.split(key, len(jax.tree.leaves(microbatches)[0]))

  def terms(inputs):
    return _weighted_terms(loss_fn, params, frozen, *inputs)

  def add(total, inputs):
    return jax.tree.map(jnp.add, total, terms(inputs)), None

  first = jax.tree.map(lambda x: x[0], (microbatches, keys))
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(terms, first)
  )
  total, _ = jax.lax.scan(add, zeros, (microbatches, keys))
  weight, grads, means, sums = total
  # Without any weight every term is zero already.
  scale = 1.0 / jnp.where(weight > 0, weight, 1.0)
  grads = jax.tree.map(
    lambda grad, param: (grad * scale).astype(param.dtype), grads, params
  )
  return grads, {name: value * scale for name, value in means.items()} | sums


def _weighted_terms(loss_fn, params, frozen, batch, key):
  """(w, w x gradient, w x means, sums) of a microbatch, in float32."""
  grads, metrics = _gradients(loss_fn, params, frozen, batch, key)
  sums = {
    name: jnp.asarray(metrics.pop(name), jnp.float32)
    for name in (LOSS_WEIGHT, TOKENS)
    if name in metrics
  }
  weight = sums.get(LOSS_WEIGHT, jnp.float32(1.0))
  grads, means = jax.tree.map(
    lambda x: jnp.asarray(x, jnp.float32) * weight, (grads, metrics)
  )
  return weight, grads, means, sums


def _split(batch: Batch, accumulate: int) -> Batch:
  """[B,...] -> [A,B/A,...]; microbatch a has the rows a, a+A, a+2A, ...

  Neighbouring rows go to different microbatches, so that each device, which
  holds consecutive rows, finds rows of its own in every microbatch. A feature
  of B * G rows is split by groups of G.
  """
  rows = min(len(x) for x in jax.tree.leaves(batch))
  if rows % accumulate:
    raise UserError(
      f'accumulate={accumulate} does not divide the batch of {rows}; '
      'choose a divisor, or another BATCH_SIZE'
    )

  def split(x):
    if x.shape[0] % rows:
      raise UserError(
        f'accumulate={accumulate}: a feature has {x.shape[0]} rows, which is '
        f'no multiple of the batch of {rows}'
      )
    # Sizes in full: a batch of text alone has features without entries.
    group, rest = x.shape[0] // rows, x.shape[1:]
    parts = x.reshape(rows // accumulate, accumulate, group, *rest)
    parts = jnp.swapaxes(parts, 0, 1)
    return parts.reshape(accumulate, x.shape[0] // accumulate, *rest)

  return jax.tree.map(split, batch)
