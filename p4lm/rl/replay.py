"""A replay: trajectories of any policy in arrays of a fixed size on the host.

    row   0        1        ...  capacity - 1
          oldest   ...      newest, then from row 0 over the oldest again

Draws are addressed by their number, so a run that is killed and started again
draws the same rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np

from p4lm.errors import UserError
from p4lm.rl.objective import check_at_least
from p4lm.rl.rollouts import PROMPT_FEATURES, Rollout

_SAMPLE_FIELDS = (
  'response_tokens',
  'response_mask',
  'behavior_logps',
  'reference_logps',
  'rewards',
  'valid',
)


@dataclasses.dataclass(frozen=True)
class ReplayConfig:
  """How much is kept and drawn.

  Attributes:
    capacity: trajectories kept. A row of P prompt tokens, N vectors of width E
      and L response tokens takes 4 (P + N (E + 1)) + 13 L + 5 bytes: 10,000
      rows of 512 + 64 tokens, 13 MB.
    rows: trajectories drawn for an iteration.
    seed: of the draws.
  """

  capacity: int = 4096
  rows: int = 64
  seed: int = 0

  def __post_init__(self):
    check_at_least(self, 1, 'capacity', 'rows')
    check_at_least(self, 0, 'seed')


class Replay:
  """A ring of trajectories.

  Args:
    config: sizes and seed.
    example: shapes and dtypes of a rollout, of any number of rows.
  """

  def __init__(self, config: ReplayConfig, example: Rollout):
    self._config = config
    self._rows = {
      name: np.zeros((config.capacity, *array.shape[1:]), array.dtype)
      for name, array in _fields(example).items()
    }
    self._added, self._draws = np.int64(0), np.int64(0)

  def __len__(self) -> int:
    return int(min(self._added, self._config.capacity))

  def add(self, rollout: Rollout) -> None:
    """Appends the valid samples of a rollout, each with its prompt.

    Raises:
      UserError: its arrays have other sizes than the replay's.
    """
    valid = np.flatnonzero(np.asarray(rollout.valid))
    group_size = rollout.group_size
    places = (int(self._added) + np.arange(len(valid))) % self._config.capacity
    for name, array in _fields(rollout).items():
      array, kept = np.asarray(array), self._rows[name]
      if array.shape[1:] != kept.shape[1:]:
        raise UserError(
          f'replay: {name} has rows of {array.shape[1:]}, those kept are of '
          f'{kept.shape[1:]}; give all trajectories the same lengths'
        )
      rows = valid // group_size if name in PROMPT_FEATURES else valid
      kept[places] = array[rows]
    self._added += len(valid)

  def draw(self) -> Rollout:
    """`rows` trajectories, each likely alike, as prompts of one sample.

    Raises:
      UserError: nothing was added yet.
    """
    if not len(self):
      raise UserError(
        'replay: no trajectory was valid yet, so there is nothing to learn '
        'from; look at rollout/share_valid and the reward terms'
      )
    generator = np.random.default_rng([self._config.seed, int(self._draws)])
    self._draws += 1
    chosen = generator.integers(len(self), size=self._config.rows)
    return Rollout(**{name: rows[chosen] for name, rows in self._rows.items()})

  def items(self) -> dict[str, np.ndarray]:
    """Arrays and counters; arrays without entries cannot be saved."""
    rows = {name: array for name, array in self._rows.items() if array.size}
    return {**rows, 'added': self._added, 'draws': self._draws}

  def restore(self, items: Mapping[str, np.ndarray]) -> None:
    """Takes back what `items` gave."""
    known = self._rows.keys() & items.keys()
    self._rows.update((name, items[name]) for name in known)
    self._added = np.int64(items['added'])
    self._draws = np.int64(items['draws'])


def _fields(rollout: Rollout) -> dict[str, np.ndarray | jax.Array]:
  names = (*PROMPT_FEATURES, *_SAMPLE_FIELDS)
  return {name: getattr(rollout, name) for name in names}
