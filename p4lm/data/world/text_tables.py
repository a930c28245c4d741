"""The tables of texts made from a world and its training ratings."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from p4lm.data.world import labels
from p4lm.data.world.config import WorldConfig
from p4lm.data.world.gold import GoldScorer
from p4lm.data.world.pitches import demonstrator, text_only_writer
from p4lm.data.world.simulate import TEXTS, World
from p4lm.errors import UserError

SPLITS = ('train', 'judge', 'validation')


def build_text_tables(
  world: World,
  train_ratings: pa.Table,
  evaluation_pairs: pa.Table,
  config: WorldConfig | None = None,
) -> dict[str, pa.Table]:
  """Every table whose texts the world writes.

  (user, item) pairs come from the training ratings, never from the evaluation
  pairs; where more unique pairs are wanted than there are, unrated ones fill
  up. Users (pairs, relevance) and items (entailment) belong to one split each.

  Args:
    world: the truth.
    train_ratings: columns user_id, item_id (others are ignored).
    evaluation_pairs: columns user_id, item_id: held out from all else.
    config: sizes and noise of the tables; the world's own if None.
  Returns:
    the tables users, texts, pairs, entailment, relevance, evaluation_pairs and
    rl_prompts.
  Raises:
    UserError: an id is not of this world, or no training rating is left.
  """
  config = config or world.config
  scorer = GoldScorer.of_world(world)
  source = _PairSource(world, train_ratings, evaluation_pairs)
  shares = config.split_shares
  user_split = _assign_splits(world.num_users, shares, _stream(config, 0))
  # The archive's plots take the same shares as the catalogue's.
  item_split = np.concatenate(
    [
      _assign_splits(world.num_items, shares, _stream(config, 1)),
      _assign_splits(config.num_archive_items, shares, _stream(config, 2)),
    ]
  )
  relevance = _relevance_table(world, config, scorer, source, user_split)
  return {
    'users': _users_table(world, train_ratings),
    'texts': _texts_table(world, config, source),
    'pairs': _pairs_table(world, config, scorer, source, user_split),
    'entailment': _entailment_table(world, config, scorer, item_split),
    'relevance': relevance,
    'evaluation_pairs': _evaluation_table(world, config, evaluation_pairs),
    'rl_prompts': _prompts_table(config, source),
  }


class _PairSource:
  """Draws (user, item) index pairs that are not held out."""

  def __init__(self, world: World, train_ratings, evaluation_pairs):
    self._num_users, self._num_items = world.num_users, world.num_items
    held_out = self._codes(evaluation_pairs, 'evaluation_pairs')
    codes = np.unique(self._codes(train_ratings, 'train_ratings'))
    self._held_out = held_out
    self._codes_train = np.setdiff1d(codes, held_out, assume_unique=False)
    if not len(self._codes_train):
      raise UserError(
        f'build_text_tables: none of the {len(codes)} (user, item) pairs of '
        'train_ratings is outside evaluation_pairs; give more ratings.'
      )

  def draw(self, num: int, rng, keep_users: np.ndarray | None = None):
    """`num` rated pairs, as few repeats as can be; users [num], items [num].

    Args:
      num: rows wanted.
      rng: consumed.
      keep_users: bool [U], only these users if given.
    """
    codes = self._codes_train
    if keep_users is not None:
      codes = codes[keep_users[codes // self._num_items]]
    if not len(codes):
      raise UserError(
        'build_text_tables: a split has users but none of them has a training '
        'rating; give more users or more ratings.'
      )
    rounds = [rng.permutation(codes) for _ in range(-(-num // len(codes)))]
    return np.divmod(np.concatenate(rounds)[:num], self._num_items)

  def draw_unique(self, num: int, rng):
    """`num` different pairs: rated ones first, then unrated ones."""
    codes = rng.permutation(self._codes_train)[:num]
    most = self._num_users * self._num_items - len(self._held_out)
    if num > most:
      raise UserError(
        f'build_text_tables: {num} different (user, item) pairs are wanted, '
        f'the world has {most}; lower num_pitches or num_rl_prompts.'
      )
    while len(codes) < num:
      missing = num - len(codes)
      more = rng.integers(self._num_users * self._num_items, size=2 * missing)
      more = np.setdiff1d(more, np.union1d(codes, self._held_out))
      codes = np.concatenate([codes, rng.permutation(more)[:missing]])
    return np.divmod(codes, self._num_items)

  def _codes(self, table: pa.Table, name: str) -> np.ndarray:
    """int64 [N], one number a pair: user index * items + item index."""
    users = _indices(table, 'user_id', self._num_users, name)
    items = _indices(table, 'item_id', self._num_items, name)
    return users * self._num_items + items


def _indices(table: pa.Table, column: str, size: int, name: str) -> np.ndarray:
  """Row indices of the ids '1' ... 'size' of a column."""
  try:
    ids = pc.cast(table.column(column), pa.int64()).to_numpy()
  except (pa.ArrowInvalid, KeyError) as error:
    raise UserError(
      f'build_text_tables: column {column} of {name} does not hold the ids of '
      f'this world ({error}).'
    ) from error
  if len(ids) and not (1 <= ids.min() and ids.max() <= size):
    raise UserError(
      f'build_text_tables: {name} has {column} from {ids.min()} to '
      f'{ids.max()}; this world has 1 to {size}. Use one config for both.'
    )
  return ids - 1


def _stream(config: WorldConfig, part: int) -> np.random.Generator:
  return np.random.default_rng([config.seed, TEXTS, part])


def _assign_splits(num: int, shares, rng) -> np.ndarray:
  """int [num]: the split of each user or item, shares rounded."""
  bounds = np.round(np.cumsum(shares)[:-1] * num).astype(int)
  splits = np.searchsorted(bounds, np.arange(num), side='right')
  return rng.permutation(splits)


def _split_sizes(num: int, shares) -> list[int]:
  bounds = np.round(np.concatenate([[0], np.cumsum(shares)]) * num)
  return np.diff(bounds).astype(int).tolist()


def _users_table(world: World, train_ratings: pa.Table) -> pa.Table:
  users = _indices(train_ratings, 'user_id', world.num_users, 'train_ratings')
  counts = np.bincount(users, minlength=world.num_users)
  return pa.table(
    {
      'user_id': labels.ids_of(np.arange(world.num_users)),
      'preferences': [world.bullets(user) for user in range(world.num_users)],
      'num_train_ratings': pa.array(counts, pa.int32()),
    }
  )


def _texts_table(world: World, config, source: _PairSource) -> pa.Table:
  rng = _stream(config, 3)
  users, items = source.draw_unique(config.num_pitches, rng)
  writer = demonstrator(world)
  texts = [writer.write(user, item, rng) for user, item in zip(users, items)]
  num_validation = round(config.pitch_validation_share * len(texts))
  splits = ['train'] * (len(texts) - num_validation)
  return pa.table(
    {
      'kind': ['pitch'] * len(texts),
      'user_id': labels.ids_of(users),
      'item_id': labels.ids_of(items),
      'text': texts,
      'split': splits + ['validation'] * num_validation,
    }
  )


def _pairs_table(world, config, scorer, source, user_split) -> pa.Table:
  parts = []
  for part, kind in enumerate(('appeal', 'personalization')):
    sizes = _split_sizes(config.num_pairs, config.split_shares)
    for split, (name, size) in enumerate(zip(SPLITS, sizes)):
      rng = _stream(config, 10 + 3 * part + split)
      users, items = source.draw(size, rng, user_split == split)
      pairs = labels.label_pairs(world, scorer, kind, users, items, rng)
      parts.append(
        pa.table(
          {
            'kind': [kind] * size,
            'user_id': labels.ids_of(users),
            'item_id': labels.ids_of(items),
            'chosen': pairs.chosen,
            'rejected': pairs.rejected,
            'split': [name] * size,
          }
        )
      )
  return pa.concat_tables(parts)


def _relevance_table(world, config, scorer, source, user_split) -> pa.Table:
  parts = []
  sizes = _split_sizes(config.num_relevance, config.split_shares)
  for split, (name, size) in enumerate(zip(SPLITS, sizes)):
    rng = _stream(config, 20 + split)
    users, items = source.draw(size, rng, user_split == split)
    texts, targets = labels.label_relevance(world, scorer, users, items, rng)
    parts.append(
      pa.table(
        {
          'user_id': labels.ids_of(users),
          'item_id': labels.ids_of(items),
          'text': texts,
          'target': pa.array(targets, pa.float32()),
          'split': [name] * size,
        }
      )
    )
  return pa.concat_tables(parts)


def _entailment_table(world, config, scorer, item_split) -> pa.Table:
  parts = []
  sizes = _split_sizes(config.num_entailment, config.split_shares)
  for split, (name, size) in enumerate(zip(SPLITS, sizes)):
    rng = _stream(config, 30 + split)
    members = np.flatnonzero(item_split == split)
    rounds = [rng.permutation(members) for _ in range(-(-size // len(members)))]
    items = np.concatenate(rounds)[:size]
    hypotheses, truth = labels.label_entailment(world, scorer, items, rng)
    parts.append(
      pa.table(
        {
          'item_id': labels.ids_of(items),
          'premise': [world.plots[item] for item in items],
          'hypothesis': hypotheses,
          'label': pa.array(truth, pa.int32()),
          'split': [name] * size,
        }
      )
    )
  return pa.concat_tables(parts)


def _evaluation_table(world, config, evaluation_pairs) -> pa.Table:
  rng = _stream(config, 4)
  name = 'evaluation_pairs'
  users = _indices(evaluation_pairs, 'user_id', world.num_users, name)
  items = _indices(evaluation_pairs, 'item_id', world.num_items, name)
  writer = text_only_writer(world)
  texts = [writer.write(user, item, rng) for user, item in zip(users, items)]
  return pa.table(
    {
      'user_id': labels.ids_of(users),
      'item_id': labels.ids_of(items),
      'preferences': pa.array(
        [world.bullets(user) for user in users], pa.list_(pa.string())
      ),
      'writer_text': pa.array(texts, pa.string()),
    }
  )


def _prompts_table(config, source: _PairSource) -> pa.Table:
  users, items = source.draw_unique(config.num_rl_prompts, _stream(config, 5))
  return pa.table(
    {'user_id': labels.ids_of(users), 'item_id': labels.ids_of(items)}
  )
