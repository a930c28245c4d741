"""The latents of a reward of preference 'variational', beside its checkpoints.

    OUTPUT_DIR/latents.npz   users [U] and means float32 [U, d] of q(z | pairs)

They are of the pairs that the reward was trained on; a user without any has the
prior's mean, 0, and so the reward that is right for users on the whole.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from p4lm.data import loader
from p4lm.data.cache import CachedTask
from p4lm.data.judgements import TIE
from p4lm.errors import UserError
from p4lm.ops import variational

FILE = 'latents.npz'


def numbered(user_ids: Iterable[str]) -> dict[str, int]:
  """{user: number} in sorted order; no id is nobody and has no number."""
  return {user: row for row, user in enumerate(sorted({*user_ids} - {''}))}


def users_of_pairs(cached: CachedTask, split: str, converter) -> list[str]:
  """The user of every pair of a split, '' for none.

  Raises:
    UserError: no pair has one, so there is nobody to tell apart.
  """
  examples = loader.Examples(cached.directory, cached.tasks, split, converter)
  user_ids = examples.values('user_id')
  if not any(user_ids):
    raise UserError(
      "preference 'variational' learns a latent of each user, and none of "
      f'the {len(user_ids)} pairs of split {split!r} has a user_id: take pairs '
      "that have one, or PREFERENCE='bradley_terry'"
    )
  return user_ids


def posterior_means(
  batches: Iterable[Mapping[str, np.ndarray]],
  points_of: Callable[[Mapping, np.ndarray], np.ndarray],
  num_users: int,
  num_heads: int,
) -> np.ndarray:
  """Mean of every user's q(z | pairs), float32 [U, d].

  Args:
    batches: of `loader.iterate_once`, with `users`.
    points_of: (batch, response tokens [B, L]) -> heads [B, K].
    num_users: U.
    num_heads: K.
  """
  width = variational.latent_width(num_heads)
  sums = np.zeros((2, num_users, width))
  for batch in batches:
    users = batch['users']
    tells = batch['example_mask'] & (users >= 0) & (batch['labels'] != TIE)
    sides = (
      jnp.asarray(points_of(batch, batch[name]))
      for name in ('chosen_tokens', 'rejected_tokens')
    )
    found = variational.pair_evidence(*sides, pair_mask=jnp.asarray(tells))
    for total, each in zip(sums, found):
      np.add.at(total, users[tells], np.asarray(each)[tells])
  means, _ = variational.posterior(*map(jnp.asarray, sums.astype(np.float32)))
  return np.asarray(means)


def _rewards(points, latents) -> np.ndarray:
  return np.asarray(
    variational.latent_rewards(
      jnp.asarray(points), jnp.asarray(latents, jnp.float32)
    )
  )


class UserLatents:
  """Latents by user id.

  Args:
    user_ids: U ids.
    means: float32 [U, d].
  """

  def __init__(self, user_ids: Sequence[str], means: np.ndarray):
    self.user_ids, self.means = list(user_ids), means
    self._rows = {user: row for row, user in enumerate(self.user_ids)}

  def __call__(self, points: np.ndarray, user_ids: Sequence[str]) -> np.ndarray:
    """r(y, z) float32 [R] of points [R, K] for users by id."""
    rows = [self._rows.get(user, -1) for user in user_ids]
    return self.rewards(points, np.array(rows))

  def rewards(self, points: np.ndarray, users: np.ndarray) -> np.ndarray:
    """r(y, z) float32 [R] of points [R, K] for users by number, -1 unknown."""
    latents = np.where(users[:, None] >= 0, self.means[users], 0.0)
    return _rewards(points, latents)

  def save(self, directory: Path) -> None:
    """Writes the file whole."""
    content = io.BytesIO()
    users = np.array(self.user_ids, np.str_)
    np.savez(content, users=users, means=self.means)
    partial = directory / f'.{FILE}.partial'
    partial.write_bytes(content.getvalue())
    os.replace(partial, directory / FILE)

  @classmethod
  def load(cls, directory: str | os.PathLike) -> UserLatents:
    """Reads what `save` wrote.

    Raises:
      UserError: the file is missing (the training did not end) or damaged.
    """
    path = Path(directory) / FILE
    try:
      with np.load(path) as file:
        return cls(file['users'].tolist(), file['means'])
    except OSError as error:
      raise UserError(
        f'reward model {directory} has no {FILE}: its training has not ended; '
        'start its train_reward again, it goes on where it stopped'
      ) from error
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
      raise UserError(
        f'{path} is damaged ({error}); remove it and start its train_reward '
        'again'
      ) from error
