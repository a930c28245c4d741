"""The words of the synthetic world: facets, their values, how texts say them.

An item has one value of each of the eight facets. A value is written by one of
three surface phrases: plots use the first two, pitches the last two, so a
pitch often names a fact in words that the plot does not hold (a lexical gap
that overlapping words cannot bridge). `hero` and `rival` share one set of
professions and differ only by the words before the noun: "it follows a thief
hunted by a detective" and its reverse hold the same bag of words.

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
    values: value name -> its three phrases, articles included.
    pitch_clauses: clauses of pitches; '{}' takes the phrase.
    denials: clauses of plots that mention a value the item does not have.
    plot_clauses: clauses of plots (hero and rival share whole sentences there,
      see plots.py).
    bullet: how a preference bullet names the value.
    markers: words that must stand before the phrase to make it a claim; empty
      when the phrase is a claim by itself.
  """

  name: str
  values: dict[str, tuple[str, str, str]]
  pitch_clauses: tuple[str, ...]
  denials: tuple[str, ...]
  plot_clauses: tuple[str, ...] = ()
  bullet: str = '{}'
  markers: tuple[str, ...] = ()


_PROFESSIONS = {
  'thief': ('a thief', 'a burglar', 'a crook'),
  'detective': ('a detective', 'a sleuth', 'a policeman'),
  'soldier': ('a soldier', 'a trooper', 'a warrior'),
  'doctor': ('a doctor', 'a surgeon', 'a healer'),
  'sailor': ('a sailor', 'a captain', 'a seaman'),
  'teacher': ('a teacher', 'a professor', 'a tutor'),
  'writer': ('a writer', 'a novelist', 'a poet'),
  'priest': ('a priest', 'a monk', 'a preacher'),
}

FACETS = (
  Facet(
    'genre',
    {
      'Comedy': ('a comedy', 'a funny film', 'a laugh riot'),
      'Drama': ('a drama', 'a serious film', 'a grave play'),
      'Horror': ('a horror film', 'a scary story', 'a fright show'),
      'Romance': ('a romance', 'a love story', 'a tender courtship'),
      'Sci-Fi': ('a science fiction film', 'a robot story', 'a future tale'),
      'Thriller': ('a thriller', 'a suspense story', 'a nail biter'),
      'Western': ('a western', 'a cowboy story', 'a frontier tale'),
      'Musical': ('a musical', 'a singing film', 'a song revue'),
    },
    plot_clauses=('this is {}', 'it plays as {}'),
    pitch_clauses=('it is {}', 'you get {}'),
    denials=('at first it looks like {}', 'it was sold as {}'),
  ),
  Facet(
    'setting',
    {
      'harbour': ('a harbour town', 'a fishing port', 'the old docks'),
      'desert': ('the desert', 'a sea of sand', 'the burning dunes'),
      'city': ('a big city', 'a crowded metropolis', 'the neon streets'),
      'forest': ('a deep forest', 'the green woods', 'the tall pines'),
      'mountain': ('the mountains', 'a snowy valley', 'the high peaks'),
      'island': ('a lonely island', 'a coral beach', 'the palm shore'),
      'space': ('a space station', 'an orbiting base', 'the outer planets'),
      'farm': ('a quiet farm', 'a country village', 'the wheat fields'),
    },
    plot_clauses=('it is set in {}', 'it unfolds in {}'),
    pitch_clauses=('it visits {}', 'it is set in {}'),
    denials=('someone dreams of {}', 'they never reach {}'),
    bullet='stories set in {}',
  ),
  Facet(
    'mood',
    {
      'dark': ('dark', 'gloomy', 'bleak'),
      'warm': ('warm', 'gentle', 'cosy'),
      'tense': ('tense', 'nervous', 'edgy'),
      'dreamy': ('dreamy', 'misty', 'hazy'),
      'ironic': ('ironic', 'witty', 'sly'),
      'wild': ('wild', 'rowdy', 'crazy'),
    },
    plot_clauses=('the mood is {}', 'the tone stays {}'),
    pitch_clauses=('it feels {}', 'the mood is {}'),
    denials=('it never turns {}', 'the tone is far from {}'),
    bullet='moods that are {}',
  ),
  Facet(
    'hero',
    _PROFESSIONS,
    pitch_clauses=('you root for {}', 'the hero is {}'),
    denials=('an old friend is {}', 'one scene shows {}'),
    bullet='heroes like {}',
    markers=('follows', 'hero is', 'root for', 'heroes like'),
  ),
  Facet(
    'rival',
    _PROFESSIONS,
    pitch_clauses=('they are up against {}', 'the rival is {}'),
    denials=('an old friend is {}', 'one scene shows {}'),
    bullet='rivals like {}',
    markers=('hunted by', 'rival is', 'up against', 'rivals like'),
  ),
  Facet(
    'theme',
    {
      'revenge': ('revenge', 'an old grudge', 'cold vengeance'),
      'friendship': ('friendship', 'loyal friends', 'a lasting bond'),
      'love': ('true love', 'a secret passion', 'two hearts'),
      'greed': ('greed', 'stolen gold', 'hungry ambition'),
      'freedom': ('freedom', 'a brave escape', 'breaking chains'),
      'family': ('family', 'lost brothers', 'blood ties'),
      'memory': ('memory', 'forgotten days', 'a buried past'),
      'honour': ('honour', 'a sworn duty', 'a noble promise'),
    },
    plot_clauses=('it deals with {}', 'it tells of {}'),
    pitch_clauses=('it speaks of {}', 'it deals with {}'),
    denials=('it has no time for {}', 'nobody talks of {}'),
    bullet='films about {}',
  ),
  Facet(
    'pace',
    {
      'slow': ('slow', 'unhurried', 'drifting'),
      'steady': ('steady', 'regular', 'measured'),
      'brisk': ('brisk', 'lively', 'quick'),
      'frantic': ('frantic', 'breathless', 'racing'),
      'rhythmic': ('rhythmic', 'pulsing', 'swinging'),
      'jumpy': ('jumpy', 'restless', 'jagged'),
    },
    plot_clauses=('the pace is {}', 'the scenes are {}'),
    pitch_clauses=('the pace is {}', 'the rhythm is {}'),
    denials=('it never gets {}', 'the pace is far from {}'),
    bullet='pacing that is {}',
  ),
  Facet(
    'ending',
    {
      'happy': ('a happy ending', 'joy for all', 'a joyful embrace'),
      'tragic': ('a tragic ending', 'bitter tears', 'a sad farewell'),
      'twist': ('a final twist', 'a sudden surprise', 'a shock discovery'),
      'open': ('an open ending', 'unanswered questions', 'an unsolved riddle'),
      'wedding': ('a wedding', 'a grand marriage', 'ringing bells'),
      'victory': ('a great victory', 'a hard triumph', 'a winning moment'),
    },
    plot_clauses=('it ends with {}', 'the last act brings {}'),
    pitch_clauses=('it ends with {}', 'you can wait for {}'),
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
VALUE_FACETS = tuple(f for f in range(NUM_FACETS) for _ in range(FACET_SIZES[f]))
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
  'Mighty Polite Solemn Thirsty'
).split()
TITLE_NOUNS = (
  'Anchor Arrow Bridge Candle Clock Compass Crown Door Echo Feather Garden '
  'Glass Hammer Horizon Key Ladder Lantern Letter Mask Mirror Moon Needle '
  'Orchard Puzzle Pearl Piano Raven Ribbon River Shadow Spark Star Statue '
  'Thunder Tower Umbrella Violin Wheel Window Whisper Balloon Basket Button '
  'Carpet Castle Curtain Diamond Engine Fountain Harvest Kettle Market Notebook '
  'Palace Pocket Rocket Saddle Scissors Sparrow Telephone Tulip Tunnel '
  'Turtle Vase Vault Wagon Walnut Willow Zebra Acorn Blanket Cabin '
  'Calendar Cherry Dragon Elephant Feast Gallery Harp Icicle Jacket Kite '
  'Lemon Medal'
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

  Role facets are expanded with their markers: 'hunted by thief' is a claim
  about the rival, 'thief' alone is none.
  """
  keys = {}
  for facet, offset in zip(FACETS, VALUE_OFFSETS):
    for index, phrases in enumerate(facet.values.values()):
      for phrase in phrases:
        noun = ' '.join(drop_articles(split_words(phrase)))
        for marker in facet.markers or ('',):
          keys[f'{marker} {noun}'.strip()] = offset + index
  return keys


def plot_phrases(value: int) -> tuple[str, str]:
  """The two phrases by which plots name a value."""
  return VALUE_PHRASES[value][:2]


def pitch_phrases(value: int) -> tuple[str, str]:
  """The two phrases by which pitches and bullets name a value."""
  return VALUE_PHRASES[value][1:]


def label_of(value: int) -> str:
  """A short keyword for a value: 'harbour town', 'thief hero'."""
  words = ' '.join(drop_articles(split_words(VALUE_PHRASES[value][0])))
  facet = VALUE_FACETS[value]
  return f'{words} {FACET_NAMES[facet]}' if FACETS[facet].markers else words
