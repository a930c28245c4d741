"""Who rates what and how many stars, streamed in chunks of users."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from p4lm.data.world import lexicon
from p4lm.data.world.config import MAX_CANDIDATES
from p4lm.data.world.simulate import RATINGS, World

USERS_PER_CHUNK = 256
# Users rate what they tend to like: the mean of the stars comes out near 3.5.
MEAN_STARS = 3.2


@dataclasses.dataclass(frozen=True)
class RatingsChunk:
  """All ratings of some consecutive users, N rows, by user and then by time.

  Attributes:
    users: int32 [N], indices.
    items: int32 [N], indices; no (user, item) pair occurs twice.
    stars: float32 [N], 0.5, 1.0, ..., 5.0.
    timestamps: int64 [N], seconds, strictly increasing within a user.
  """

  users: np.ndarray
  items: np.ndarray
  stars: np.ndarray
  timestamps: np.ndarray


def stream_ratings(world: World) -> Iterator[RatingsChunk]:
  r"""Draws every rating of the world in bounded memory.

  A user rates the items with the largest
      log popularity_i + taste_selection * utility_ui + Gumbel noise,
      utility_ui = taste_u . attributes_i / sqrt(number of facets),
  that is, items drawn without replacement in proportion to the exponential of
  the first two terms. Catalogues of more than 4096 items offer each chunk of
  users a random 4096 of them. The stars are
      3.2 + generosity_u + quality_i + taste_weight * utility_ui + noise
  rounded to half stars and clipped to [0.5, 5].
  """
  indicators = world.attribute_indicators()
  for chunk, start in enumerate(range(0, world.num_users, USERS_PER_CHUNK)):
    rng = np.random.default_rng([world.config.seed, RATINGS, chunk])
    users = np.arange(start, min(start + USERS_PER_CHUNK, world.num_users))
    yield _draw_chunk(world, users, indicators, rng)


def _draw_chunk(world, users, indicators, rng) -> RatingsChunk:
  config = world.config
  candidates = np.arange(world.num_items)
  if world.num_items > MAX_CANDIDATES:
    candidates = rng.choice(world.num_items, MAX_CANDIDATES, replace=False)
  utility = world.tastes[users] @ indicators[candidates].T
  utility /= np.float32(np.sqrt(lexicon.NUM_FACETS))
  scores = config.taste_selection * utility
  scores += np.log(world.popularity[candidates]).astype(np.float32)
  noise = rng.random(scores.shape, dtype=np.float32)
  scores -= np.log(-np.log(np.maximum(noise, 1e-12)))
  counts = world.rating_counts[users]
  columns = np.argsort(-scores, axis=1)[:, : counts.max()]
  taken = np.arange(columns.shape[1]) < counts[:, None]
  rows = np.nonzero(taken)[0]
  columns = columns[taken]
  items = candidates[columns]
  stars = (
    MEAN_STARS
    + world.user_generosity[users][rows]
    + world.item_quality[items]
    + config.taste_weight * utility[rows, columns]
    + config.rating_noise * rng.standard_normal(len(rows), dtype=np.float32)
  )
  return RatingsChunk(
    users=users[rows].astype(np.int32),
    items=items.astype(np.int32),
    stars=np.clip(np.round(2 * stars) / 2, 0.5, 5.0).astype(np.float32),
    timestamps=_draw_timestamps(taken, rng)[taken],
  )


def _draw_timestamps(taken: np.ndarray, rng) -> np.ndarray:
  """int64 [users, most], seconds: a random start, then gaps of minutes."""
  starts = rng.integers(1_000_000_000, 1_400_000_000, size=(len(taken), 1))
  gaps = rng.integers(1, 7200, size=taken.shape)
  return starts + np.cumsum(gaps, axis=1)
