"""Films as the template writer sees them."""

from __future__ import annotations

import collections
import dataclasses
import random
from collections.abc import Collection

import pyarrow as pa

from p4lm.data.attributes import Attributes
from p4lm.data.prompts import clean_text, shorten
from p4lm.writers import sentences


@dataclasses.dataclass(frozen=True)
class Film:
  """One film with a plot.

  Attributes:
    row: in the items table.
    item_id: its id.
    attributes: those that its description lists: genres, then themes.
    all_attributes: those and further themes that are not listed.
    clauses: clauses of its overview, short enough for a pitch.
    description: genres, themes, overview: what a reader is shown.
    decade: '1990s', or '' when the year is unknown.
  """

  row: int
  item_id: str
  attributes: tuple[int, ...]
  all_attributes: frozenset[int]
  clauses: tuple[str, ...]
  description: str
  decade: str


class Films:
  """The films with a plot and at least one attribute, and their neighbours.

  Attributes:
    attributes: of all items.
    genres: the attributes that are genres.
    by_row: {row of the items table: film}.
  """

  def __init__(
    self,
    items: pa.Table,
    attributes: Attributes,
    *,
    max_themes: int,
    max_overview_words: int,
  ):
    self.attributes = attributes
    self.genres = [k for k, a in enumerate(attributes.all) if a.is_genre]
    self.by_row: dict[int, Film] = {}
    self._sharing: dict[int, list[int]] = collections.defaultdict(list)
    columns = (items['item_id'], items['year'], items['plot'])
    for row, (item_id, year, plot) in enumerate(
      zip(*(column.to_pylist() for column in columns))
    ):
      whole = clean_text(plot)
      overview = shorten(whole, max_overview_words)
      own = attributes.of(item_id).tolist()
      if not overview or not own:
        continue
      listed = _listed(own, attributes, max_themes)
      self.by_row[row] = Film(
        row,
        item_id,
        tuple(listed),
        frozenset(own),
        _clauses(whole, overview),
        describe(listed, overview, attributes),
        f'{year // 10 * 10}s' if year else '',
      )
      for k in listed:
        self._sharing[k].append(row)

  def neighbour(self, film: Film, rng: random.Random) -> Film:
    """Another film that shares a genre (or theme); itself if there is none."""
    for _ in range(8):
      shared = rng.choice(film.attributes[:2])
      other = self.by_row[rng.choice(self._sharing[shared])]
      if other.row != film.row:
        return other
    return film

  def false_attribute(
    self, film: Film, rng: random.Random, besides: Collection[int] = ()
  ) -> int:
    """An attribute of a similar film that this one does not have."""
    for _ in range(8):
      other = self.neighbour(film, rng)
      false = [
        k
        for k in other.attributes
        if k not in film.all_attributes and k not in besides
      ]
      if false:
        return rng.choice(false)
    every = range(len(self.attributes))
    false = [
      k for k in every if k not in film.all_attributes and k not in besides
    ]
    return rng.choice(false or list(every))


def describe(listed, overview: str, attributes: Attributes) -> str:
  """'Genres: crime, thriller. Themes: heist. ' and the overview.

  Claims about genres and themes can so be checked by whoever reads the plot.
  """
  parts = []
  for head, is_genre in (('Genres', True), ('Themes', False)):
    labels = [
      attributes.all[k].label
      for k in listed
      if attributes.all[k].is_genre == is_genre
    ]
    if labels:
      parts.append(f'{head}: {", ".join(labels)}.')
  return ' '.join([*parts, overview])


def describe_items(items: pa.Table, films: Films) -> pa.Table:
  """The items table with descriptions for plots; '' where there is no film."""
  plots = [
    films.by_row[row].description if row in films.by_row else ''
    for row in range(len(items))
  ]
  position = items.column_names.index('plot')
  return items.set_column(position, 'plot', pa.array(plots, pa.string()))


def _clauses(whole: str, overview: str) -> tuple[str, ...]:
  """Clauses of the whole text that its beginning `overview` holds."""
  return tuple(
    clause
    for clause in sentences.clauses(whole)
    if clause.rstrip('.!?') in overview
  )


def _listed(own, attributes: Attributes, max_themes: int) -> list[int]:
  # Attributes are in order of frequency: a reader knows the frequent ones.
  genres = [k for k in own if attributes.all[k].is_genre]
  themes = [k for k in own if not attributes.all[k].is_genre]
  return genres + themes[:max_themes]
