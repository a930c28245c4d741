"""The phrases of the template writer. {p} is a plural, {a} {b} {c} claims."""

from __future__ import annotations

# Addressed to the user; says nothing of the film.
OPENERS = (
  'If you enjoy {p}, try this one:',
  'A treat for anyone fond of {p}:',
  'Made for lovers of {p}:',
  'You like {p}, so here is your next film:',
  'Here is one for fans of {p}:',
)
# For a taste that the film does not serve.
OPENERS_BEYOND = (
  'Usually after {p}? Take this detour:',
  'A change of pace for a fan of {p}:',
  'Beyond your {p}, give this a chance:',
  'For a night away from {p}:',
)
CLAIMS = (
  (
    'It is {a}.',
    'This is {a} through and through.',
    'Expect {a}.',
    'At heart it is {a}.',
  ),
  (
    'It is {a} and {b}.',
    'Expect {a} with the pull of {b}.',
    'Part {a0}, part {b0}.',
    'At heart it is {a}, and {b} too.',
  ),
  (
    'It is {a}, {b} and {c}.',
    'Expect {a}, {b} and {c} in one.',
    'Part {a0}, part {b0}, part {c0}.',
    'At heart it is {a}, with {b} and {c}.',
  ),
)
ADJECTIVES = (
  'gripping',
  'dazzling',
  'heartfelt',
  'razor-sharp',
  'haunting',
  'electrifying',
  'spellbinding',
  'breathless',
)
HOOKS = (
  'You will not look away.',
  'Its last scene stays with you for days.',
  'Turn off your phone and hold on tight.',
  'Watch it tonight and thank me tomorrow.',
  'The ending alone is worth the ride.',
  'Few films earn such a wide grin.',
)
# A flat text names the film's kind and nothing else.
FLAT = (
  'This is a film. It has {a0} in it. It is fine.',
  'It is {a}. That is all there is to say.',
  'There is a movie. The movie is {a}. Some people watch it.',
  'A film about things that happen. It is {a}.',
)
# Praise without a claim about the film.
EMPTY = (
  'Do not miss it! It is great, it is really great, you will love it.',
  'One of the best films ever made. Watch it now, watch it tonight.',
  'Simply amazing. Everyone should see this. You will be so happy you did.',
  'Trust me, this is the perfect choice for you. It has everything.',
)

LIKES = ('enjoys', 'loves', 'is drawn to', 'seeks out', 'returns to')
DISLIKES = (
  'avoids',
  'rarely enjoys',
  'is tired of',
  'skips',
  'has no patience for',
)
# When a user has rated too few films to say more.
LIKES_FILLERS = (
  'is open to new films',
  'values a good plot',
  'enjoys strong performances',
  'likes to be surprised',
  'watches old and new films',
)
DISLIKES_FILLERS = (
  'dislikes weak endings',
  'avoids films without ideas',
  'skips what drags on',
  'is tired of repetition',
  'has no patience for clumsy dialogue',
)

_VOWEL_SOUND = ('fbi', 'nypd', 'x-', 'hour', 'heir', 'honest')
_CONSONANT_SOUND = ('uni', 'use', 'usa', 'usual', 'euro', 'one', 'u.s')


def with_article(phrase: str) -> str:
  """'a' or 'an' by the sound of the first word.

  >>> with_article('FBI story'), with_article('USA tale')
  ('an FBI story', 'a USA tale')
  """
  lowered = phrase.lower()
  if lowered.startswith(_VOWEL_SOUND):
    return f'an {phrase}'
  vowel = lowered[0] in 'aeiou' and not lowered.startswith(_CONSONANT_SOUND)
  return f'{"an" if vowel else "a"} {phrase}'
