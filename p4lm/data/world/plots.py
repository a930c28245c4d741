"""Titles, plots and preference bullets of the world."""

import numpy as np

from p4lm.data.world import lexicon

MIN_PLOT_WORDS, MAX_PLOT_WORDS = 35, 52

_HERO_AND_RIVAL = (
  'it follows {hero} hunted by {rival}',
  'hunted by {rival}, it follows {hero}',
  'the hero is {hero} and the rival is {rival}',
  'the rival is {rival} and the hero is {hero}',
)
_JOINTS = (', and ', ', ', ' while ')


def draw_titles(num: int, rng: np.random.Generator):
  """Titles of the form 'The Silent Anchor (1987)' and their years.

  No two are equal below 200,000 titles.

  Returns:
    list [num] of titles and int16 [num] of years.
  """
  adjectives, nouns = lexicon.TITLE_ADJECTIVES, lexicon.TITLE_NOUNS
  patterns = (
    'The {a} {n}',
    '{n} of the {a} {m}',
    'The {n} and the {a} {m}',
    'One {a} {n} for the {m}',
  )
  grids = [len(adjectives) * len(nouns)]
  grids += [len(adjectives) * len(nouns) * (len(nouns) - 1)] * 3
  # Short titles are a small part of all combinations: a small catalogue takes
  # half its titles from them.
  short = rng.permutation(grids[0])[: num // 2]
  others = rng.permutation(max(sum(grids[1:]), num))[: num - len(short)]
  codes = np.concatenate([short, grids[0] + others % sum(grids[1:])])
  years = rng.integers(1950, 2020, size=num).astype(np.int16)
  titles = []
  for code, year in zip(rng.permutation(codes), years):
    pattern = 0
    while code >= grids[pattern]:
      code -= grids[pattern]
      pattern += 1
    code, adjective = divmod(int(code), len(adjectives))
    second, first = divmod(code, len(nouns))
    other = (first + 1 + second) % len(nouns)
    title = patterns[pattern].format(
      a=adjectives[adjective], n=nouns[first], m=nouns[other]
    )
    titles.append(f'{title} ({year})')
  return titles, years


def render_plot(
  values: np.ndarray, distractor: int, rng: np.random.Generator
) -> str:
  """A plot of 35 to 52 words that states every value of an item.

  Hero and rival share a sentence, the other facets go two by two, at random;
  the distractor, if any, is mentioned in a sentence of its own that denies it.

  Args:
    values: int [facets], value ids of the item.
    distractor: value id to mention and deny, or -1.
    rng: consumed.
  """
  while True:
    text = _compose_plot(values, distractor, rng)
    if MIN_PLOT_WORDS <= len(text.split()) <= MAX_PLOT_WORDS:
      return text


def _compose_plot(values, distractor, rng) -> str:
  phrases = [_pick(lexicon.plot_phrases(value), rng) for value in values]
  others = [
    facet
    for facet in rng.permutation(lexicon.NUM_FACETS)
    if facet not in (lexicon.HERO, lexicon.RIVAL)
  ]
  sentences = []
  for first, second in zip(others[::2], others[1::2]):
    clauses = [
      _pick(lexicon.FACETS[facet].plot_clauses, rng).format(phrases[facet])
      for facet in (first, second)
    ]
    sentences.append(_pick(_JOINTS, rng).join(clauses))
  sentences.append(
    _pick(_HERO_AND_RIVAL, rng).format(
      hero=phrases[lexicon.HERO], rival=phrases[lexicon.RIVAL]
    )
  )
  if distractor >= 0:
    facet = lexicon.FACETS[lexicon.VALUE_FACETS[distractor]]
    phrase = _pick(lexicon.plot_phrases(distractor), rng)
    sentences.append(_pick(facet.denials, rng).format(phrase))
  return join_sentences([sentences[i] for i in rng.permutation(len(sentences))])


def render_bullets(likes, dislikes, rng: np.random.Generator) -> list[str]:
  """One short sentence (at most 8 words) a value, likes first.

  Args:
    likes: value ids, best liked first.
    dislikes: value ids, least liked first.
    rng: consumed.
  """
  bullets = []
  for verbs, values in (
    (lexicon.LIKE_VERBS, likes),
    (lexicon.AVOID_VERBS, dislikes),
  ):
    for value in values:
      facet = lexicon.FACETS[lexicon.VALUE_FACETS[value]]
      noun = facet.bullet.format(lexicon.pitch_phrase(value))
      bullets.append(join_sentences([f'{_pick(verbs, rng)} {noun}']))
  return bullets


def join_sentences(sentences: list[str]) -> str:
  """Capitalises each sentence, ends it with a full stop and joins them."""
  return ' '.join(f'{s[0].upper()}{s[1:]}.' for s in sentences)


def _pick(options, rng: np.random.Generator):
  return options[rng.integers(len(options))]
