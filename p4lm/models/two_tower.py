"""The two-tower retrieval model: users and items as vectors of one space.

user --table--> [E] --layers--> x_u          s(u, i) = x_u.y_i / temperature
item --table--> [E] --layers--> y_i
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from p4lm.errors import UserError
from p4lm.models.layers import Dense, normal_parameter
from p4lm.ops.contrastive import unit_rows
from p4lm.typing import Array, Bool, Float, Int

UserTower = Literal['history', 'id']
# Rows of a table are split over devices, so their number is rounded up to one
# that every usual mesh divides. Nothing reads the rows added.
_ROWS_MULTIPLE = 64


@dataclasses.dataclass(frozen=True)
class TwoTowerConfig:
  """The shape of a two-tower model.

  Attributes:
    user_tower: what a user is known by. 'history': the mean of vectors of the
      user's items, a table apart from the item tower's (as in FISM, Kabbur et
      al. 2013, and YouTube's candidate generator, Covington et al. 2016), which
      embeds users whom no training saw. 'id': a vector of the user's own.
    hidden_widths: of the ReLU layers that follow each table; one more layer
      leads back to E. Empty for none at all.
    normalize: divide both towers' outputs by their norms, so that s is a cosine
      over the temperature.
    temperature: above 0.
    init_norm: expected norm of a fresh table's rows.
  """

  user_tower: UserTower = 'history'
  hidden_widths: tuple[int, ...] = ()
  normalize: bool = True
  temperature: float = 0.1
  init_norm: float = 1.0

  def __post_init__(self):
    object.__setattr__(self, 'hidden_widths', tuple(self.hidden_widths))
    if self.user_tower not in get_args(UserTower):
      raise UserError(
        f'user_tower is {self.user_tower!r}; choose one of '
        f'{", ".join(get_args(UserTower))}'
      )
    if any(width < 1 for width in self.hidden_widths):
      raise UserError(
        f'hidden_widths are {self.hidden_widths}; each must be at least 1'
      )
    for name in ('temperature', 'init_norm'):
      if not 0 < getattr(self, name) < float('inf'):
        raise UserError(
          f'{name} is {getattr(self, name)}; it must be positive and finite'
        )


class Tower(nnx.Module):
  """A table of vectors and the layers that follow it."""

  def __init__(
    self,
    config: TwoTowerConfig,
    axis: str,
    num_rows: int,
    width: int,
    *,
    rngs: nnx.Rngs,
  ):
    """Draws the table and the layers.

    Args:
      config: see TwoTowerConfig.
      axis: logical name of the rows, 'users' or 'items'.
      num_rows: rows that are read.
      width: E.
      rngs: gives the `params` stream.
    """
    rows = -(-num_rows // _ROWS_MULTIPLE) * _ROWS_MULTIPLE
    self.table = normal_parameter(
      rngs, {axis: rows, 'cf_embed': width}, config.init_norm * width**-0.5
    )
    self.normalize = config.normalize
    self.layers = nnx.List()
    outputs = [{'mlp': hidden} for hidden in config.hidden_widths]
    inputs = {'cf_embed': width}
    for output in [*outputs, {'cf_embed': width}] if outputs else []:
      (fan_in,) = inputs.values()
      # ReLU halves the second moment of what follows it.
      gain = 2.0 if 'mlp' in inputs else 1.0
      stddev = (gain / fan_in) ** 0.5
      self.layers.append(
        Dense(inputs, output, rngs=rngs, stddev=stddev, use_bias=True)
      )
      inputs = output

  def __call__(self, rows: Int[Array, ' B']) -> Float[Array, 'B E']:
    """The outputs of rows of the table."""
    return self._finish(self.table[...][rows])

  def mean(
    self, rows: Int[Array, 'B H'], mask: Bool[Array, 'B H']
  ) -> Float[Array, 'B E']:
    """The output of each mean over the rows that the mask keeps.

    The mean over no row is the zero vector.
    """
    vectors = jnp.where(mask[..., None], self.table[...][rows], 0.0)
    counts = jnp.maximum(mask.sum(axis=1), 1).astype(vectors.dtype)
    return self._finish(vectors.sum(axis=1) / counts[:, None])

  def _finish(self, x: Float[Array, 'B E']) -> Float[Array, 'B E']:
    for index, layer in enumerate(self.layers):
      x = layer(jax.nn.relu(x) if index else x)
    return unit_rows(x) if self.normalize else x


class TwoTower(nnx.Module):
  """A tower of users, one of items, and their scores."""

  def __init__(
    self,
    config: TwoTowerConfig,
    width: int,
    num_users: int,
    num_items: int,
    *,
    rngs: nnx.Rngs,
  ):
    """Draws both towers.

    Args:
      config: see TwoTowerConfig.
      width: E of both outputs.
      num_users, num_items: U and I.
      rngs: gives the `params` stream.
    """
    by_history = config.user_tower == 'history'
    rows = ('items', num_items) if by_history else ('users', num_users)
    self.user_tower = Tower(config, *rows, width, rngs=rngs)
    self.item_tower = Tower(config, 'items', num_items, width, rngs=rngs)
    self.temperature = config.temperature

  def users(self, batch: Mapping[str, Array]) -> Float[Array, 'B E']:
    """x_u of each example.

    Args:
      batch: `history_rows` int [B, H] and `history_mask` bool [B, H] for the
        tower of histories, `user_rows` int [B] for that of ids.
    """
    if 'history_rows' in batch:
      return self.user_tower.mean(batch['history_rows'], batch['history_mask'])
    return self.user_tower(batch['user_rows'])

  def items(self, rows: Int[Array, ' C']) -> Float[Array, 'C E']:
    """y_i of items."""
    return self.item_tower(rows)

  def __call__(
    self, batch: Mapping[str, Array], item_rows: Int[Array, ' C']
  ) -> Float[Array, 'B C']:
    """s of each example with each candidate item."""
    scores = self.users(batch) @ self.items(item_rows).T
    return scores / self.temperature
