"""The loop of every training job: steps, metrics, checkpoints, an end.

A run is a function of its first state and its batches: stopped anywhere and
started again it goes on from its last checkpoint and arrives at the same
parameters, bit for bit.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NoReturn, Protocol

import jax

from p4lm.errors import UserError
from p4lm.training.metric_windows import MetricWindow, NonFinite
from p4lm.training.metric_writers import MetricWriter
from p4lm.training.preemption import Preempted, watch_preemption
from p4lm.training.progress import Progress
from p4lm.training.state import TrainState
from p4lm.typing import PyTree

_log = logging.getLogger(__name__)

StepFn = Callable[[TrainState, Mapping], tuple[TrainState, Mapping]]


class Checkpoints(Protocol):
  """What the loop needs of a checkpoint store."""

  def latest_step(self) -> int | None: ...

  def restore(self, templates: Mapping[str, PyTree]) -> tuple[int, dict]: ...

  def save(self, step: int, items: Mapping[str, PyTree]) -> None: ...

  def wait(self) -> None: ...


class ExtraState(Protocol):
  """State of a job outside TrainState that its checkpoints must hold."""

  def checkpoint_items(self) -> dict[str, PyTree]: ...

  def restore_items(self, items: Mapping[str, PyTree]) -> None: ...


@dataclasses.dataclass(frozen=True)
class Hook:
  """Something to do between steps, such as an evaluation.

  Attributes:
    every: it runs after each step that this divides, and after the last.
    run: (step, state) -> metrics to log, or None. The state's arrays are used
      up by the next step: what is to stay must be copied.
  """

  every: int
  run: Callable[[int, TrainState], Mapping[str, float] | None]


def train(
  state: TrainState,
  step_fn: StepFn,
  batches_from: Callable[[int], Iterator[Mapping]],
  *,
  steps: int,
  checkpoints: Checkpoints | None = None,
  metric_writer: MetricWriter | None = None,
  log_every: int = 50,
  checkpoint_every: int = 1000,
  description: str = 'train',
  hooks: Sequence[Hook] = (),
  extra_state: ExtraState | None = None,
  peak_flops: float | None = None,
) -> TrainState:
  """Runs steps until `steps` are done, in this process or an earlier one.

  Where `checkpoints` holds a step, the run goes on from it, drops metrics
  logged after it and asks for batches from there on. Metrics are means since
  the last logged step; `tokens` and `flops` become rates (see
  `MetricWindow.close`). The device is never waited for except a few steps
  behind, at log points and for saving.

  Args:
    state: the first state; only its shapes count when a checkpoint exists.
    step_fn: (state, batch) -> (state, metrics) with a `loss`.
    batches_from: (step) -> batches of that step, the next one, ...
    steps: updates in all.
    checkpoints: where to save and resume; None for neither.
    metric_writer: gets metrics; None for none.
    log_every: steps between logged metrics.
    checkpoint_every: steps between checkpoints; the last step has one too.
    description: name of the run in progress and messages.
    hooks: see `Hook`; they run before the checkpoint of their step.
    extra_state: saved and restored along with `state`.
    peak_flops: FLOP/s of all devices together, for MFU; None if not known.
  Returns:
    The state after `steps` updates.
  Raises:
    UserError: the loss or the gradient is not finite (the message names the
      step and the checkpoint that is left), batches end early, or the
      checkpoints go beyond `steps`.
    Preempted: SIGTERM came; the state has been saved.
  """
  began = time.monotonic()
  _check_positive(log_every=log_every, checkpoint_every=checkpoint_every)
  resumed = checkpoints is not None and checkpoints.latest_step() is not None
  if resumed:
    state = _restore(state, checkpoints, extra_state)
  start = int(state.step)
  if start > steps:
    raise UserError(
      f'{description}: the checkpoint has done {start} steps, more than '
      f'STEPS={steps}; raise STEPS or choose another OUTPUT_DIR'
    )
  if resumed:
    _log.info('%s: goes on after step %d', description, start)
  if metric_writer is not None:
    metric_writer.drop_after(start)
  if start == steps:
    return state
  run = _Run(
    state,
    MetricWindow(peak_flops=peak_flops, began=began),
    checkpoints,
    metric_writer,
    hooks,
    extra_state,
    description,
    steps,
  )
  batches = batches_from(start)
  try:
    with watch_preemption() as preemption:
      for step in range(start + 1, steps + 1):
        run.update(step_fn, step, _next_batch(batches, step, description))
        stop = preemption.requested(step) and step < steps
        save = stop or step == steps or step % checkpoint_every == 0
        run.after_step(step, log=save or step % log_every == 0)
        if save:
          run.save(step)
        if stop:
          run.stop(step)
    run.wait()
  finally:
    run.close()
    if hasattr(batches, 'close'):
      batches.close()
  return run.state


class _Run:
  """The parts of a run between two steps."""

  def __init__(
    self,
    state,
    window,
    checkpoints,
    writer,
    hooks,
    extra_state,
    description,
    steps,
  ):
    self.state = state
    self._window = window
    self._checkpoints = checkpoints
    self._writer = writer
    self._hooks = hooks
    self._extra_state = extra_state
    self._description = description
    self._steps = steps
    start = int(state.step)
    self._progress = Progress(description, steps, start)

  def update(self, step_fn, step: int, batch) -> None:
    self.state, metrics = step_fn(self.state, batch)
    self._window.add(step, metrics)
    self._progress.advance(step)

  def after_step(self, step: int, *, log: bool) -> None:
    """Hooks and, where due, the metrics since the last log."""
    due = [h for h in self._hooks if step % h.every == 0 or step == self._steps]
    if not (log or due):
      return
    try:
      metrics = self._window.close()
    except NonFinite as error:
      raise UserError(self._explain(error)) from error
    for hook in due:
      metrics.update(hook.run(step, self.state) or {})
    self._window.restart_clock()
    if self._writer is not None:
      self._writer.write(step, metrics)
    self._progress.report(step, metrics)

  def save(self, step: int) -> None:
    if self._checkpoints is None:
      return
    items = self.state.checkpoint_items()
    if self._extra_state is not None:
      items.update(self._extra_state.checkpoint_items())
    self._checkpoints.save(step, items)
    self._window.restart_clock()

  def wait(self) -> None:
    if self._checkpoints is not None:
      self._checkpoints.wait()

  def stop(self, step: int) -> NoReturn:
    self.wait()
    saved = 'is saved' if self._checkpoints is not None else 'is lost'
    message = (
      f'{self._description}: stopped by SIGTERM after step {step}, which '
      f'{saved}; start again to go on'
    )
    _log.warning(message)
    raise Preempted(message)

  def close(self) -> None:
    self._progress.close()
    if self._writer is not None:
      self._writer.close()

  def _explain(self, error: NonFinite) -> str:
    left = 'no checkpoint was saved before it'
    if self._checkpoints is not None:
      self._checkpoints.wait()
      if (saved := self._checkpoints.latest_step()) is not None:
        left = f'the checkpoint of step {saved} is good'
    return (
      f'{self._description}: {error.name} is {error.value} at step '
      f'{error.step}; {left}. Lower the learning rate, raise warmup_steps or '
      'lower clip_norm, and look for extreme values in the batch of that step'
    )


def _restore(state, checkpoints, extra_state) -> TrainState:
  templates = state.checkpoint_items()
  extra = extra_state.checkpoint_items() if extra_state is not None else {}
  _, items = checkpoints.restore({**templates, **extra})
  if extra_state is not None:
    extra_state.restore_items({name: items[name] for name in extra})
  return jax.block_until_ready(state.with_items(items))


def _next_batch(batches: Iterator, step: int, description: str):
  try:
    return next(batches)
  except StopIteration:
    raise UserError(
      f'{description}: the batches ended before step {step}; training needs '
      'batches without end'
    ) from None


def _check_positive(**values: int) -> None:
  for name, value in values.items():
    if value < 1:
      raise UserError(f'{name} must be at least 1, got {value}')
