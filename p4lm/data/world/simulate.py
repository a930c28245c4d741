"""Items with attributes and users with tastes, drawn from one seed."""

import dataclasses

import numpy as np

from p4lm.data.world import lexicon, plots
from p4lm.data.world.config import MAX_CANDIDATES, WorldConfig

# Independent random streams: default_rng([seed, stream, ...]).
ITEMS, TASTES, POPULARITY, RATINGS, TAGS, BULLETS, TEXTS = range(7)

NUM_BULLETS = 5


@dataclasses.dataclass(frozen=True)
class World:
  """The truth behind the data. I items, A archive items, U users, V values.

  Ids are decimal strings, 1 + index: user '1' is row 0 of `tastes`. Items
  I..I+A-1 are the archive: they have plots and no ratings.

  Attributes:
    config: what the world was made from.
    attributes: int16 [I+A, facets], value ids, the true ones.
    distractors: int16 [I+A], the value id that the plot mentions and denies,
      or -1.
    plausibility: float64 [genres, V], within a facet the distribution of its
      values given the genre.
    titles: list [I+A], 'The Silent Anchor (1987)'.
    years: int16 [I+A].
    plots: list [I+A].
    tastes: float32 [U, V], standardised: mean 0 and variance 1 over a user's
      values, and mean 0 over the users of a value, so that no value pleases
      everybody and a text for a random user scores 0.
    preferences: int8 [U, V], +1 for the five values a user likes best, -1 for
      the five liked least, else 0: what the ten bullets say.
    user_generosity: float32 [U], stars.
    item_quality: float32 [I], stars.
    popularity: float64 [I], probabilities.
    rating_counts: int32 [U], ratings of each user.
  """

  config: WorldConfig
  attributes: np.ndarray
  distractors: np.ndarray
  plausibility: np.ndarray
  titles: list[str]
  years: np.ndarray
  plots: list[str]
  tastes: np.ndarray
  preferences: np.ndarray
  user_generosity: np.ndarray
  item_quality: np.ndarray
  popularity: np.ndarray
  rating_counts: np.ndarray

  @property
  def num_users(self) -> int:
    return self.config.num_users

  @property
  def num_items(self) -> int:
    """Items of the catalogue; the archive's plots come after them."""
    return self.config.num_items

  def attribute_indicators(self) -> np.ndarray:
    """float32 [I, V], 1 where a catalogue item has a value."""
    indicators = np.zeros((self.num_items, lexicon.NUM_VALUES), np.float32)
    rows = np.arange(self.num_items)[:, None]
    indicators[rows, self.attributes[: self.num_items]] = 1
    return indicators

  def bullets(self, user: int) -> list[str]:
    """Ten preference bullets: five likes, five dislikes, strongest first."""
    rng = np.random.default_rng([self.config.seed, BULLETS, user])
    order = np.argsort(-self.tastes[user], kind='stable')
    return plots.render_bullets(
      order[:NUM_BULLETS], order[: -NUM_BULLETS - 1 : -1], rng
    )


def build_world(config: WorldConfig) -> World:
  """Draws a world; the same config gives the same world, array by array."""
  rng = np.random.default_rng([config.seed, ITEMS])
  plausibility = _draw_plausibility(rng)
  attributes = _draw_attributes(config, plausibility, rng)
  distractors = _draw_distractors(config, attributes, plausibility, rng)
  titles, years = plots.draw_titles(len(attributes), rng)
  written = [
    plots.render_plot(values, distractor, rng)
    for values, distractor in zip(attributes, distractors)
  ]
  tastes, generosity = _draw_tastes(config)
  quality, popularity, counts = _draw_popularity(config)
  return World(
    config=config,
    attributes=attributes,
    distractors=distractors,
    plausibility=plausibility,
    titles=titles,
    years=years,
    plots=written,
    tastes=tastes,
    preferences=signed_preferences(tastes),
    user_generosity=generosity,
    item_quality=quality,
    popularity=popularity,
    rating_counts=counts,
  )


def facet_slice(facet: int) -> slice:
  """Where the values of a facet lie among all values."""
  start = lexicon.VALUE_OFFSETS[facet]
  return slice(start, start + lexicon.FACET_SIZES[facet])


def signed_preferences(tastes: np.ndarray) -> np.ndarray:
  """int8 [U, V]: +1 for the five largest tastes of a row, -1 for the least."""
  order = np.argsort(-tastes, axis=1, kind='stable')
  signs = np.zeros(tastes.shape, np.int8)
  np.put_along_axis(signs, order[:, :NUM_BULLETS], 1, axis=1)
  np.put_along_axis(signs, order[:, -NUM_BULLETS:], -1, axis=1)
  return signs


def _draw_plausibility(rng: np.random.Generator) -> np.ndarray:
  """Half of a genre's items share three likely values of each other facet."""
  num_genres = lexicon.FACET_SIZES[0]
  table = np.zeros((num_genres, lexicon.NUM_VALUES))
  table[:, facet_slice(0)] = 1 / num_genres
  for facet in range(1, lexicon.NUM_FACETS):
    size = lexicon.FACET_SIZES[facet]
    for genre in range(num_genres):
      row = np.full(size, 0.5 / size)
      row[rng.choice(size, 3, replace=False)] += 0.5 / 3
      table[genre, facet_slice(facet)] = row
  return table


def _draw_categorical(table: np.ndarray, rng) -> np.ndarray:
  """One column index a row of unnormalised probabilities [N, K]."""
  cumulative = np.cumsum(table, axis=1)
  points = rng.random(len(table)) * cumulative[:, -1]
  drawn = (points[:, None] >= cumulative).sum(axis=1)
  return np.minimum(drawn, table.shape[1] - 1)


def _draw_attributes(config, plausibility, rng) -> np.ndarray:
  num = config.num_items + config.num_archive_items
  genres = rng.integers(lexicon.FACET_SIZES[0], size=num)
  attributes = np.zeros((num, lexicon.NUM_FACETS), np.int16)
  attributes[:, 0] = genres
  for facet in range(1, lexicon.NUM_FACETS):
    table = plausibility[genres][:, facet_slice(facet)].copy()
    if facet == lexicon.RIVAL:
      # The rival is never of the hero's profession: swapped roles are false.
      hero = attributes[:, lexicon.HERO] - lexicon.VALUE_OFFSETS[lexicon.HERO]
      table[np.arange(num), hero] = 0
    attributes[:, facet] = lexicon.VALUE_OFFSETS[facet] + _draw_categorical(
      table, rng
    )
  return attributes


def _draw_distractors(config, attributes, plausibility, rng) -> np.ndarray:
  """A plausible value of a random facet that the item does not have."""
  num = len(attributes)
  facets = rng.integers(lexicon.NUM_FACETS, size=num)
  genres = attributes[:, 0]
  distractors = np.full(num, -1, np.int16)
  for facet in range(lexicon.NUM_FACETS):
    rows = np.flatnonzero(facets == facet)
    table = plausibility[genres[rows]][:, facet_slice(facet)].copy()
    own = attributes[rows, facet] - lexicon.VALUE_OFFSETS[facet]
    table[np.arange(len(rows)), own] = 0
    if facet in (lexicon.HERO, lexicon.RIVAL):
      other = lexicon.HERO + lexicon.RIVAL - facet
      own = attributes[rows, other] - lexicon.VALUE_OFFSETS[other]
      table[np.arange(len(rows)), own] = 0
    distractors[rows] = lexicon.VALUE_OFFSETS[facet] + _draw_categorical(
      table, rng
    )
  distractors[rng.random(num) >= config.distractor_rate] = -1
  return distractors


def _draw_tastes(config) -> tuple[np.ndarray, np.ndarray]:
  """Standardised tastes [U, V] and generosity [U].

  Personas plus a rank-4 individual part plus a small unstructured part: low
  rank enough for matrix factorization to recover most of it.
  """
  rng = np.random.default_rng([config.seed, TASTES])
  rank = 4
  personas = rng.standard_normal((config.num_personas, lexicon.NUM_VALUES))
  directions = rng.standard_normal((rank, lexicon.NUM_VALUES)) / np.sqrt(rank)
  weights = rng.dirichlet(
    np.full(config.num_personas, config.persona_concentration),
    size=config.num_users,
  )
  tastes = weights @ personas
  tastes += (
    config.individual_taste
    * rng.standard_normal((config.num_users, rank))
    @ directions
  )
  tastes += config.residual_taste * rng.standard_normal(tastes.shape)
  # Alternating projections converge fast; the last one makes users exact.
  for _ in range(30):
    tastes -= tastes.mean(axis=0)
    tastes -= tastes.mean(axis=1, keepdims=True)
    tastes /= tastes.std(axis=1, keepdims=True)
  generosity = config.user_deviation * rng.standard_normal(config.num_users)
  return tastes.astype(np.float32), generosity.astype(np.float32)


def _draw_popularity(config) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Item quality [I], popularity [I] and ratings a user [U]."""
  rng = np.random.default_rng([config.seed, POPULARITY])
  quality = rng.standard_normal(config.num_items)
  # Good items tend to be popular: rank by quality plus as much noise.
  rank = np.argsort(np.argsort(-quality - rng.standard_normal(quality.shape)))
  popularity = (1.0 + rank) ** -config.popularity_exponent
  popularity /= popularity.sum()
  quality = (config.quality_deviation * quality).astype(np.float32)
  return quality, popularity, _draw_rating_counts(config, rng)


def _draw_rating_counts(config, rng) -> np.ndarray:
  """Log-normal counts within [mean / 3, items / 2] of the exact total."""
  mean = config.num_ratings / config.num_users
  most = min(config.num_items, MAX_CANDIDATES) // 2
  least = max(1, int(min(20, mean / 3)))
  weights = rng.lognormal(0.0, 0.7, config.num_users)
  low, high = 0.0, float(config.num_ratings)
  for _ in range(60):
    scale = (low + high) / 2
    total = np.clip(np.round(scale * weights), least, most).sum()
    low, high = (scale, high) if total < config.num_ratings else (low, scale)
  counts = np.clip(np.round(high * weights), least, most).astype(np.int32)
  while (missing := config.num_ratings - int(counts.sum())) != 0:
    step = 1 if missing > 0 else -1
    room = counts < most if step > 0 else counts > least
    users = rng.permutation(np.flatnonzero(room))[: abs(missing)]
    counts[users] += step
  return counts
