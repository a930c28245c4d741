"""Texts for real ratings without a language model: the offline writer.

Everything is made from titles, genres, keywords, tags and overviews, and from
training ratings alone. The papers had a large language model write these
texts; here templates do, with an imperfect demonstrator: it mostly, not
always, praises what the user likes, and now and then claims what is not true.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from p4lm.data import rating_arrays, tables
from p4lm.data.attributes import (
  AffinityConfig,
  UserAffinity,
  build_attributes,
)
from p4lm.errors import UserError
from p4lm.writers import bullets, judged_texts, pitches
from p4lm.writers.films import Film, Films, describe_items
from p4lm.writers.pair_source import PairSource, split_of
from p4lm.writers.pitches import Manner
from p4lm.writers.sentence_encoder import LSAEncoder, SentenceEncoder

JUDGED_SPLITS = ('train', 'judge', 'validation')


@dataclasses.dataclass(frozen=True)
class TemplateConfig:
  """Sizes and manner of the texts.

  Attributes:
    num_pitches: rows of `texts`.
    num_pairs: rows of `pairs` of each kind.
    num_entailment: rows of `entailment`.
    num_relevance: rows of `relevance`.
    num_rl_prompts: rows of `rl_prompts`.
    pitch_validation_share: share of the pitches in the split 'validation'.
    label_noise: share of pairs whose judge prefers the worse text, as raters
      do. Without any, the pairs can be told apart without error, Bradley-Terry
      scores grow without bound, and so does what RL earns by them.
    split_shares: of users (pairs, relevance) and of items (entailment) in
      'train', 'judge' and 'validation'.
    min_rating: a pitch recommends a film that the user rated at least so.
    min_theme_items: a theme is used if so many films have it.
    max_attributes: genres and themes together.
    max_themes: themes listed in a film's description.
    max_overview_words: a longer overview is cut.
    demonstrator: manner of the pitches to learn from.
    text_writer: manner of the text-only writer.
    bullet_weight: how much the text-only writer prefers what the bullets name.
    affinity: how ratings become affinities.
  """

  num_pitches: int = 8000
  num_pairs: int = 6000
  num_entailment: int = 10_000
  num_relevance: int = 6000
  num_rl_prompts: int = 4000
  pitch_validation_share: float = 0.05
  label_noise: float = 0.1
  split_shares: tuple[float, float, float] = (0.6, 0.3, 0.1)
  min_rating: float = 3.5
  min_theme_items: int = 12
  max_attributes: int = 300
  max_themes: int = 4
  max_overview_words: int = 40
  demonstrator: Manner = Manner()
  text_writer: Manner = Manner(false_claim_rate=0.1)
  bullet_weight: float = 2.0
  affinity: AffinityConfig = AffinityConfig()

  def __post_init__(self):
    if min(self.split_shares) <= 0 or len(self.split_shares) != 3:
      raise UserError(
        f'split_shares={self.split_shares}: give three positive shares, for '
        f'{", ".join(JUDGED_SPLITS)}'
      )
    if not 0 <= self.label_noise < 0.5:
      raise UserError(
        f'label_noise={self.label_noise} must be in [0, 0.5): at a half, '
        'labels say nothing'
      )
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.name.startswith(('num_', 'max_')) and value < 1:
        raise UserError(f'{field.name}={value} must be at least 1')


class TemplateWriter:
  """Writes about the films of one release.

  Attributes:
    films: those with a plot and attributes.
    items: the `items` table with descriptions (genres, themes, overview) for
      plots: what models are shown and what entailment is judged by. The plot
      of an item that nothing can be written about is ''.
  Raises:
    UserError: no film has both a plot and attributes.
  """

  def __init__(
    self, items: pa.Table, config: TemplateConfig | None = None, seed: int = 0
  ):
    self._config, self._seed = config or TemplateConfig(), seed
    attributes = build_attributes(
      items,
      min_items=self._config.min_theme_items,
      max_attributes=self._config.max_attributes,
    )
    self.films = Films(
      items,
      attributes,
      max_themes=self._config.max_themes,
      max_overview_words=self._config.max_overview_words,
    )
    if not self.films.by_row:
      raise UserError(
        'no film has both a plot and a genre or theme: give a plots file with '
        'overviews of these films, or make the tables without texts'
      )
    self.items = describe_items(items, self.films)

  def build(
    self,
    train_ratings: pa.Table,
    evaluation_pairs: pa.Table,
    encoder: SentenceEncoder | None = None,
  ) -> dict[str, pa.Table]:
    """Every table of texts; see `build_text_tables`."""
    config, seed, films = self._config, self._seed, self.films
    ratings = rating_arrays.from_table(train_ratings)
    affinity_of = UserAffinity(ratings, films.attributes, config.affinity)
    users = bullets.users_table(ratings, films.attributes, affinity_of, seed)
    source = PairSource(
      ratings,
      films,
      evaluation_pairs,
      min_rating=config.min_rating,
      split_shares=config.split_shares,
      affinity_of=affinity_of,
      seed=seed,
    )
    encoder = encoder or LSAEncoder.fit(
      [film.description for film in films.by_row.values()], seed=seed
    )
    prompts = source.draw(config.num_rl_prompts, 'rl_prompts')
    return {
      'items': self.items,
      'users': users,
      'texts': _texts(source, config, seed),
      'pairs': _pairs(source, config, seed),
      'entailment': _entailment(films, config, seed),
      'relevance': _relevance(source, config, users, encoder, seed),
      'evaluation_pairs': _evaluation(
        films, users, evaluation_pairs, config, seed
      ),
      'rl_prompts': prompts.table(),
    }


def build_text_tables(
  items: pa.Table,
  train_ratings: pa.Table,
  evaluation_pairs: pa.Table,
  config: TemplateConfig | None = None,
  seed: int = 0,
  encoder: SentenceEncoder | None = None,
) -> dict[str, pa.Table]:
  """Writes every table of texts.

  Args:
    items: the `items` schema, overviews in `plot`.
    train_ratings: user_id, item_id, rating, timestamp of the train split.
    evaluation_pairs: user_id, item_id, held out: no other table is about them.
    config: sizes and manner.
    seed: other seeds give other texts.
    encoder: for the relevance targets; LSA fitted on the descriptions if None.
  Returns:
    users, texts, pairs, entailment, relevance, evaluation_pairs, rl_prompts,
    and `items` with descriptions for plots (see `TemplateWriter`).
  Raises:
    UserError: no film has a plot and attributes, too few ratings are left, or
      an evaluation pair's user or film cannot be written about.
  """
  writer = TemplateWriter(items, config, seed)
  return writer.build(train_ratings, evaluation_pairs, encoder)


def _texts(source: PairSource, config: TemplateConfig, seed: int) -> pa.Table:
  rng = random.Random(f'texts {seed}')
  drawn = source.draw(config.num_pitches, 'texts')
  texts = []
  for film, affinity in drawn:
    plan = pitches.draw_plan(
      source.films, film, affinity, config.demonstrator, rng
    )
    style = pitches.draw_style(config.demonstrator, rng)
    texts.append(pitches.render(plan, style, source.films.attributes.all))
  is_validation = rng.sample(
    range(len(texts)), round(config.pitch_validation_share * len(texts))
  )
  splits = np.full(len(texts), 'train', object)
  splits[is_validation] = 'validation'
  return drawn.table(
    kind=['pitch'] * len(texts), text=texts, split=splits.tolist()
  )


def _pairs(source: PairSource, config: TemplateConfig, seed: int) -> pa.Table:
  parts = []
  films = source.films
  for kind in ('appeal', 'personalization'):
    for split, count in _split_counts(config.num_pairs, config.split_shares):
      rng = random.Random(f'{kind} {split} {seed}')
      drawn = source.draw(count, kind, split)
      if kind == 'appeal':
        rows = [judged_texts.appeal_pair(films, *row, rng) for row in drawn]
      else:
        rows = [
          judged_texts.personalization_pair(films, *row, drawn.others, rng)
          for row in drawn
        ]
      rows = _with_noise(rows, config.label_noise, f'{kind} {split} {seed}')
      parts.append(
        drawn.table(
          kind=[kind] * len(rows),
          chosen=[chosen for chosen, _ in rows],
          rejected=[rejected for _, rejected in rows],
          split=[JUDGED_SPLITS[split]] * len(rows),
        )
      )
  return pa.concat_tables(parts)


def _with_noise(pairs, label_noise: float, seed: str):
  """The pairs, a share of them the wrong way round."""
  rng = random.Random(f'noise {seed}')
  return [pair[::-1] if rng.random() < label_noise else pair for pair in pairs]


def _entailment(films: Films, config: TemplateConfig, seed: int) -> pa.Table:
  rng = random.Random(f'entailment {seed}')
  every = list(films.by_row.values())
  splits = split_of([film.item_id for film in every], config.split_shares, seed)
  columns = {name: [] for name in tables.SCHEMAS['entailment'].names}
  for split, count in _split_counts(config.num_entailment, config.split_shares):
    own = [film for film, s in zip(every, splits) if s == split] or every
    order = rng.sample(own, len(own))
    for number in range(count):
      film, label = order[number % len(order)], rng.randrange(2)
      text = judged_texts.entailment_hypothesis(films, film, label, rng)
      row = (film.item_id, film.description, text, label, JUDGED_SPLITS[split])
      for column, value in zip(columns.values(), row):
        column.append(value)
  return pa.table(columns, schema=tables.SCHEMAS['entailment'])


def _relevance(source, config, users: pa.Table, encoder, seed) -> pa.Table:
  preferences = _preferences(users)
  parts = []
  for split, count in _split_counts(config.num_relevance, config.split_shares):
    rng = random.Random(f'relevance {split} {seed}')
    drawn = source.draw(count, 'relevance', split)
    texts = [
      judged_texts.relevance_text(source.films, *row, drawn.others, rng)
      for row in drawn
    ]
    targets = judged_texts.relevance_targets(
      encoder,
      texts,
      [preferences[user] for user in drawn.user_ids],
      [film.description for film in drawn.films],
    )
    split_name = [JUDGED_SPLITS[split]] * len(texts)
    parts.append(drawn.table(text=texts, target=targets, split=split_name))
  return pa.concat_tables(parts)


def _evaluation(films, users, pairs: pa.Table, config, seed) -> pa.Table:
  preferences = _preferences(users)
  user_ids = pairs['user_id'].to_pylist()
  item_ids = pairs['item_id'].to_pylist()
  written = []
  for user, row in zip(user_ids, films.attributes.rows(item_ids)):
    if user not in preferences or row not in films.by_row:
      raise UserError(
        f'evaluation pair ({user!r}, {films.attributes.item_ids[row]!r}): the '
        'user needs training ratings and the film a plot and a genre'
      )
    rng = random.Random(f'evaluation {seed} {user} {row}')
    written.append(
      write_from_texts(
        films, films.by_row[int(row)], preferences[user], config, rng
      )
    )
  return pa.table(
    {
      'user_id': user_ids,
      'item_id': item_ids,
      'preferences': [preferences[user] for user in user_ids],
      'writer_text': written,
    },
    schema=tables.SCHEMAS['evaluation_pairs'],
  )


def write_from_texts(
  films: Films,
  film: Film,
  preferences: Sequence[str],
  config: TemplateConfig,
  rng: random.Random,
) -> str:
  """A pitch by a writer that knows the plot and the bullets, no rating.

  It praises, softly, the film's attributes that the likes name and shuns
  those that the dislikes name; it opens with one of the likes.
  """
  attributes = films.attributes
  taste = np.zeros(len(attributes), np.float32)
  likes: list[int] = []
  for position, bullet in enumerate(preferences):
    liked = position < len(preferences) // 2
    named = attributes.find(bullet)
    taste[named] += config.bullet_weight if liked else -config.bullet_weight
    likes += named if liked else []
  plan = pitches.draw_plan(
    films, film, taste, config.text_writer, rng, openers=likes
  )
  style = pitches.draw_style(config.text_writer, rng)
  return pitches.render(plan, style, attributes.all)


def _preferences(users: pa.Table) -> dict[str, list[str]]:
  return dict(
    zip(users['user_id'].to_pylist(), users['preferences'].to_pylist())
  )


def _split_counts(count: int, shares) -> list[tuple[int, int]]:
  bounds = np.round(count * np.cumsum([0, *shares]) / sum(shares)).astype(int)
  return list(enumerate(np.diff(bounds).tolist()))
