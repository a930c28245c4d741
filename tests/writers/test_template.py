"""The texts about a release: schemas, truth, fit, leakage, determinism."""

import collections
import dataclasses
import random

import numpy as np
import pyarrow as pa
import pytest

from p4lm.data import rating_arrays, splits, tables
from p4lm.data.attributes import UserAffinity
from p4lm.errors import UserError
from p4lm.writers import judged_texts, phrases, pitches, template
from p4lm.writers.pitches import Manner, Plan, Style
from p4lm.writers.template import TemplateConfig, TemplateWriter

CONFIG = TemplateConfig(
  num_pitches=300,
  num_pairs=300,
  num_entailment=600,
  num_relevance=200,
  num_rl_prompts=100,
  min_theme_items=2,
  label_noise=0.0,
)


@pytest.fixture(scope='module')
def writer(items):
  return TemplateWriter(items, CONFIG, seed=0)


@pytest.fixture(scope='module')
def pairs(ratings, writer):
  rule = splits.EvaluationRule(count=20, min_other_test_ratings=2)
  return splits.choose_evaluation_pairs(
    ratings, writer.items, seed=0, rule=rule
  )


@pytest.fixture(scope='module')
def made(writer, train, pairs):
  return writer.build(train, pairs)


@pytest.fixture(scope='module')
def tastes(writer, train):
  """{user id: float [K]}, from the training ratings."""
  arrays = rating_arrays.from_table(train)
  affinity_of = UserAffinity(arrays, writer.films.attributes)
  rows = affinity_of(np.arange(len(arrays.users.ids)))
  return dict(zip(arrays.users.ids, rows))


def _rows(made, name):
  return made[name].to_pylist()


def test_every_table_has_its_schema_and_size(made, tmp_path):
  tables.write_tables(tmp_path / 'data', made, {})
  sizes = {
    'items': 60, 'users': 40, 'texts': 300, 'pairs': 600, 'entailment': 600,
    'relevance': 200, 'evaluation_pairs': 20, 'rl_prompts': 100,
  }  # fmt: skip
  assert set(made) == set(sizes)
  for name, size in sizes.items():
    read = tables.read_table(tmp_path / 'data', name)
    assert len(read) == size
    for column in read.columns:
      assert column.null_count == 0


def test_equal_arguments_give_equal_tables(made, items, train, pairs):
  again = template.build_text_tables(items, train, pairs, CONFIG, 0)
  assert all(again[name].equals(made[name]) for name in made)
  other = template.build_text_tables(items, train, pairs, CONFIG, 1)
  assert not other['texts'].equals(made['texts'])


def test_texts_do_not_depend_on_the_order_of_ratings(
  made, writer, train, pairs
):
  reverse = train.take(np.arange(len(train))[::-1])
  again = writer.build(reverse, pairs)
  key = lambda row: (row['user_id'], row['item_id'])
  assert sorted(_rows(again, 'rl_prompts'), key=key) == sorted(
    _rows(made, 'rl_prompts'), key=key
  )
  assert _rows(again, 'entailment') == _rows(made, 'entailment')


def test_nothing_is_about_the_held_out_pairs(made, ratings, pairs):
  names = ('texts', 'pairs', 'relevance', 'rl_prompts')
  splits.check_leakage(ratings, pairs, {n: made[n] for n in names})


def test_only_training_ratings_matter(made, writer, ratings, pairs):
  """Other held-out ratings leave every text as it is."""
  codes = splits.split_codes(ratings)
  stars = ratings['rating'].to_numpy().copy()
  stars[codes != splits.TRAIN] = 0.5
  position = ratings.column_names.index('rating')
  changed = ratings.set_column(position, 'rating', pa.array(stars))
  train = changed.filter(pa.array(codes == splits.TRAIN))
  again = writer.build(train, pairs)
  assert all(again[name].equals(made[name]) for name in made)


def test_pairs_are_rated_liked_and_unique(made, train):
  rated = {
    (r['user_id'], r['item_id']): r['rating'] for r in _rows({'t': train}, 't')
  }
  for name in ('texts', 'rl_prompts'):
    own = [(r['user_id'], r['item_id']) for r in _rows(made, name)]
    assert len(set(own)) == len(own)
    assert all(rated[pair] >= CONFIG.min_rating for pair in own)


def test_users_take_turns(made, train):
  liked = collections.Counter(
    r['user_id'] for r in _rows({'t': train}, 't')
    if r['rating'] >= CONFIG.min_rating and r['item_id'] not in
    ('i57', 'i58', 'i59')
  )  # fmt: skip
  counts = collections.Counter(r['user_id'] for r in _rows(made, 'texts'))
  most = max(counts.values())
  # Held-out pairs are none of them, so who has fewer has no more.
  assert all(
    counts[user] >= min(most - 1, available) for user, available in
    liked.items()
  )  # fmt: skip


def test_splits_have_users_and_items_of_their_own(made):
  for name, key in (
    ('pairs', 'user_id'), ('relevance', 'user_id'), ('entailment', 'item_id')
  ):  # fmt: skip
    owners = collections.defaultdict(set)
    for row in _rows(made, name):
      owners[row[key]].add(row['split'])
    assert all(len(found) == 1 for found in owners.values())
    assert set.union(*owners.values()) == {'train', 'judge', 'validation'}
  counts = collections.Counter(r['split'] for r in _rows(made, 'entailment'))
  assert counts == {'train': 360, 'judge': 180, 'validation': 60}


def test_descriptions_list_what_is_true(writer, items):
  attributes = writer.films.attributes
  for row, item in enumerate(items.to_pylist()):
    plot = writer.items['plot'][row].as_py()
    if item['item_id'] in ('i57', 'i58', 'i59'):
      assert plot == '' and row not in writer.films.by_row
      continue
    film = writer.films.by_row[row]
    genres = [g.lower() for g in item['genres']]
    listed = plot.split('. ')[0].removeprefix('Genres: ').split(', ')
    assert sorted(listed) == sorted(genres)
    named = {attributes.all[k].name.split(':')[1] for k in film.attributes}
    assert named <= {*genres, *item['keywords']}
    assert item['plot'] in plot


def test_long_overviews_and_placeholders_are_cut(items):
  plots = ['<extra_id_0> ' + 'word ' * 200] * len(items)
  position = items.column_names.index('plot')
  long = items.set_column(position, 'plot', pa.array(plots))
  described = TemplateWriter(long, CONFIG).items['plot'].to_pylist()
  assert all('<' not in plot for plot in described)
  assert all(plot.count('word') <= 40 for plot in described)
  assert any(plot.count('word') == 40 for plot in described)


def test_entailment_labels_follow_the_claims(made, writer):
  """An independent reading of each hypothesis agrees with its label."""
  films = {f.item_id: f for f in writer.films.by_row.values()}
  attributes = writer.films.attributes
  openers = [o.split('{p}')[0] for o in phrases.OPENERS] + [
    o.split('{p}')[0] for o in phrases.OPENERS_BEYOND
  ]
  counts = collections.Counter()
  for row in _rows(made, 'entailment'):
    film, text = films[row['item_id']], row['hypothesis']
    assert row['premise'] == film.description
    counts[row['split'], row['label']] += 1
    if text in phrases.EMPTY:
      assert row['label'] == 0
      continue
    clauses = [c for f in films.values() for c in f.clauses if c in text]
    for clause in clauses:
      text = text.replace(clause, '')
    if text.startswith(tuple(openers)):
      # What is said to the user claims nothing of the film.
      text = text.split(':', 1)[-1] if ':' in text else text.split('?', 1)[-1]
    claims_true = all(k in film.all_attributes for k in attributes.find(text))
    clauses_true = all(clause in film.clauses for clause in clauses)
    assert (claims_true and clauses_true) == bool(row['label']), row
  for split in ('train', 'judge', 'validation'):
    share = counts[split, 1] / (counts[split, 0] + counts[split, 1])
    assert 0.3 < share < 0.7


def test_a_hypothesis_alone_does_not_betray_its_label(writer):
  """Naive Bayes on the words of hypotheses is little better than a coin."""
  rng = random.Random(0)
  films = list(writer.films.by_row.values())
  rows = []
  for number in range(4000):
    film, label = rng.choice(films), number % 2
    text = judged_texts.entailment_hypothesis(writer.films, film, label, rng)
    rows.append((film.row % 2, label, set(text.lower().split())))
  counts = [collections.Counter(), collections.Counter()]
  for half, label, words in rows:
    if half == 0:
      counts[label].update(words)
  right = [
    (sum(np.log((counts[1][w] + 1) / (counts[0][w] + 1)) for w in words) > 0)
    == label
    for half, label, words in rows
    if half == 1
  ]
  assert 1500 < len(right) < 2500
  assert np.mean(right) < 0.65


def test_chosen_texts_fit_the_user_better(made, writer, tastes):
  attributes = writer.films.attributes
  gaps = []
  for row in _rows(made, 'pairs'):
    if row['kind'] != 'personalization':
      continue
    fits = [
      np.mean(tastes[row['user_id']][named]) if named else 0.0
      for named in (attributes.find(row[c]) for c in ('chosen', 'rejected'))
    ]
    gaps.append(fits[0] - fits[1])
  gaps = np.array(gaps)
  # Degraded texts are rejected for other reasons than their attributes.
  assert (gaps > 0).mean() > 0.85 and gaps.mean() > 0.4


def test_pitches_fit_their_user_better_than_another(made, writer, tastes):
  """Training pitches depend on whom they are for."""
  attributes = writer.films.attributes
  users = list(tastes)
  rng = np.random.default_rng(0)
  wins = []
  for row in _rows(made, 'texts'):
    named = attributes.find(row['text'])
    own = tastes[row['user_id']][named].mean()
    other = tastes[users[rng.integers(len(users))]][named].mean()
    wins.append((own > other) + 0.5 * (own == other))
  mean, error = np.mean(wins), np.std(wins) / np.sqrt(len(wins))
  assert mean - 3 * error > 0.6


def test_appeal_pairs_differ(made):
  for row in _rows(made, 'pairs'):
    assert row['chosen'] != row['rejected']
    if row['kind'] == 'appeal':
      assert row['chosen'].endswith(phrases.HOOKS)
      assert any(a in row['chosen'] for a in phrases.ADJECTIVES)


def test_a_share_of_the_judges_is_wrong(items, train, pairs, made):
  """Noise turns pairs round and changes nothing else."""
  config = dataclasses.replace(CONFIG, label_noise=0.2)
  noisy = TemplateWriter(items, config, seed=0).build(train, pairs)
  turned = []
  for one, other in zip(_rows(made, 'pairs'), _rows(noisy, 'pairs')):
    sides = one['chosen'], one['rejected']
    turned.append((other['chosen'], other['rejected']) == sides[::-1])
    if not turned[-1]:
      assert other == one
  error = np.sqrt(0.2 * 0.8 / len(turned))
  assert np.mean(turned) == pytest.approx(0.2, abs=3 * error)
  assert _rows(noisy, 'texts') == _rows(made, 'texts')
  with pytest.raises(UserError, match='label_noise=0.5'):
    TemplateConfig(label_noise=0.5)


def test_the_demonstrator_is_imperfect(writer, tastes):
  manner = Manner(opener_rate=0.0)
  rng = random.Random(0)
  false, claims = 0, 0
  for taste in tastes.values():
    for film in writer.films.by_row.values():
      plan = pitches.draw_plan(writer.films, film, taste, manner, rng)
      claims += len(plan.claims)
      false += sum(k not in film.all_attributes for k in plan.claims)
  assert claims > 3000
  assert false / claims == pytest.approx(manner.false_claim_rate, abs=0.02)


def test_attributes_are_drawn_by_a_softmax():
  rng = random.Random(0)
  affinity = np.array([0.0, 1.0, 2.0])
  first = collections.Counter(
    pitches.draw_attributes([0, 1, 2], affinity, 0.8, 2, rng)[0]
    for _ in range(20_000)
  )
  weights = np.exp(affinity / 0.8)
  for k, share in enumerate(weights / weights.sum()):
    assert first[k] / 20_000 == pytest.approx(share, abs=0.012)
  assert pitches.draw_attributes([0, 2, 1], affinity, 0.0, 2, rng) == [2, 1]


def test_a_plan_in_words(writer):
  attributes = writer.films.attributes.all
  names = [a.name for a in attributes]
  crime, heist = names.index('genre:crime'), names.index('theme:heist')
  style = Style(0, 0, 0, 0, ('gripping',), True, True)
  plan = Plan(crime, (heist, crime), 'Two thieves rob a bank in Rome.', True)
  assert pitches.render(plan, style, attributes) == (
    'If you enjoy crime films, try this one: Two thieves rob a bank in Rome. '
    'It is a gripping heist story and a crime film. You will not look away.'
  )
  assert pitches.render(plan, style.plain(), attributes) == (
    'If you enjoy crime films, try this one: Two thieves rob a bank in Rome. '
    'It is a heist story and a crime film.'
  )
  assert plan.attributes() == [crime, heist]


def test_relevance_targets_by_hand():
  class Letters:
    """One direction a letter: cosines can be done in the head."""

    def encode(self, texts):
      counts = [[t.count(letter) for letter in 'abcd'] for t in texts]
      rows = np.array(counts, np.float32)
      return rows / np.maximum(np.linalg.norm(rows, axis=1)[:, None], 1e-9)

  bullets = ['a', 'b', 'c', 'd']  # Two likes, then two dislikes.
  # The film is about a and c; the text says a: (1 cos(a) - 0 cos(c)) / 2.
  found = judged_texts.relevance_targets(
    Letters(), ['a', 'c', 'aac', 'b'], [bullets] * 4, ['ac'] * 4, top=2
  )
  expected = [0.5, -0.5, (2 - 1) / np.sqrt(5) / 2, 0.0]
  np.testing.assert_allclose(found, np.round(expected, 4), atol=1e-6)


def test_repetition_does_not_raise_relevance(made):
  targets = made['relevance']['target'].to_numpy()
  assert np.abs(targets).max() <= 1 and targets.std() > 0.01


def test_the_text_only_writer_praises_what_the_bullets_name(writer):
  attributes = writer.films.attributes
  names = [a.name for a in attributes.all]
  film = next(
    f for f in writer.films.by_row.values()
    if {'genre:crime', 'genre:war'} <= {names[k] for k in f.all_attributes}
  )  # fmt: skip
  config = TemplateConfig(text_writer=Manner(false_claim_rate=0.0))
  likes = ['enjoys crime films'] + ['is open to new films'] * 4
  hates = ['avoids war films'] + ['dislikes weak endings'] * 4
  counts = collections.Counter()
  for seed in range(200):
    text = template.write_from_texts(
      writer.films, film, likes + hates, config, random.Random(seed)
    )
    counts.update(names[k] for k in attributes.find(text))
  assert counts['genre:crime'] > 3 * counts['genre:war']


def test_what_cannot_be_written_about_is_told(items, train, writer):
  position = items.column_names.index('plot')
  bare = items.set_column(position, 'plot', pa.array([''] * len(items)))
  with pytest.raises(UserError, match='both a plot and a genre'):
    TemplateWriter(bare, CONFIG)
  pair = pa.table({'user_id': ['u0'], 'item_id': ['i58']})
  with pytest.raises(UserError, match=r"evaluation pair \('u0', 'i58'\)"):
    writer.build(train, pair)
  stars = pa.array([1.0] * len(train), pa.float32())
  position = train.column_names.index('rating')
  with pytest.raises(UserError, match='no training rating >= 3.5'):
    writer.build(train.set_column(position, 'rating', stars), pair.slice(0, 0))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'num_pairs': 0}, 'num_pairs=0 must be at least 1'),
    ({'max_themes': -1}, 'max_themes=-1'),
    ({'split_shares': (1.0, 0.0, 0.0)}, 'three positive shares'),
  ],
)
def test_bad_sizes_are_told(change, message):
  with pytest.raises(UserError, match=message):
    TemplateConfig(**change)
