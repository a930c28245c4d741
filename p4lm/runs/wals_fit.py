"""Weighted ALS as a method of `fit_cf`."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import jax
import numpy as np
import tqdm

from p4lm.cf.factorization import Factorization, FactorizationConfig, fit
from p4lm.cf.rows import Interactions
from p4lm.errors import UserError
from p4lm.training.metric_writers import MetricWriter

_STATE = 'fit.npz'


@dataclasses.dataclass(frozen=True)
class Wals:
  """Weighted ALS: exact half steps over all pairs.

  Attributes:
    config: of the factorization.
    positive_rating: mode 'implicit': lower ratings are no interaction.
    half_life_days: mode 'implicit': halves a rating's weight for every so many
      days that it is older than the newest; None weighs all alike.
  Raises:
    UserError: a half-life in the explicit mode.
  """

  config: FactorizationConfig
  positive_rating: float = 0.0
  half_life_days: float | None = None

  def __post_init__(self):
    if self.half_life_days is not None and self.config.mode != 'implicit':
      raise UserError(
        f'half_life_days is {self.half_life_days} but the mode is '
        f"{self.config.mode!r}; it weighs interactions of mode 'implicit'"
      )

  @property
  def threshold(self) -> float | None:
    """The least rating that is read; None for all."""
    return None if self.config.mode == 'explicit' else self.positive_rating

  @property
  def confidences(self):
    """Ratings [M] -> weights [M], where the fit does not set them itself."""
    return self.config.confidences

  def about(self) -> dict:
    """What the tables depend on beside the ratings."""
    return {
      'factorization': dataclasses.asdict(self.config),
      'positive_rating': self.positive_rating,
      'half_life_days': self.half_life_days,
    }

  def fit(
    self, interactions: Interactions, directory: Path, about: dict
  ) -> Factorization:
    """Fits with a bar; the state on disk knows what it belongs to."""
    del about
    mesh = None
    if len(jax.devices()) > 1:
      mesh = jax.sharding.Mesh(np.array(jax.devices()), ('data',))
    bar = tqdm.tqdm(
      total=self.config.epochs, desc='fit_cf', unit='epoch', disable=None
    )
    with bar, MetricWriter(directory) as writer:
      epochs, clock = [], _Clock()

      def on_epoch(epoch: int, objective: float) -> None:
        if not epochs:
          # The first epoch seen may be one that an earlier start finished.
          writer.drop_after(epoch - 1)
        epochs.append(epoch)
        writer.write(epoch, {'objective': objective, **clock.lap()})
        bar.set_postfix(objective=f'{objective:.6g}')
        bar.update(epoch - bar.n)

      return fit(
        interactions,
        self.config,
        mesh=mesh,
        checkpoint_path=directory / _STATE,
        on_epoch=on_epoch,
      )

  def progress(self, model: Factorization, directory: Path) -> dict:
    """How the fit went, for the report."""
    del directory
    return {
      'objective': model.objectives[-1],
      'objectives': list(model.objectives),
    }

  def save(self, model: Factorization, directory: Path) -> None:
    """Writes what embeds further users beside the tables."""
    if model.biases is not None:
      model.biases.save(directory)

  def clear(self, directory: Path) -> None:
    """Removes the state that only an unfinished fit needs."""
    (directory / _STATE).unlink(missing_ok=True)


class _Clock:
  """Seconds since the last lap: of the wall and of all cores."""

  def __init__(self):
    self._last = self._now()

  def lap(self) -> dict[str, float]:
    last, self._last = self._last, self._now()
    return {
      name: round(self._last[name] - last[name], 4) for name in self._last
    }

  @staticmethod
  def _now() -> dict[str, float]:
    return {
      'epoch_secs': time.perf_counter(),
      'epoch_cpu_secs': time.process_time(),
    }
