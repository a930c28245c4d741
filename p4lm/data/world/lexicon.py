"""The words of the synthetic world: facets, their values, how texts say them.

An item has one value of each of the eight facets. Plots write a value by
either of two phrases, pitches and bullets by a third, which for most values
shares no word with the two (a lexical gap that overlapping words cannot
bridge) and for some is one of them. `hero` and `rival` share one set of
professions and differ only by the words around the noun: "it follows a thief
hunted by a detective" and its reverse hold the same bag of words.

Two choices let a model of a few hundred thousand weights learn to write within
some hundred steps: a value has one wording in pitches, and outside the roles
it comes first in its clause ("gloomy in mood"), so that choosing what to
praise is choosing the next word, where what the item has and what the user
likes add up in one softmax.

A value is addressed by its *value id*, its position in the concatenation of
all facets' values (`VALUE_OFFSETS[facet] + index`).
"""

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Facet:
  """One kind of attribute and every way of writing it.

  Attributes:
    name: what the facet is about.
    values: value name -> (a phrase of plots, another, the phrase of pitches).
    pitch_clause: clause of pitches; '{}' takes the phrase.
    denials: clauses of plots that mention a value the item does not have.
    plot_clauses: clauses of plots (hero and rival share whole sentences there,
      see plots.py).
    bullet: how a preference bullet names the value.
    roles: the words around the phrase that make it a claim; ('{}',) when the
      phrase is a claim by itself.
  """

  name: str
  values: dict[str, tuple[str, str, str]]
  pitch_clause: str
  denials: tuple[str, ...]
  plot_clauses: tuple[str, ...]
  bullet: str = '{}'
  roles: tuple[str, ...] = ('{}',)


_PROFESSIONS = {
  'thief': ('a thief', 'a clever thief', 'a burglar'),
  'detective': ('a detective', 'a weary detective', 'a sleuth'),
  'soldier': ('a soldier', 'a proud soldier', 'a soldier'),
  'doctor': ('a doctor', 'a country doctor', 'a surgeon'),
  'sailor': ('a sailor', 'a bearded sailor', 'a captain'),
  'teacher': ('a teacher', 'a strict teacher', 'a professor'),
  'writer': ('a writer', 'a poor writer', 'a writer'),
  'priest': ('a priest', 'a humble priest', 'a monk'),
}

FACETS = (
  Facet(
    'genre',
    {
      'Comedy': ('a comedy', 'a light comedy', 'a laugh riot'),
      'Drama': ('a drama', 'a serious drama', 'a grave play'),
      'Horror': ('a horror film', 'a horror tale', 'a fright show'),
      'Romance': ('a romance', 'a tender romance', 'a love story'),
      'Sci-Fi': ('science fiction', 'pure science fiction', 'a future tale'),
      'Thriller': ('a thriller', 'a sharp thriller', 'a nail biter'),
      'Western': ('a western', 'a classic western', 'a western'),
      'Musical': ('a musical', 'a stage musical', 'a musical'),
    },
    plot_clauses=('this is {}', 'it plays as {}'),
    pitch_clause='{} at heart',
    denials=('at first it looks like {}', 'it was sold as {}'),
  ),
  Facet(
    'setting',
    {
      'harbour': ('a harbour', 'an old harbour', 'the docks'),
      'desert': ('a desert', 'a vast desert', 'a desert'),
      'city': ('a city', 'a crowded city', 'the metropolis'),
      'forest': ('a forest', 'a deep forest', 'the woods'),
      'mountain': ('the mountains', 'the high mountains', 'the peaks'),
      'island': ('an island', 'a lonely island', 'an island'),
      'space': ('a space station', 'a space base', 'the planets'),
      'farm': ('a farm', 'a quiet farm', 'the fields'),
    },
    plot_clauses=('it is set in {}', 'it unfolds in {}'),
    pitch_clause='{} as backdrop',
    denials=('someone dreams of {}', 'they never reach {}'),
    bullet='stories set in {}',
  ),
  Facet(
    'mood',
    {
      'dark': ('dark', 'very dark', 'gloomy'),
      'warm': ('warm', 'truly warm', 'warm'),
      'tense': ('tense', 'deeply tense', 'nervous'),
      'dreamy': ('dreamy', 'softly dreamy', 'hazy'),
      'ironic': ('ironic', 'drily ironic', 'witty'),
      'wild': ('wild', 'utterly wild', 'wild'),
    },
    plot_clauses=('the mood is {}', 'the tone stays {}'),
    pitch_clause='{} in mood',
    denials=('it never turns {}', 'the tone is far from {}'),
    bullet='moods that are {}',
  ),
  Facet(
    'hero',
    _PROFESSIONS,
    plot_clauses=('it follows {}', 'the hero is {}'),
    pitch_clause='the hero is {}',
    denials=('an old friend is {}', 'one scene shows {}'),
    bullet='heroes like {}',
    roles=('follows {}', 'hero is {}', 'heroes like {}'),
  ),
  Facet(
    'rival',
    _PROFESSIONS,
    plot_clauses=('all are hunted by {}', 'the rival is {}'),
    pitch_clause='the rival is {}',
    denials=('an old friend is {}', 'one scene shows {}'),
    bullet='rivals like {}',
    roles=('hunted by {}', 'rival is {}', 'rivals like {}'),
  ),
  Facet(
    'theme',
    {
      'revenge': ('revenge', 'cold revenge', 'a grudge'),
      'friendship': ('friendship', 'loyal friendship', 'friendship'),
      'love': ('first love', 'true love', 'passion'),
      'greed': ('greed', 'blind greed', 'ambition'),
      'freedom': ('freedom', 'sudden freedom', 'an escape'),
      'family': ('a family', 'a divided family', 'a family'),
      'memory': ('memory', 'a lost memory', 'the past'),
      'honour': ('honour', 'wounded honour', 'a duty'),
    },
    plot_clauses=('it deals with {}', 'it tells of {}'),
    pitch_clause='{} as theme',
    denials=('it has no time for {}', 'nobody talks of {}'),
    bullet='films about {}',
  ),
  Facet(
    'pace',
    {
      'slow': ('slow', 'rather slow', 'unhurried'),
      'steady': ('steady', 'fairly steady', 'steady'),
      'brisk': ('brisk', 'nicely brisk', 'quick'),
      'frantic': ('frantic', 'almost frantic', 'racing'),
      'pulsing': ('pulsing', 'strongly pulsing', 'swinging'),
      'jumpy': ('jumpy', 'slightly jumpy', 'restless'),
    },
    plot_clauses=('the pace is {}', 'the scenes are {}'),
    pitch_clause='{} in pace',
    denials=('it never gets {}', 'the pace is far from {}'),
    bullet='pacing that is {}',
  ),
  Facet(
    'ending',
    {
      'happy': ('a reunion', 'a happy reunion', 'joy'),
      'tragic': ('tears', 'bitter tears', 'sorrow'),
      'twist': ('a twist', 'a final twist', 'a surprise'),
      'open': ('questions', 'open questions', 'a riddle'),
      'wedding': ('a wedding', 'a grand wedding', 'a wedding'),
      'victory': ('a victory', 'a hard victory', 'a triumph'),
    },
    plot_clauses=('it ends with {}', 'the last act brings {}'),
    pitch_clause='{} at the end',
    denials=('nobody gets {}', 'it refuses {}'),
    bullet='films ending with {}',
  ),
)

FACET_NAMES = tuple(facet.name for facet in FACETS)
FACET_SIZES = tuple(len(facet.values) for facet in FACETS)
VALUE_OFFSETS = tuple(sum(FACET_SIZES[:f]) for f in range(len(FACETS)))
NUM_FACETS = len(FACETS)
NUM_VALUES = sum(FACET_SIZES)
HERO, RIVAL = FACET_NAMES.index('hero'), FACET_NAMES.index('rival')
VALUE_FACETS = tuple(
  f for f in range(NUM_FACETS) for _ in range(FACET_SIZES[f])
)
VALUE_NAMES = tuple(
  f'{facet.name}:{name}' for facet in FACETS for name in facet.values
)
VALUE_PHRASES = tuple(
  phrases for facet in FACETS for phrases in facet.values.values()
)

# A phrase right after one of these is mentioned but not claimed.
DENIERS = (
  'not',
  'no',
  'never',
  'without',
  'hardly',
  'looks like',
  'sold as',
  'dreams of',
  'never reach',
  'never turns',
  'never gets',
  'far from',
  'no time for',
  'nobody talks of',
  'nobody gets',
  'refuses',
)

# A genre of the MovieLens list that goes with a theme or a pace and is no value
# of the genre facet, so that the genres column never contradicts a claim.
SECOND_GENRES = {
  'theme:revenge': 'Crime',
  'theme:family': 'Children',
  'theme:freedom': 'Adventure',
  'theme:memory': 'Mystery',
  'theme:honour': 'War',
  'pace:frantic': 'Action',
}

HOOK_WORDS = (
  'stunning',
  'dazzling',
  'gem',
  'superb',
  'glorious',
  'unforgettable',
  'irresistible',
  'spellbinding',
  'masterpiece',
  'magical',
)

# Every hooked line holds exactly one hook word.
HOOKED_OPENERS = (
  'here is a stunning choice',
  'a dazzling film awaits you',
  'please try this gem tonight',
  'you deserve this superb picture',
  'a glorious pick for you',
  'meet an unforgettable film today',
  'book this magical journey soon',
  'share our newest masterpiece now',
)
PLAIN_OPENERS = (
  'here is one more title',
  'a film to consider tonight',
  'this one might suit you',
  'one more choice this week',
  'you could watch this one',
  'next on our list today',
  'someone left this note here',
  'among other things we offer',
)
HOOKED_ENDINGS = (
  'the result is simply irresistible',
  'expect a spellbinding evening',
  'a masterpiece from start to finish',
  'magical until the credits roll',
  'it stays superb throughout',
  'you will call it dazzling',
  'critics agree on its glorious images',
  'what an unforgettable journey',
)
PLAIN_ENDINGS = (
  'it lasts about two hours',
  'the cinema opens at eight',
  'it is shown again on monday',
  'tickets are sold at the door',
  'there is nothing more to say',
  'seats can be booked by phone',
  'parking is free after six',
  'bring some water and a coat',
)

LIKE_VERBS = ('enjoys', 'loves', 'often picks', 'looks for', 'praises')
AVOID_VERBS = ('avoids', 'dislikes', 'rarely picks', 'skips', 'tires of')

TITLE_ADJECTIVES = (
  'Silent Golden Broken Hidden Crimson Distant Empty Endless Frozen Hollow '
  'Iron Little Midnight Northern Paper Scarlet Silver Velvet Wandering White '
  'Winter Wooden Young Yellow Ancient Bright Copper Electric Foreign Humble '
  'Invisible Marble Purple Crystal Rusty Sleeping Modern Patient Famous Tiny '
  'Mighty Polite Solemn Thirsty Amber Brave Curious Double Faithful '
  'Grateful Hungry Innocent Jolly Lazy'
).split()
TITLE_NOUNS = (
  'Anchor Arrow Bridge Candle Clock Compass Crown Door Echo Feather Garden '
  'Glass Hammer Horizon Key Ladder Lantern Letter Mask Mirror Moon Needle '
  'Orchard Puzzle Pearl Piano Raven Ribbon River Shadow Spark Star Statue '
  'Thunder Tower Umbrella Violin Wheel Window Whisper Balloon Basket Button '
  'Carpet Castle Curtain Diamond Engine Fountain Harvest Kettle Market '
  'Notebook Palace Pocket Rocket Saddle Scissors Sparrow Telephone Tulip '
  'Tunnel Turtle Vase Vault Wagon Walnut Willow Zebra Acorn Blanket Cabin '
  'Calendar Cherry Dragon Elephant Feast Gallery Harp Icicle Jacket Kite '
  'Lemon Medal Nest Ocean Pepper Quilt Robin Sailboat Tiger Uniform Volcano '
  'Wallet Apple Brush Cannon Drum Easel Flute Glove Helmet Ink Jewel Kitchen '
  'Leaf Marathon Nutmeg Oven Pillow Rope Satin Teapot Urn Vinegar Whale '
  'Xylophone Yarn Zipper Almond Beacon Cello Dagger Emerald Falcon Gondola '
  'Hazelnut Ivory Jungle Kimono Lagoon Meadow Nightingale Opal Parrot'
).split()

_WORD = re.compile(r'[a-z]+')
_ARTICLES = frozenset(('a', 'an', 'the'))


def split_words(text: str) -> list[str]:
  """Lowercase words of a text, punctuation and digits dropped.

  >>> split_words("A Comedy, it's set in 1987.")
  ['a', 'comedy', 'it', 's', 'set', 'in']
  """
  return _WORD.findall(text.lower())


def drop_articles(words: list[str]) -> list[str]:
  """The words without a, an and the, which never tell two values apart."""
  return [word for word in words if word not in _ARTICLES]


def surface_keys() -> dict[str, int]:
  """Every claim's words (articles dropped) -> value id.

  Professions are spelled out with the words around them: 'hunted by thief' is
  a claim about the rival, 'follows thief' one about the hero, 'thief' none.
  """
  keys = {}
  for facet, offset in zip(FACETS, VALUE_OFFSETS):
    for index, phrases in enumerate(facet.values.values()):
      for role in facet.roles:
        for phrase in phrases:
          words = split_words(role.format(phrase))
          keys[' '.join(drop_articles(words))] = offset + index
  return keys


def plot_phrases(value: int) -> tuple[str, str]:
  """The two phrases by which plots name a value."""
  return VALUE_PHRASES[value][:2]


def pitch_phrase(value: int) -> str:
  """The phrase by which pitches and bullets name a value."""
  return VALUE_PHRASES[value][2]


def label_of(value: int) -> str:
  """A short keyword for a value: 'harbour', 'thief hero'."""
  words = ' '.join(drop_articles(split_words(VALUE_PHRASES[value][0])))
  facet = VALUE_FACETS[value]
  is_role = facet in (HERO, RIVAL)
  return f'{words} {FACET_NAMES[facet]}' if is_role else words
