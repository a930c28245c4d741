"""From a module, a loss and batches to a trained, checkpointed module."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from p4lm.checkpoints.manager import CheckpointStore
from p4lm.errors import UserError
from p4lm.models.selection import split_trainable
from p4lm.partitioning.mesh import make_mesh
from p4lm.partitioning.rules import MeshAxes, with_changes
from p4lm.partitioning.shardings import (
  batch_sharding,
  check_rows,
  describe_state,
  param_shardings,
  put_batch,
  put_state,
)
from p4lm.pods import chips
from p4lm.runs import model_directory
from p4lm.runs.model_info import write_model_info
from p4lm.training import loop
from p4lm.training.leaf_names import leaf_name
from p4lm.training.metric_writers import MetricWriter
from p4lm.training.optimizers import OptimizerConfig
from p4lm.training.state import TrainState
from p4lm.training.step import LossFn, PlanFn, make_train_step
from p4lm.typing import PyTree

Batches = Callable[[int], Iterator[Mapping[str, np.ndarray]]]
StepFlops = Callable[[Mapping], float]


@dataclasses.dataclass(frozen=True)
class FitConfig:
  """How long, how fast and where a module is trained.

  Attributes:
    stage: what trains, see `models.selection.trainable`.
    optimizer: its name, rate and schedule.
    steps: updates in all, those of earlier starts included.
    seed: of dropout and sampling.
    mesh_shape: such as 'data=2,model=2'; None puts every device on `data`.
    accumulate: microbatches a step.
    axis_rules: changes to `partitioning.rules.STANDARD_RULES` for parameters,
      such as {'vocab': ('fsdp', 'model'), 'embed': None}.
    log_every, checkpoint_every: in steps.
  """

  stage: str
  optimizer: OptimizerConfig
  steps: int
  seed: int
  mesh_shape: str | None = None
  accumulate: int = 1
  axis_rules: Mapping[str, MeshAxes] | None = None
  log_every: int = 10
  checkpoint_every: int = 200


@dataclasses.dataclass(frozen=True)
class Fit:
  """A training that is set up but has not begun.

  Attributes:
    graphdef: merges with the state's params and frozen to the module.
    state: sharded over the mesh.
    optimizer, schedule: of the run.
    sharding: of batches.
    directory: gets checkpoints and metrics; None of an abstract fit.
    config: of the run.
  """

  graphdef: nnx.GraphDef
  state: TrainState
  optimizer: object
  schedule: object
  sharding: jax.sharding.Sharding
  directory: Path | None
  config: FitConfig

  def step_of(
    self,
    loss_fn: LossFn,
    plan: PlanFn | None = None,
    *,
    flops: StepFlops | None = None,
  ):
    """The compiled step of a loss, and the FLOPs of its batches.

    See `make_train_step` for the plan.
    """
    return make_train_step(
      loss_fn,
      self.optimizer,
      plan=plan,
      accumulate=self.config.accumulate,
      schedule=self.schedule,
      state_shardings=jax.tree.map(lambda x: x.sharding, self.state),
      batch_sharding=self.sharding,
      flops=flops,
    )

  def place(self, tree: PyTree) -> PyTree:
    """A tree of arrays where the state's devices are."""
    return put_state(tree, self.mesh, with_changes(self.config.axis_rules))

  def place_batch(self, features: PyTree) -> PyTree:
    """Features with their rows divided among the mesh's data shards."""
    named, structure = jax.tree.flatten_with_path(features)
    names = [leaf_name(path) for path, _ in named]
    placed = put_batch(dict(zip(names, (x for _, x in named))), self.mesh)
    return jax.tree.unflatten(structure, [placed[name] for name in names])

  @property
  def mesh(self) -> jax.sharding.Mesh:
    """The devices."""
    return self.sharding.mesh

  def run(
    self,
    step_fn,
    batches_from: Batches,
    extra_state: loop.ExtraState | None = None,
  ) -> TrainState:
    """Trains to the last step, from the newest checkpoint if there is one.

    The mesh is in force meanwhile, so that models can pin their activations.

    Args:
      step_fn: (state, batch) -> (state, metrics).
      batches_from: (step) -> batches from that step on.
      extra_state: what the checkpoints must hold beside the state.
    """
    writer = MetricWriter(self.directory)
    try:
      with jax.set_mesh(self.mesh):
        return self._train(step_fn, batches_from, writer, extra_state)
    finally:
      writer.close()

  def _train(self, step_fn, batches_from, writer, extra_state) -> TrainState:
    return loop.train(
      self.state,
      step_fn,
      batches_from,
      steps=self.config.steps,
      checkpoints=CheckpointStore(self.directory / 'checkpoints'),
      metric_writer=writer,
      log_every=self.config.log_every,
      checkpoint_every=self.config.checkpoint_every,
      description=self.directory.name,
      extra_state=extra_state,
      peak_flops=chips.peak_flops(list(self.sharding.mesh.devices.flat)),
    )


def prepare(
  module: nnx.Module,
  directory: Path,
  config: FitConfig,
  updates_per_step: int = 1,
) -> Fit:
  """Splits the module, places it on the mesh, writes `model-info.txt`.

  Args:
    module: what is trained, in part or whole.
    directory: of the run.
    config: how long, how fast and where.
    updates_per_step: updates that a step will make; the optimizer's schedule
      and its warm-up count updates.
  Raises:
    UserError: a stage that selects nothing, or a mesh that does not fit.
  """
  mesh, rules = make_mesh(config.mesh_shape), with_changes(config.axis_rules)
  graphdef, params, frozen = split_trainable(module, config.stage)
  updates = config.steps * updates_per_step
  optimizer = config.optimizer.make(updates)
  schedule = config.optimizer.make_schedule(updates)
  state = TrainState.create(
    put_state(params, mesh, rules),
    optimizer,
    jax.random.key(config.seed),
    frozen=put_state(frozen, mesh, rules),
  )
  # Counters and the key too: a state that an update returns must lie as the
  # first one does, or the second step compiles the update again.
  state = put_state(state, mesh, rules)
  write_model_info(directory, state, mesh)
  by_step = lambda step: schedule(step * updates_per_step)
  return _fit(graphdef, state, optimizer, by_step, mesh, directory, config)


def prepare_abstract(
  module: nnx.Module, config: FitConfig, mesh: jax.sharding.Mesh
) -> Fit:
  """The same of an abstract module, for a mesh that need not be here.

  Nothing is allocated: the state's arrays are ShapeDtypeStructs with the
  shardings that `prepare` would give them. Its step can be lowered.

  Args:
    module: from `nnx.eval_shape`.
    config: of the run; its mesh_shape is not read.
    mesh: of real or described devices.
  """
  graphdef, params, frozen = split_trainable(module, config.stage)
  optimizer = config.optimizer.make(config.steps)
  state = jax.eval_shape(
    lambda params, frozen: TrainState.create(
      params, optimizer, jax.random.key(config.seed), frozen=frozen
    ),
    params,
    frozen,
  )
  state = describe_state(state, mesh, with_changes(config.axis_rules))
  schedule = config.optimizer.make_schedule(config.steps)
  return _fit(graphdef, state, optimizer, schedule, mesh, None, config)


def check_layout(
  config: FitConfig, model: model_directory.Config, batch_size: int
) -> None:
  """Raises UserError where a run could not be laid out, in a moment.

  For the start of a job, before data are prepared and checkpoints read: the
  mesh fits the devices, every rule names an axis, the mesh divides every
  parameter and the batch.
  """
  mesh = make_mesh(config.mesh_shape)
  module = model_directory.abstract_module(model)
  param_shardings(nnx.state(module), mesh, with_changes(config.axis_rules))
  if batch_size % config.accumulate:
    raise UserError(
      f'accumulate={config.accumulate} does not divide BATCH_SIZE='
      f'{batch_size}; choose a divisor'
    )
  check_rows({'of every batch': batch_size}, mesh)


def _fit(graphdef, state, optimizer, schedule, mesh, directory, config) -> Fit:
  return Fit(
    graphdef=graphdef,
    state=state,
    optimizer=optimizer,
    schedule=schedule,
    sharding=batch_sharding(mesh),
    directory=directory,
    config=config,
  )
