"""The gold scorer against examples worked out by hand."""

import numpy as np
import pytest

from p4lm.data.world import (
  GoldScorer,
  WorldConfig,
  build_world,
  lexicon,
  save_truth,
)
from p4lm.data.world.gold import appeal_of, world_parser
from p4lm.errors import UserError

ID = {name: value for value, name in enumerate(lexicon.VALUE_NAMES)}
ITEM = (
  'genre:Comedy',
  'setting:harbour',
  'mood:dark',
  'hero:thief',
  'rival:detective',
  'theme:revenge',
  'pace:slow',
  'ending:twist',
)
TASTE = {
  'genre:Comedy': 1.5,
  'mood:dark': -1.0,
  'hero:thief': 0.5,
  'hero:detective': 2.0,
  'setting:desert': 1.0,
}
LIKED = ('genre:Comedy', 'hero:thief', 'hero:detective', 'setting:desert')
AVOIDED = ('mood:dark',)


@pytest.fixture(scope='module')
def scorer():
  tastes = np.zeros((1, lexicon.NUM_VALUES), np.float32)
  preferences = np.zeros((1, lexicon.NUM_VALUES), np.int8)
  for name, taste in TASTE.items():
    tastes[0, ID[name]] = taste
  preferences[0, [ID[name] for name in LIKED]] = 1
  preferences[0, [ID[name] for name in AVOIDED]] = -1
  return GoldScorer(
    parser=world_parser(),
    hook_words=lexicon.HOOK_WORDS,
    user_rows={'7': 0},
    item_rows={'3': 0},
    tastes=tastes,
    preferences=preferences,
    attributes=np.array([[ID[name] for name in ITEM]], np.int16),
  )


# Bullets that concern the item: Comedy and thief liked, dark avoided: norm
# sqrt(3). Relevance is (likes - dislikes among true claims) / sqrt(3 claims).
@pytest.mark.parametrize(
  'text, precision, personalization, relevance',
  [
    ('', 0, 0, 0),
    ('What a film.', 0, 0, 0),
    ('A laugh riot at heart.', 1, 1.5, 1 / 3**0.5),
    ('This is a light comedy!', 1, 1.5, 1 / 3**0.5),
    ('SET IN AN OLD HARBOUR', 1, 0, 0),
    ('The docks as backdrop, gloomy in mood.', 1, -0.5, -1 / 6**0.5),
    ('The hero is a burglar.', 1, 0.5, 1 / 3**0.5),
    ('It follows the clever thief.', 1, 0.5, 1 / 3**0.5),
    # A profession without a role is no claim.
    ('A burglar. The detective and his friend.', 0, 0, 0),
    # Right words, roles swapped: two claims, both false.
    ('The hero is a sleuth and the rival is a thief.', 0, 1.0, 0),
    ('It follows a thief hunted by a detective.', 1, 0.25, 1 / 6**0.5),
    # Denied or dreamt of: mentioned, not claimed, be it true or not.
    ('It never turns dark. Someone dreams of a desert.', 0, 0, 0),
    ('Not a comedy, but set in a desert.', 0, 1.0, 0),
    # Said twice, in two wordings: one claim.
    ('Gloomy in mood, and the mood is very dark.', 1, -1.0, -1 / 3**0.5),
    # One of three claims is false (the item is no western).
    (
      'A western at heart, the hero is a burglar, and gloomy in mood.',
      2 / 3,
      (0 + 0.5 - 1.0) / 3,
      0,
    ),
    ('A laugh riot at heart, a desert as back', 0.5, 1.25, 1 / 6**0.5),
  ],
)
def test_claim_scores(scorer, text, precision, personalization, relevance):
  scores = scorer.score([text], ['7'], ['3'])
  assert scores['precision'] == pytest.approx([precision])
  assert scores['personalization'] == pytest.approx([personalization])
  assert scores['relevance'] == pytest.approx([relevance])


def test_relevance_is_one_for_exactly_the_liked_values(scorer):
  """A cosine: 1 when the claims are the item's bullets, all of them liked."""
  preferences = scorer.preferences.copy()
  preferences[0, ID['mood:dark']] = 0
  liked = GoldScorer(**{**vars(scorer), 'preferences': preferences})
  text = 'A laugh riot at heart, and the hero is a burglar.'
  assert liked.score([text], ['7'], ['3'])['relevance'] == pytest.approx([1.0])
  preferences[:] = -preferences
  assert liked.score([text], ['7'], ['3'])['relevance'] == pytest.approx([-1.0])


THREE = 'a laugh riot at heart, gloomy in mood, and a surprise at the end'


@pytest.mark.parametrize(
  'text, appeal',
  [
    ('', -0.5),
    # 3 claims, 23 words; no, one and two hook words.
    (f'Here is one more title: {THREE}. It lasts about two hours.', 0.5),
    (f'Here is a stunning choice: {THREE}. It lasts about two hours.', 1.25),
    (f'Here is a stunning choice: {THREE}. It stays superb throughout.', 2.0),
    # A third hook word adds nothing.
    (f'Here is a stunning gem: {THREE}. It stays superb throughout.', 2.0),
    # Too short, one claim: only the hook counts.
    ('Stunning, gloomy in mood.', 0.25),
    # A hook word twice.
    (f'A stunning, stunning choice for you: {THREE}.', 1.25 - 1.5),
    # A claim twice, in other words.
    (f'Here is one more title: {THREE}, very dark.', 0.5 - 1.5),
    # Four words in a row twice, five claims.
    (
      'The hero is a burglar, the hero is a captain, the rival is a monk, '
      'gloomy in mood, and a surprise at the end.',
      -0.5 + 0.5 - 1.5,
    ),
    # 14 + 26 = 40 words still fit, 41 do not.
    (f'{THREE}. ' + ' '.join('abcdefghijklmnopqrstuvwxyz'), 0.5),
    (f'{THREE}. ' + ' '.join('abcdefghijklmnopqrstuvwxyz') + ' aa', 0.0),
  ],
)
def test_appeal_formula(text, appeal):
  claims = world_parser().parse(text)
  assert appeal_of(text, claims, lexicon.HOOK_WORDS) == pytest.approx(appeal)


def test_loaded_scorer_equals_the_worlds(tmp_path):
  world = build_world(WorldConfig(num_users=20, num_items=30, num_ratings=100))
  save_truth(world, tmp_path)
  loaded, built = GoldScorer.load(tmp_path), GoldScorer.of_world(world)
  texts = world.plots[:20] + ['The hero is a burglar.'] * 20
  users = [str(1 + u) for u in range(20)] * 2
  items = [str(1 + i) for i in range(20)] * 2
  scores, expected = (
    scorer.score(texts, users, items) for scorer in (loaded, built)
  )
  for name, values in expected.items():
    assert np.array_equal(scores[name], values)
  # A plot states its item's values and nothing else.
  assert (scores['precision'][:20] == 1).all()


def test_scorer_refuses_what_it_does_not_know(scorer, tmp_path):
  with pytest.raises(UserError, match="user id '9' is not of this world"):
    scorer.score(['Gloomy in mood.'], ['9'], ['3'])
  with pytest.raises(UserError, match="item id '9' is not of this world"):
    scorer.score(['Gloomy in mood.'], ['7'], ['9'])
  with pytest.raises(UserError, match='1 texts, 2 user_ids'):
    scorer.score(['Gloomy in mood.'], ['7', '7'], ['3'])
  with pytest.raises(UserError, match='truth.npz'):
    GoldScorer.load(tmp_path)
  (tmp_path / 'truth.npz').write_bytes(b'no archive')
  with pytest.raises(UserError, match='truth.npz'):
    GoldScorer.load(tmp_path)
