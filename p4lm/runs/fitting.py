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
  put_state,
)
from p4lm.pods import chips
from p4lm.runs import model_directory
from p4lm.runs.model_info import write_model_info
from p4lm.training import loop
from p4lm.training.metric_writers import MetricWriter
from p4lm.training.optimizers import OptimizerConfig
from p4lm.training.state import TrainState
from p4lm.training.step import LossFn, make_train_step

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

  def step_of(self, loss_fn: LossFn, flops: StepFlops | None = None):
    """The compiled update of a loss, and the FLOPs of its batches."""
    return make_train_step(
      loss_fn,
      self.optimizer,
      accumulate=self.config.accumulate,
      schedule=self.schedule,
      state_shardings=jax.tree.map(lambda x: x.sharding, self.state),
      batch_sharding=self.sharding,
      flops=flops,
    )

  def run(self, step_fn, batches_from: Batches) -> TrainState:
    """Trains to the last step, from the newest checkpoint if there is one.

    The mesh is in force meanwhile, so that models can pin their activations.
    """
    writer = MetricWriter(self.directory)
    try:
      with jax.set_mesh(self.sharding.mesh):
        return self._train(step_fn, batches_from, writer)
    finally:
      writer.close()

  def _train(self, step_fn, batches_from, writer) -> TrainState:
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
      peak_flops=chips.peak_flops(list(self.sharding.mesh.devices.flat)),
    )


def prepare(module: nnx.Module, directory: Path, config: FitConfig) -> Fit:
  """Splits the module, places it on the mesh, writes `model-info.txt`.

  Raises:
    UserError: a stage that selects nothing, or a mesh that does not fit.
  """
  mesh, rules = make_mesh(config.mesh_shape), with_changes(config.axis_rules)
  graphdef, params, frozen = split_trainable(module, config.stage)
  optimizer = config.optimizer.make(config.steps)
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
  return _fit(graphdef, state, optimizer, mesh, directory, config)


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
  return _fit(graphdef, state, optimizer, mesh, None, config)


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


def _fit(graphdef, state, optimizer, mesh, directory, config) -> Fit:
  return Fit(
    graphdef=graphdef,
    state=state,
    optimizer=optimizer,
    schedule=config.optimizer.make_schedule(config.steps),
    sharding=batch_sharding(mesh),
    directory=directory,
    config=config,
  )
