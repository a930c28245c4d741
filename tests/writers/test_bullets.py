"""Ten preference bullets a user."""

import random

import numpy as np
import pytest

from p4lm.data import rating_arrays
from p4lm.data.attributes import UserAffinity, build_attributes
from p4lm.writers import bullets, phrases


@pytest.fixture(scope='module')
def attributes(items):
  return build_attributes(items, min_items=1)


@pytest.fixture(scope='module')
def arrays(train):
  return rating_arrays.from_table(train)


def test_the_best_and_the_worst_films_are_selected(arrays):
  liked, disliked = bullets.select_films(arrays, seed=0)
  for user in range(len(arrays.users.ids)):
    own = arrays.users.codes == user
    stars = dict(zip(arrays.items.codes[own], arrays.ratings[own]))
    for chosen, side in (
      (liked[user], sorted(r for r in stars.values() if r >= 4)[::-1]),
      (disliked[user], sorted(r for r in stars.values() if r < 4)),
    ):
      films = chosen[chosen >= 0]
      assert len(set(films)) == len(films) == min(5, len(side))
      assert [stars[film] for film in films] == side[:5]


def test_equal_films_are_drawn_by_seed(arrays):
  one, _ = bullets.select_films(arrays, seed=0)
  two, _ = bullets.select_films(arrays, seed=1)
  assert (one != two).any()


def test_users_have_ten_bullets_about_their_films(arrays, attributes):
  affinity_of = UserAffinity(arrays, attributes)
  table = bullets.users_table(arrays, attributes, affinity_of, seed=0)
  assert table['user_id'].to_pylist() == arrays.users.ids
  counts = np.bincount(arrays.users.codes)
  assert table['num_train_ratings'].to_pylist() == counts.tolist()
  liked, disliked = bullets.select_films(arrays, seed=0)
  fillers = (*phrases.LIKES_FILLERS, *phrases.DISLIKES_FILLERS)
  for user, preferences in enumerate(table['preferences'].to_pylist()):
    assert len(preferences) == len(set(preferences)) == 10
    named = [k for bullet in preferences for k in attributes.find(bullet)]
    assert len(named) == len(set(named))
    for position, bullet in enumerate(preferences):
      side, verbs = (
        (liked, phrases.LIKES) if position < 5 else (disliked, phrases.DISLIKES)
      )
      assert len(bullet.split()) <= 11
      if bullet in fillers:
        continue
      assert bullet.startswith(verbs)
      films = [arrays.items.ids[c] for c in side[user] if c >= 0]
      about = set(attributes.find(bullet))
      assert about and any(about <= set(attributes.of(f)) for f in films)


def test_liked_attributes_come_first(attributes):
  affinity = np.zeros(len(attributes))
  affinity[:3] = [0.1, 2.0, 1.0]
  found = bullets.write_bullets(
    [[0, 1, 2]], [], affinity, attributes, random.Random(0)
  )
  order = [attributes.find(bullet)[0] for bullet in found[:3]]
  assert order[0] == 1


def test_a_user_without_ratings_to_speak_of_gets_fillers(attributes):
  affinity = np.zeros(len(attributes))
  found = bullets.write_bullets([], [], affinity, attributes, random.Random(0))
  assert sorted(found[:5]) == sorted(phrases.LIKES_FILLERS)
  assert sorted(found[5:]) == sorted(phrases.DISLIKES_FILLERS)
