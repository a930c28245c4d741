"""Words for attributes: forms of the genres, and which keywords are unfit."""

from __future__ import annotations

import re

# genre: (singular forms without article, plural forms). Each form holds the
# genre's own word, so that texts about a genre have a word in common.
GENRES = {
  'action': (('action film', 'action ride'), ('action films', 'action rides')),
  'adventure': (
    ('adventure', 'adventure film'),
    ('adventures', 'adventure films'),
  ),
  'animation': (
    ('animation film', 'animation feature'),
    ('animation films', 'animation features'),
  ),
  'children': (
    ('children film', 'film for children'),
    ('children films', 'films for children'),
  ),
  'comedy': (('comedy', 'comedy film'), ('comedies', 'comedy films')),
  'crime': (('crime film', 'crime story'), ('crime films', 'crime stories')),
  'documentary': (
    ('documentary', 'documentary film'),
    ('documentaries', 'documentary films'),
  ),
  'drama': (('drama', 'serious drama'), ('dramas', 'serious dramas')),
  'fantasy': (('fantasy', 'fantasy film'), ('fantasies', 'fantasy films')),
  'film-noir': (('film noir', 'noir'), ('noir films', 'noirs')),
  'horror': (('horror film', 'horror story'), ('horror films', 'horror')),
  'musical': (('musical', 'musical film'), ('musicals', 'musical films')),
  'mystery': (('mystery', 'mystery film'), ('mysteries', 'mystery films')),
  'romance': (('romance', 'romance film'), ('romances', 'romance films')),
  'sci-fi': (('sci-fi film', 'sci-fi story'), ('sci-fi films', 'sci-fi')),
  'thriller': (('thriller', 'tense thriller'), ('thrillers', 'thriller films')),
  'war': (('war film', 'war story'), ('war films', 'war stories')),
  'western': (('western', 'western film'), ('westerns', 'western films')),
}

# Tags that describe a manner: 'a quirky film' rather than 'a quirky story'.
TONES = frozenset(
  'atmospheric bittersweet bleak cerebral creepy dark disturbing dreamlike '
  'emotional feel-good gritty hallucinatory heartbreaking heartwarming '
  'imaginative inspirational intense intellectual intelligent ironic '
  'melancholic melancholy minimalist moving nostalgic offbeat poignant '
  'psychedelic quirky realistic reflective sad sarcastic sentimental slow '
  'stylish stylized surreal suspenseful tense thought-provoking touching '
  'tragic uplifting visceral weird whimsical witty'.split()
)

# About the production, a judgement, nothing that a pitch should sell with, or
# a trait that should not be guessed of a user.
_UNFIT = frozenset(
  """
  3d aftercreditsstinger alcohol anthropomorphism author bad bank bar bd-r
  bibliotek black-and-white blood boring breast car children cinematography
  classic clv cowardliness criterion cult death dog duringcreditsstinger
  excellent experimental exploitation family female fight flop friends funny
  future gay good gore great gun hoodlum hospital imax incest individual jew
  kiss lesbian lgbt lie love masturbation mindfuck money netflix overrated
  party pedophilia porn pornography predictable prostitute prostitution rape
  remake science sequel sex sexuality short single soundtrack stupid suicide
  suspense teenager torture trilogy twist underrated violence wife
  """.split()
)
_UNFIT_PHRASES = (
  'based on',
  'best ',
  'black and white',
  'black people',
  'box office',
  'character name',
  'dvd',
  'dying and death',
  'extreme violence',
  'film noir',
  'imdb',
  'independent film',
  'in netflix',
  'netflix',
  'no dialogue',
  'nudity',
  'national film',
  'oscar',
  'science fiction',
  'seen ',
  'suicide ',
  'sexual',
  'silent film',
  'top 250',
  'twist ending',
  'visually',
  'woman director',
)
_BAD_SHAPE = re.compile(r"[^a-z0-9 .'&-]|\b(story|stories|film|films|movie)$")
_CAPITALS = (
  'africa|america|australia|berlin|bible|boston|british|california|'
  'chicago|china|christmas|cia|cold war|dc|disney|england|fbi|'
  'florida|france|germany|halloween|hollywood|holocaust|hong kong|'
  'india|ireland|italy|japan|las vegas|london|los angeles|manhattan|'
  'marvel|mexico|miami|nazi|nazis|new york|new york city|nypd|'
  'paris|rome|russia|san francisco|scotland|shakespeare|spain|texas|'
  'usa|vietnam|washington d.c.|world war i|world war ii'
).split('|')
_CAPITAL = re.compile(
  r'\b(' + '|'.join(map(re.escape, sorted(_CAPITALS, key=len)[::-1])) + r')\b'
)
_ALL_UPPER = frozenset('cia dc fbi nypd usa i ii d.c.'.split())


def is_unfit(keyword: str) -> bool:
  """Whether a keyword or tag is no theme to write about.

  >>> is_unfit('based on novel'), is_unfit('heist')
  (True, False)
  """
  return (
    keyword in _UNFIT
    or keyword in GENRES
    or not 3 <= len(keyword) <= 24
    or keyword.count(' ') > 2
    or _BAD_SHAPE.search(keyword) is not None
    or any(phrase in keyword for phrase in _UNFIT_PHRASES)
  )


def spoken(theme: str) -> str:
  """The theme as written in a sentence: names with capitals.

  >>> spoken('new york city'), spoken('fbi agent'), spoken('heist')
  ('New York City', 'FBI agent', 'heist')
  """
  return _CAPITAL.sub(lambda match: _capital(match[0]), theme)


def _capital(name: str) -> str:
  return ' '.join(
    word.upper() if word in _ALL_UPPER else word.capitalize()
    for word in name.split()
  )
