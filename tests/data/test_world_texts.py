"""Writers and labels of the world: rates, sharpness, splits, no leaks."""

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from p4lm.data.world import (
  GoldScorer,
  WorldConfig,
  build_text_tables,
  build_world,
  lexicon,
)
from p4lm.data.world.gold import world_parser
from p4lm.data.world.judged_texts import ODDITIES, JudgedTextWriter, degrade
from p4lm.data.world.pitches import (
  demonstrator,
  false_value_probabilities,
  text_only_writer,
)
from p4lm.data.world.ratings import stream_ratings
from p4lm.errors import UserError


def _ids(indices):
  return [str(index + 1) for index in indices]


def _pair_table(users, items):
  return pa.table({'user_id': _ids(users), 'item_id': _ids(items)})


@pytest.fixture(scope='module')
def world():
  return build_world(WorldConfig())


@pytest.fixture(scope='module')
def scorer(world):
  return GoldScorer.of_world(world)


@pytest.fixture(scope='module')
def splits(world):
  """Training ratings and evaluation pairs as make_data would draw them."""
  chunks = list(stream_ratings(world))
  users = np.concatenate([chunk.users for chunk in chunks])
  items = np.concatenate([chunk.items for chunk in chunks])
  stars = np.concatenate([chunk.stars for chunk in chunks])
  rng = np.random.default_rng(0)
  train = rng.random(len(users)) < 0.7
  liked = rng.permutation(np.flatnonzero(~train & (stars >= 4)))[:200]
  return (
    _pair_table(users[train], items[train]),
    _pair_table(users[liked], items[liked]),
  )


@pytest.fixture(scope='module')
def tables(world, splits):
  return build_text_tables(world, *splits)


def test_demonstrators_false_claims_are_as_rare_as_said(world, tables):
  texts = tables['texts'].to_pydict()
  parser = world_parser()
  num_false = num = 0
  for text, item in zip(texts['text'], texts['item_id']):
    claims = parser.parse(text)
    facets = {lexicon.VALUE_FACETS[claim] for claim in claims}
    assert len(claims) == len(facets) == 3, text
    assert 20 <= len(text.split()) <= 28, text
    own = set(world.attributes[int(item) - 1].tolist())
    num_false += sum(claim not in own for claim in claims)
    num += 3
  rate = world.config.hallucination_rate
  assert abs(num_false / num - rate) < 4 * np.sqrt(rate * (1 - rate) / num)


def _inclusion_probabilities(scores):
  """Probability of each of eight being among three draws in turn.

  Draws without replacement, each in proportion to exp(score), by enumeration
  of the 336 ordered triples.
  """
  weights = np.exp(scores - scores.max())
  included = np.zeros(len(scores))
  for triple in itertools.permutations(range(len(scores)), 3):
    probability, left = 1.0, weights.sum()
    for index in triple:
      probability *= weights[index] / left
      left -= weights[index]
    included[list(triple)] += probability
  return included


@pytest.mark.parametrize('make_writer', [demonstrator, text_only_writer])
def test_writers_praise_as_the_closed_form_says(world, scorer, make_writer):
  writer = make_writer(world)
  rng = np.random.default_rng(1)
  differences = []
  rate = writer.style.hallucination_rate
  for _ in range(60):
    user, item = rng.integers(world.num_users), rng.integers(world.num_items)
    own = world.attributes[item]
    chosen = _inclusion_probabilities(
      writer.tastes[user, own].astype(float) / writer.style.temperature
    )
    expected = 0.0
    for facet in range(lexicon.NUM_FACETS):
      table = false_value_probabilities(world, item, facet)
      start = lexicon.VALUE_OFFSETS[facet]
      false = table @ world.tastes[user, start : start + len(table)]
      true = world.tastes[user, own[facet]]
      expected += chosen[facet] * ((1 - rate) * true + rate * false) / 3
    texts = [writer.write(user, item, rng) for _ in range(40)]
    gold = scorer.score(texts, _ids([user] * 40), _ids([item] * 40))
    differences.extend(gold['personalization'] - expected)
  error = np.std(differences) / np.sqrt(len(differences))
  assert abs(np.mean(differences)) < 4 * error
  assert error < 0.02


def test_false_values_are_false_and_likely(world):
  for item in range(200):
    for facet in range(lexicon.NUM_FACETS):
      table = false_value_probabilities(world, item, facet)
      own = world.attributes[item, facet] - lexicon.VALUE_OFFSETS[facet]
      assert table[own] == 0 and table.sum() == pytest.approx(1)
  # The rival's profession takes its share of the hero's false claims.
  item = int(np.flatnonzero(world.distractors[: world.num_items] < 0)[0])
  table = false_value_probabilities(world, item, lexicon.HERO)
  rival = world.attributes[item, lexicon.RIVAL]
  rival = rival - lexicon.VALUE_OFFSETS[lexicon.RIVAL]
  genre = world.attributes[item, 0]
  start = lexicon.VALUE_OFFSETS[lexicon.HERO]
  base = world.plausibility[genre, start : start + len(table)].copy()
  base[world.attributes[item, lexicon.HERO] - start] = 0
  expected = (1 - world.config.misreading_rate) * base / base.sum()
  expected[rival] += world.config.misreading_rate
  assert np.allclose(table, expected)


def test_hooks_are_as_frequent_as_said(world, tables):
  texts = tables['texts']['text'].to_pylist()
  words = [lexicon.split_words(text) for text in texts]
  hooks = np.array([sum(w in lexicon.HOOK_WORDS for w in ws) for ws in words])
  rate, num = world.config.hook_rate, 2 * len(texts)
  # Opener and ending never share a hook word: the drawn lines are redrawn, the
  # choice of hooked or plain is not.
  assert abs(hooks.sum() / num - rate) < 4 * np.sqrt(rate * (1 - rate) / num)
  assert set(hooks) == {0, 1, 2}


def test_writers_leave_room_below_the_best_texts(world, scorer, splits, tables):
  """What RL can gain: three true claims of what the user likes best."""
  rows = tables['evaluation_pairs'].to_pydict()
  users = [int(user) - 1 for user in rows['user_id']]
  items = [int(item) - 1 for item in rows['item_id']]
  rng = np.random.default_rng(2)
  writer = demonstrator(world)
  texts = [writer.write(user, item, rng) for user, item in zip(users, items)]
  gold = scorer.score(texts, rows['user_id'], rows['item_id'])
  own = [world.tastes[u, world.attributes[i]] for u, i in zip(users, items)]
  best = np.mean([np.sort(tastes)[-3:].mean() for tastes in own])
  assert best - gold['personalization'].mean() > 0.3
  assert 0.7 < gold['precision'].mean() < 0.9
  # The same texts for other users: no value is liked by everybody.
  others = scorer.score(texts, np.roll(rows['user_id'], 1), rows['item_id'])
  assert abs(others['personalization'].mean()) < 0.2
  assert gold['personalization'].mean() > 0.4
  by_text = scorer.score(rows['writer_text'], rows['user_id'], rows['item_id'])
  assert by_text['personalization'].mean() > 0.2
  assert 0.75 < by_text['precision'].mean() < 0.95


@pytest.mark.parametrize('kind', ['personalization', 'appeal'])
def test_pairs_follow_bradley_terry(world, scorer, tables, kind):
  """In every bin of the gap, wins are as frequent as its sigmoid says."""
  table = tables['pairs']
  table = table.filter(pc.equal(table['kind'], kind)).to_pydict()
  chosen, rejected = (
    scorer.score(table[name], table['user_id'], table['item_id'])[kind]
    for name in ('chosen', 'rejected')
  )
  gap = chosen - rejected
  sharpness = getattr(world.config, f'{kind}_sharpness')
  probability = 1 / (1 + np.exp(-sharpness * np.abs(gap)))
  order = np.argsort(np.abs(gap), kind='stable')
  order = order[np.abs(gap[order]) > 1e-9]
  for rows in np.array_split(order, 6):
    expected = probability[rows].mean()
    deviation = np.sqrt(np.sum(probability[rows] * (1 - probability[rows])))
    assert abs((gap[rows] > 0).sum() - len(rows) * expected) < 4 * deviation + 1
  assert len(order) > 0.5 * len(gap)


def test_relevance_targets_are_gold_plus_noise(world, scorer, tables):
  rows = tables['relevance'].to_pydict()
  gold = scorer.score(rows['text'], rows['user_id'], rows['item_id'])
  noise = np.array(rows['target']) - gold['relevance']
  sigma = world.config.relevance_noise
  assert np.abs(noise).max() < 5.5 * sigma
  inside = np.abs(gold['relevance']) < 1 - 4 * sigma
  assert noise[inside].std() == pytest.approx(sigma, rel=0.05)


def test_splits_are_disjoint(world, tables):
  assert set(tables['texts']['split'].to_pylist()) == {'train', 'validation'}
  for name, key in (
    ('pairs', 'user_id'),
    ('relevance', 'user_id'),
    ('entailment', 'item_id'),
  ):
    table = tables[name].to_pydict()
    splits = np.array(table['split'])
    keys = np.array(table[key])
    shares = dict(
      zip(('train', 'judge', 'validation'), world.config.split_shares)
    )
    assert set(splits) == set(shares)
    members = [set(keys[splits == split]) for split in shares]
    for one, two in itertools.combinations(members, 2):
      assert not one & two
    for split, share in shares.items():
      assert np.mean(splits == split) == pytest.approx(share, abs=0.01)


def test_evaluation_pairs_leak_nowhere(world, splits, tables):
  held_out = set(zip(*splits[1].to_pydict().values()))
  for name in ('texts', 'pairs', 'relevance', 'rl_prompts'):
    table = tables[name].to_pydict()
    assert not held_out & set(zip(table['user_id'], table['item_id']))
  rows = tables['evaluation_pairs'].to_pydict()
  assert set(zip(rows['user_id'], rows['item_id'])) == held_out
  for user, preferences in zip(rows['user_id'], rows['preferences']):
    assert preferences == world.bullets(int(user) - 1)


def test_leaked_evaluation_pairs_are_dropped(world, splits):
  """Also when the caller's training ratings hold them, or all pairs do."""
  train, evaluation = splits
  both = pa.concat_tables([train.slice(0, 300), evaluation])
  small = WorldConfig(
    num_pitches=800,
    num_pairs=30,
    num_entailment=30,
    num_relevance=30,
    num_rl_prompts=100,
    split_shares=(0.4, 0.3, 0.3),
  )
  tables = build_text_tables(world, both, evaluation, small)
  held_out = set(zip(*evaluation.to_pydict().values()))
  texts = tables['texts'].to_pydict()
  pairs = list(zip(texts['user_id'], texts['item_id']))
  assert len(set(pairs)) == 800 and not held_out & set(pairs)
  with pytest.raises(UserError, match='none of the 200'):
    build_text_tables(world, evaluation, evaluation, small)
  with pytest.raises(UserError, match='user_id from 501 to 501'):
    build_text_tables(world, _pair_table([500], [0]), evaluation, small)


def test_tables_have_their_schemas_and_the_seed_decides(world, splits, tables):
  columns = {
    'users': ['user_id', 'preferences', 'num_train_ratings'],
    'texts': ['kind', 'user_id', 'item_id', 'text', 'split'],
    'pairs': ['kind', 'user_id', 'item_id', 'chosen', 'rejected', 'split'],
    'entailment': ['item_id', 'premise', 'hypothesis', 'label', 'split'],
    'relevance': ['user_id', 'item_id', 'text', 'target', 'split'],
    'evaluation_pairs': ['user_id', 'item_id', 'preferences', 'writer_text'],
    'rl_prompts': ['user_id', 'item_id'],
  }
  assert {name: table.column_names for name, table in tables.items()} == columns
  counts = tables['users']['num_train_ratings'].to_pylist()
  assert sum(counts) == splits[0].num_rows
  assert tables['entailment'].schema.field('label').type == pa.int32()
  assert tables['relevance'].schema.field('target').type == pa.float32()
  again = build_text_tables(build_world(world.config), *splits)
  for name, table in tables.items():
    assert table.equals(again[name]), name


def test_odd_texts(world):
  """Each oddity shows up and does what it says."""
  parser = world_parser()
  rng = np.random.default_rng(0)
  own = world.attributes[0]
  texts = [degrade([int(v) for v in own[:3]], own, rng) for _ in range(400)]
  counts = [parser.parse(text) for text in texts]
  sizes = {len(set(claims)) for claims in counts}
  assert sizes >= {0, 1, 2, 3, 4, 8}
  repeats = sum(len(set(claims)) < len(claims) for claims in counts)
  # 'repeated' always repeats, and is one of six.
  assert repeats >= 400 / len(ODDITIES) - 4 * np.sqrt(400 / 6)
  cut = [text for text in texts if not text.endswith('.')]
  assert 30 < len(cut) < 110
  writer = JudgedTextWriter(world)
  drawn = {writer.write(0, 0, rng) for _ in range(300)}
  assert len(drawn) > 250
