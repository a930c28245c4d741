"""The words of the world: parsed claims equal what the writers meant."""

import numpy as np
import pytest

from p4lm.data.world import WorldConfig, build_world, lexicon, pitches, plots
from p4lm.data.world.gold import world_parser

LINES = (
  lexicon.HOOKED_OPENERS
  + lexicon.HOOKED_ENDINGS
  + lexicon.PLAIN_OPENERS
  + lexicon.PLAIN_ENDINGS
)


@pytest.fixture(scope='module')
def world():
  return build_world(WorldConfig(seed=3))


@pytest.fixture(scope='module')
def parser():
  return world_parser()


def test_every_clause_claims_its_value_and_nothing_else(parser):
  gaps = 0
  for value in range(lexicon.NUM_VALUES):
    facet = lexicon.FACETS[lexicon.VALUE_FACETS[value]]
    for clause in facet.plot_clauses:
      for phrase in lexicon.plot_phrases(value):
        assert parser.parse(clause.format(phrase)) == [value], (clause, phrase)
    for denial in facet.denials:
      for phrase in lexicon.plot_phrases(value):
        assert parser.parse(denial.format(phrase)) == [], (denial, phrase)
    assert parser.parse(pitches.render_claims([value])) == [value]
    plot_words = set(' '.join(lexicon.plot_phrases(value)).split())
    pitch_words = set(lexicon.pitch_phrase(value).split())
    gaps += not (plot_words & pitch_words) - {'a', 'an', 'the'}
  # Most values, not all, are called by other words in plots and pitches.
  assert 0.6 < gaps / lexicon.NUM_VALUES < 0.9


def test_phrases_name_one_value_only():
  keys = [
    role.format(phrase)
    for facet in lexicon.FACETS
    for phrases in facet.values.values()
    for phrase in set(phrases)
    for role in facet.roles
  ]
  assert len(keys) == len(set(keys)) == len(lexicon.surface_keys())


def test_lines_around_the_claims_claim_nothing(parser):
  for line in LINES:
    assert parser.parse(line) == []
    hooks = [w for w in lexicon.split_words(line) if w in lexicon.HOOK_WORDS]
    hooked = line in lexicon.HOOKED_OPENERS + lexicon.HOOKED_ENDINGS
    assert len(hooks) == hooked, line


def test_roles_share_professions_and_swapping_keeps_the_bag(parser):
  hero = lexicon.VALUE_OFFSETS[lexicon.HERO]
  rival = lexicon.VALUE_OFFSETS[lexicon.RIVAL]
  names = list(lexicon.FACETS[lexicon.HERO].values)
  assert names == list(lexicon.FACETS[lexicon.RIVAL].values)
  text = 'It follows a thief hunted by a detective.'
  swapped = 'It follows a detective hunted by a thief.'
  thief, detective = names.index('thief'), names.index('detective')
  assert parser.parse(text) == [hero + thief, rival + detective]
  assert parser.parse(swapped) == [hero + detective, rival + thief]
  assert sorted(lexicon.split_words(text)) == sorted(
    lexicon.split_words(swapped)
  )


def test_plots_state_every_value_and_deny_the_distractor(world, parser):
  denied = 0
  for values, distractor, plot in zip(
    world.attributes, world.distractors, world.plots
  ):
    assert sorted(parser.parse(plot)) == sorted(values), plot
    assert plots.MIN_PLOT_WORDS <= len(plot.split()) <= plots.MAX_PLOT_WORDS
    if distractor >= 0:
      assert distractor not in values
      phrases = lexicon.plot_phrases(distractor)
      assert any(phrase in plot.lower() for phrase in phrases), plot
      denied += 1
  rate, num = world.config.distractor_rate, len(world.plots)
  assert abs(denied - rate * num) < 4 * np.sqrt(num * rate * (1 - rate))


def test_bullets_say_the_extremes_of_the_taste(world, parser):
  for user in range(40):
    bullets = world.bullets(user)
    assert len(bullets) == 10
    assert max(len(bullet.split()) for bullet in bullets) <= 8
    order = np.argsort(-world.tastes[user])
    said = [parser.parse(bullet) for bullet in bullets]
    assert said[:5] == [[value] for value in order[:5]]
    assert said[5:] == [[value] for value in order[:-6:-1]]
    liked = [b.lower().startswith(lexicon.LIKE_VERBS) for b in bullets]
    assert liked == [True] * 5 + [False] * 5


def test_world_has_500_to_700_words(world):
  texts = list(world.plots) + list(world.titles) + list(LINES)
  texts += [b for user in range(world.num_users) for b in world.bullets(user)]
  texts += [lexicon.label_of(value) for value in range(lexicon.NUM_VALUES)]
  texts.append(pitches.render_claims(range(lexicon.NUM_VALUES)))
  words = {word for text in texts for word in lexicon.split_words(text)}
  assert 500 <= len(words) <= 700


def test_every_three_claims_fit_a_pitch():
  """The writer draws lines until the length fits: it must be able to."""
  lengths = [
    [
      _words(pitches.render_claims([value]))
      for value in range(lexicon.NUM_VALUES)
      if lexicon.VALUE_FACETS[value] == facet
    ]
    for facet in range(lexicon.NUM_FACETS)
  ]
  longest = sum(sorted(map(max, lengths))[-3:])
  shortest = sum(sorted(map(min, lengths))[:3])
  for openers in (lexicon.HOOKED_OPENERS, lexicon.PLAIN_OPENERS):
    for endings in (lexicon.HOOKED_ENDINGS, lexicon.PLAIN_ENDINGS):
      least = min(map(_words, openers)) + min(map(_words, endings)) + 1
      most = max(map(_words, openers)) + max(map(_words, endings)) + 1
      assert longest + least <= pitches.MAX_PITCH_WORDS
      assert shortest + most >= pitches.MIN_PITCH_WORDS


def test_titles_do_not_repeat():
  titles, years = plots.draw_titles(5000, np.random.default_rng(0))
  assert len({title.rsplit(' (', 1)[0] for title in titles}) == 5000
  assert all(t.endswith(f'({year})') for t, year in zip(titles, years))


def _words(line: str) -> int:
  return len(line.split())
