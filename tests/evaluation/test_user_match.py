"""The matched-versus-shuffled-user test where its answer is known."""

from __future__ import annotations

import doctest

import numpy as np
import pyarrow as pa
import pytest

from p4lm.errors import UserError
from p4lm.evaluation import user_match as module
from p4lm.evaluation.user_match import HeldOutJudge, terms, user_match

TASTES = ('horror', 'comedy', 'western', 'musical')
FILMS = 12


def make_items(extra=()):
  """Twelve films of each taste; every film has all of one taste's words."""
  rows = []
  for taste in TASTES:
    for number in range(FILMS):
      rows.append(
        dict(
          item_id=f'{taste}{number}', title=f'Moon {number} (1999)',
          genres=[taste.title()], tags=[f'{taste}tag'], keywords=[],
          plot=f'A {taste}plot under a moon.',
        )
      )  # fmt: skip
  return pa.Table.from_pylist([*rows, *extra])


def make_ratings(users_per_taste=6, *, opinion=True):
  """Each user likes one taste and dislikes the next, with held-out ratings."""
  rows = []
  for t, taste in enumerate(TASTES):
    disliked = TASTES[(t + 1) % len(TASTES)]
    for number in range(users_per_taste):
      user = f'{taste}-{number}'
      for film in range(6):
        for name, stars in ((taste, 5.0), (disliked, 1.0)):
          rows.append(
            dict(
              user_id=user, item_id=f'{name}{film}',
              rating=stars if opinion else 3.0,
              split='test' if film < 4 else 'train',
            )
          )  # fmt: skip
  return pa.Table.from_pylist(rows)


@pytest.fixture(scope='module')
def judge():
  return HeldOutJudge(make_items(), make_ratings())


def pairs():
  users = [f'{taste}-{n}' for taste in TASTES for n in range(6)]
  items = [f'{user.split("-")[0]}0' for user in users]
  return users, items


def test_separable_texts_beat_every_other_taste(judge):
  users, items = pairs()
  texts = [
    f'A fine {user.split("-")[0]} with a {user.split("-")[0]}plot'
    for user in users
  ]
  found = user_match(judge, texts, users, items, shuffles=200, samples=200)
  # Of the 23 others, 5 share the taste and tie; 18 score lower.
  share = (18 + 5 / 2) / 23
  assert found.matched_auc.estimate == pytest.approx(share, abs=0.01)
  assert found.matched_auc.low > 0.5
  assert (found.pairs, found.users, found.pairs_without_profile) == (24, 24, 0)
  assert found.controlled_auc is None


def test_one_user_a_taste_is_perfectly_separable():
  judge = HeldOutJudge(make_items(), make_ratings(1))
  users = [f'{taste}-0' for taste in TASTES]
  items = [f'{taste}0' for taste in TASTES]
  texts = [f'{taste} {taste}tag' for taste in TASTES]
  others = texts[1:] + texts[:1]
  found = user_match(
    judge, texts, users, items, counterfactual_texts=others, samples=200
  )
  for auc in (found.matched_auc, found.controlled_auc):
    assert (auc.estimate, auc.low, auc.high) == (1.0, 1.0, 1.0)
  reversed_ = user_match(
    judge, others, users, items, counterfactual_texts=texts, samples=200
  )
  assert reversed_.controlled_auc.estimate == 0.0


def test_texts_that_ignore_the_user_tie_when_controlled(judge):
  """The film gives the first test away; the controlled one is not fooled."""
  users, items = pairs()
  texts = [f'{item[:-1]}plot' for item in items]
  found = user_match(
    judge, texts, users, items, counterfactual_texts=texts, samples=200
  )
  assert found.matched_auc.estimate > 0.8
  assert found.controlled_auc.estimate == 0.5
  assert not found.controlled_auc.lies_apart_from(0.5)


def test_texts_without_known_words_tie(judge):
  users, items = pairs()
  found = user_match(
    judge, ['', 'zzz'] * 12, users, items,
    counterfactual_texts=['qqq'] * 24, samples=50,
  )  # fmt: skip
  assert found.matched_auc.estimate == 0.5
  assert found.controlled_auc.estimate == 0.5


def test_score_by_hand():
  """Three films with one word each; a user's profile and cosine on paper."""
  items = pa.Table.from_pylist(
    [
      dict(item_id=i, title=title, genres=g, tags=[], keywords=[], plot='')
      for i, title, g in (
        ('1', 'Ann', ['Horror']), ('2', 'Bob', ['Horror']),
        ('3', 'Cat', ['Comedy']), ('4', 'Dan', ['Comedy']),
        ('5', 'Eve', ['Horror', 'Comedy']),
      )
    ]
  )  # fmt: skip
  stars = {'1': 5.0, '2': 4.0, '3': 2.0, '4': 1.0, '5': 3.0}
  ratings = pa.Table.from_pylist(
    [
      dict(user_id='u', item_id=i, rating=r, split='test')
      for i, r in stars.items()
    ]
  )
  judge = HeldOutJudge(items, ratings)
  # The mean is 3: horror films 1 and 2 weigh +2/3 and +1/3, comedies 4 and 3
  # weigh -2/3 and -1/3; film 5 nothing. Profile (1, -1), cosine 1/sqrt 2.
  found = judge.score(
    ['Horror', 'comedies', 'horror comedy', 'horror', 'horror bob'],
    ['u', 'u', 'u', 'x', 'u'],
    ['5', '5', '5', '5', '2'],
  )
  root = 2**-0.5
  np.testing.assert_allclose(found[:3], [root, -root, 0.0], atol=1e-12)
  assert np.isnan(found[3])
  # Without film 2 the other films keep the same directions.
  np.testing.assert_allclose(found[4], root)


def test_the_judged_film_and_its_title_are_left_out():
  """A word that only the judged film shares with the profile must not count."""
  extra = [
    dict(item_id='x', title='Zeppelin', genres=[], tags=['zeppelin'],
         keywords=['airship'], plot=''),
    dict(item_id='y', title='Other', genres=[], tags=['zeppelin'],
         keywords=['airship'], plot=''),
  ]  # fmt: skip
  rated = pa.Table.from_pylist(
    [dict(user_id='horror-0', item_id='x', rating=5.0, split='test')]
  )
  judge = HeldOutJudge(
    make_items(extra), pa.concat_tables([make_ratings(), rated])
  )
  on_it, on_another = judge.score(
    ['an airship', 'an airship'], ['horror-0'] * 2, ['x', 'horror1']
  )
  assert on_it == 0.0 < on_another
  titled = judge.score(['zeppelin', 'zeppelin'], ['horror-0'] * 2, ['x', 'y'])
  assert titled[0] == 0.0 < titled[1]


def test_train_ratings_make_no_profile():
  """Flipping every training rating changes the mean alone."""
  ratings = make_ratings(1)
  split = np.array(ratings['split'].to_pylist())
  stars = ratings['rating'].to_numpy().copy()
  stars[split == 'train'] = 6 - stars[split == 'train']
  flipped = ratings.set_column(2, 'rating', pa.array(stars))
  arguments = ['horror'], ['horror-0'], ['horror1']
  before = HeldOutJudge(make_items(), ratings).score(*arguments)
  after = HeldOutJudge(make_items(), flipped).score(*arguments)
  np.testing.assert_allclose(before, after)


def test_users_without_profile_are_counted(judge):
  users, items = pairs()
  found = user_match(
    judge, ['horror'] * 25, [*users, 'stranger'], [*items, 'horror0'],
    samples=50,
  )  # fmt: skip
  assert (found.pairs, found.pairs_without_profile) == (24, 1)
  assert found.as_dict()['controlled_auc'] is None
  indifferent = HeldOutJudge(make_items(), make_ratings(opinion=False))
  with pytest.raises(UserError, match='fewer than two users'):
    user_match(indifferent, ['horror'], ['horror-0'], ['horror0'])


def test_shuffled_users_are_others(judge):
  users, _ = pairs()
  drawn = module._draw_others(judge, users, 400, seed=0)
  rows = np.array([judge._user_row[user] for user in users])
  assert not (drawn == rows[:, None]).any()
  assert all(len(set(row)) == 23 for row in drawn)


def test_bad_input(judge):
  with pytest.raises(UserError, match='2 texts, 1 user_ids'):
    judge.score(['a', 'b'], ['u'], ['i'])
  with pytest.raises(UserError, match="split 'none'"):
    HeldOutJudge(make_items(), make_ratings(), split='none')


def test_docstrings():
  assert doctest.testmod(module).failed == 0
  assert terms("The Heroes' stories") == ['the', 'heroe', 'story']
