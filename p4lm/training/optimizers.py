"""Optimizers and learning-rate schedules, by name."""

from __future__ import annotations

import dataclasses
import re

import jax
import optax

from p4lm.errors import UserError
from p4lm.training.leaf_names import leaf_name
from p4lm.typing import PyTree

_NAMES = ('adamw', 'adafactor', 'adagrad')
_SCHEDULES = ('constant', 'cosine', 'linear')


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """An optimizer, its schedule and its clipping.

  Attributes:
    name: 'adamw', 'adafactor' (factored second moments, updates relative to
      the size of each parameter, no momentum: T5's choice) or 'adagrad' (an
      entry without gradient stays as it is: for tables of embeddings).
    learning_rate: the peak, reached after the warm-up.
    warmup_steps: steps of linear growth from zero.
    schedule: after the warm-up 'constant', or down to `final_fraction` of the
      peak at the last step along a 'cosine' or a line ('linear').
    weight_decay: decoupled, per unit of learning rate for adamw and adagrad;
      per step for adafactor.
    decay_exclude: regular expression over parameter names that are not
      decayed; None decays all.
    clip_norm: gradients longer than this (global norm) are scaled down to it;
      0 leaves them.
    b1, b2: decay of adamw's moments.
    eps: adamw's term in the denominator; the value that adagrad's sums of
      squares start from.
    final_fraction: of the peak, where a schedule ends.
  """

  name: str = 'adamw'
  learning_rate: float = 1e-3
  warmup_steps: int = 0
  schedule: str = 'constant'
  weight_decay: float = 0.0
  decay_exclude: str | None = r'(^|/)(scale|bias|[^/]*norm[^/]*)(/|$)'
  clip_norm: float = 1.0
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  final_fraction: float = 0.0

  def __post_init__(self):
    _check_choice('name', self.name, _NAMES)
    _check_choice('schedule', self.schedule, _SCHEDULES)
    if not self.learning_rate > 0:
      raise UserError(
        f'learning_rate must be positive, got {self.learning_rate}'
      )
    for name in ('warmup_steps', 'weight_decay', 'clip_norm'):
      if not getattr(self, name) >= 0:
        raise UserError(
          f'{name} must not be negative, got {getattr(self, name)}'
        )
    for name in ('b1', 'b2', 'final_fraction'):
      if not 0 <= getattr(self, name) <= 1:
        raise UserError(
          f'{name} must lie between 0 and 1, got {getattr(self, name)}'
        )

  def make_schedule(self, total_steps: int) -> optax.Schedule:
    """Learning rate by step (0 is the first update).

    >>> config = OptimizerConfig(
    ...   learning_rate=1.0, warmup_steps=2, schedule='linear')
    >>> schedule = config.make_schedule(6)
    >>> [float(schedule(step)) for step in (0, 1, 2, 4, 6)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    peak, end = self.learning_rate, self.learning_rate * self.final_fraction
    after = max(1, total_steps - self.warmup_steps)
    if self.schedule == 'cosine':
      tail = optax.cosine_decay_schedule(peak, after, self.final_fraction)
    elif self.schedule == 'linear':
      tail = optax.linear_schedule(peak, end, after)
    else:
      tail = optax.constant_schedule(peak)
    if not self.warmup_steps:
      return tail
    warmup = optax.linear_schedule(0.0, peak, self.warmup_steps)
    return optax.join_schedules([warmup, tail], [self.warmup_steps])

  def make(self, total_steps: int) -> optax.GradientTransformation:
    """The optimizer of a run of `total_steps` updates."""
    schedule = self.make_schedule(total_steps)
    if self.name == 'adafactor':
      update = optax.adafactor(
        schedule,
        weight_decay_rate=self.weight_decay or None,
        weight_decay_mask=self._decay_mask,
      )
    elif self.name == 'adagrad':
      decay = optax.add_decayed_weights(self.weight_decay, self._decay_mask)
      update = optax.chain(
        optax.scale_by_rss(initial_accumulator_value=self.eps, eps=0.0),
        *([decay] if self.weight_decay else []),
        optax.scale_by_learning_rate(schedule),
      )
    else:
      update = optax.adamw(
        schedule,
        b1=self.b1,
        b2=self.b2,
        eps=self.eps,
        weight_decay=self.weight_decay,
        mask=self._decay_mask,
      )
    if not self.clip_norm:
      return update
    return optax.chain(optax.clip_by_global_norm(self.clip_norm), update)

  def _decay_mask(self, params: PyTree) -> PyTree:
    """True for parameters to decay. Norm scales are stacked over layers, so
    their rank does not tell them from matrices: names do."""
    excluded = re.compile(self.decay_exclude or r'(?!)')
    return jax.tree_util.tree_map_with_path(
      lambda path, _: excluded.search(leaf_name(path)) is None, params
    )


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
  if value not in choices:
    raise UserError(
      f'{name} must be one of {", ".join(choices)}; got {value!r}'
    )
