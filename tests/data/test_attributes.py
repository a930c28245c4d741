"""Attributes of films and users' affinities to them."""

import math

import numpy as np
import pyarrow as pa
import pytest

from p4lm.data import attribute_words, attributes, rating_arrays
from p4lm.errors import UserError


def _items(rows):
  names = ('item_id', 'genres', 'keywords', 'tags')
  return pa.table(dict(zip(names, zip(*rows))))


ITEMS = _items(
  [
    ('a', ['Crime', 'IMAX'], ['heist', 'based on novel'], ['quirky']),
    ('b', ['Crime', 'Drama'], ['heist'], []),
    ('c', ['Drama'], [], ['heist', 'dvd']),
    ('d', [], ['rare'], []),
  ]
)


def _build(**sizes):
  return attributes.build_attributes(ITEMS, **({'min_items': 1} | sizes))


def test_genres_come_first_then_frequent_themes():
  found = _build()
  assert [a.name for a in found.all] == [
    'genre:crime', 'genre:drama', 'theme:heist', 'theme:rare', 'tone:quirky'
  ]  # fmt: skip
  assert found.matrix.toarray().tolist() == [
    [1, 0, 1, 0, 1],
    [1, 1, 1, 0, 0],
    [0, 1, 1, 0, 0],
    [0, 0, 0, 1, 0],
  ]
  assert found.of('b').tolist() == [0, 1, 2]


def test_rare_themes_go_and_genres_stay():
  assert [a.name for a in _build(min_items=3).all] == [
    'genre:crime', 'genre:drama', 'theme:heist'
  ]  # fmt: skip
  assert len(_build(max_attributes=2)) == 2


def test_every_form_is_found_again():
  found = _build()
  for k, attribute in enumerate(found.all):
    for form in (*attribute.singular, *attribute.plural):
      assert found.find(f'You said {form.upper()}, did you?') == [k]


def test_every_genre_has_forms_of_its_own():
  rows = [(g, [g.title()], [], []) for g in attribute_words.GENRES]
  found = attributes.build_attributes(_items(rows))
  assert len(found) == len(rows)
  for k, attribute in enumerate(found.all):
    for form in (*attribute.singular, *attribute.plural):
      assert found.find(form) == [k]


def test_the_longest_form_wins():
  rows = [('a', ['War'], ['cold war'], []), ('b', ['War'], ['cold war'], [])]
  found = attributes.build_attributes(_items(rows), min_items=1)
  names = [a.name for a in found.all]
  text = 'a Cold War story, then a war story'
  assert [names[k] for k in found.find(text)] == [
    'theme:cold war',
    'genre:war',
  ]
  assert found.indicator([text, 'nothing']).tolist() == [[1, 1], [0, 0]]


def test_unknown_items_are_told():
  with pytest.raises(UserError, match="item 'z'"):
    _build().rows(['a', 'z'])


RATINGS = [
  ('u', 'a', 5.0), ('u', 'c', 2.0), ('v', 'a', 3.0), ('v', 'b', 4.5),
  ('v', 'd', 4.5), ('w', 'c', 4.0),
]  # fmt: skip


def _arrays(rows=RATINGS):
  users, items, stars = zip(*rows)
  return rating_arrays.from_table(
    pa.table(
      {
        'user_id': users,
        'item_id': items,
        'rating': pa.array(stars, pa.float32()),
        'timestamp': [0] * len(rows),
      }
    )
  )


def test_residuals_take_user_and_item_out():
  # Means u 3.5, v 4, w 4; deviations 1.5 -1.5 -1 .5 .5 0; item biases with
  # shrinkage 1: a (1.5-1)/3, b .5/2, c (-1.5+0)/3, d .5/2.
  found = attributes.rating_residuals(_arrays(), item_shrinkage=1.0)
  bias = {'a': 0.5 / 3, 'b': 0.25, 'c': -0.5, 'd': 0.25}
  expected = [1.5, -1.5, -1.0, 0.5, 0.5, 0.0]
  expected = [e - bias[r[1]] for e, r in zip(expected, RATINGS)]
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_affinity_is_the_documented_formula():
  """Every entry by loops over ratings, as the docstring has it."""
  found = _build()
  config = attributes.AffinityConfig(
    shrinkage=2.0, item_shrinkage=1.0, lift_shrinkage=3.0, lift_weight=0.5
  )
  arrays = _arrays()
  residuals = attributes.rating_residuals(arrays, 1.0)
  own = {item: set(found.of(item).tolist()) for item in 'abcd'}
  users = ['u', 'v', 'w']
  mean, lift = np.zeros((3, 5)), np.zeros((3, 5))
  likes = [r for r in RATINGS if r[2] >= 4]
  for n, user in enumerate(users):
    rated = [(r, e) for r, e in zip(RATINGS, residuals) if r[0] == user]
    liked = [r for r in likes if r[0] == user]
    for k in range(5):
      values = [e for r, e in rated if k in own[r[1]]]
      mean[n, k] = sum(values) / (len(values) + 2.0)
      share = sum(k in own[r[1]] for r in likes) + 0.5
      share /= len(likes) + 1.0
      hits = sum(k in own[r[1]] for r in liked)
      lift[n, k] = math.log((hits + 3.0) / (len(liked) * share + 3.0))
  expected = (mean / mean.std() + 0.5 * lift / lift.std()) / 1.5
  computed = attributes.UserAffinity(arrays, found, config)(np.arange(3))
  np.testing.assert_allclose(computed, expected, rtol=2e-4, atol=1e-5)


def test_some_users_in_any_order():
  affinity_of = attributes.UserAffinity(_arrays(), _build())
  every = affinity_of(np.arange(3))
  np.testing.assert_array_equal(affinity_of(np.array([2, 0])), every[[2, 0]])


def test_the_order_of_ratings_does_not_matter():
  arrays = _arrays(RATINGS[::-1])
  one = attributes.UserAffinity(_arrays(), _build())(np.arange(3))
  two = attributes.UserAffinity(arrays, _build())(np.arange(3))
  assert arrays.users.ids == ['w', 'v', 'u']
  np.testing.assert_allclose(two[::-1], one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ('word', 'unfit'),
  [
    ('heist', False), ('world war ii', False), ('washington d.c.', False),
    ('based on comic book', True), ('duringcreditsstinger', True),
    ('comedy', True), ('nudity (topless)', True), ('x', True),
    ('a very long keyword about nothing', True), ('ghost story', True),
  ],
)  # fmt: skip
def test_unfit_keywords(word, unfit):
  assert attribute_words.is_unfit(word) == unfit
