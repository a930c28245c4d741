"""What the models read: every prompt of P4LM, in one place.

SeqIO tasks, RL and inference build their prompts here, so that a model is
never shown another wording than it was trained with. CF vectors enter where
the placeholder `SOFT` stands; the placeholders come first, so cutting a long
prompt at its end never loses one. Texts passed in cannot add placeholders:
`clean_text` takes all angle brackets out of them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

SOFT = '<extra_id_0>'
# Longer plots are cut: a prompt's cost grows with every token.
MAX_PLOT_WORDS = 80

# The tokenizer normalises texts (NFKC) and may find a placeholder only
# afterwards, so these are all characters that become an angle bracket.
_BRACKETS = '<>\uff1c\uff1e\ufe64\ufe65'
_MARKUP = re.compile(f'[{_BRACKETS}][^{_BRACKETS}]{{0,40}}[{_BRACKETS}]')
_TO_SPACE = str.maketrans(dict.fromkeys(_BRACKETS, ' '))
_ARTICLE = re.compile(
  r'^(?P<rest>.*), (?P<article>The|A|An|Les|Le|La|Il|Der|Die|Das|El|Los)'
  r'(?P<end>( \(.*\))*)$'
)


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A prompt and the kinds of the CF vectors that it expects.

  Attributes:
    text: with `SOFT` once for each soft token.
    cf_kinds: 'user' or 'item' for each CF vector, in order of placeholders.
  """

  text: str
  cf_kinds: tuple[str, ...] = ()


def clean_text(text: str) -> str:
  """One line without markup, in which no placeholder can hide.

  >>> clean_text('A <i>quiet</i>\\n town <extra_id_0>.')
  'A quiet town .'
  """
  text = _MARKUP.sub(' ', text)
  return ' '.join(text.translate(_TO_SPACE).split())


def shorten(text: str, max_words: int) -> str:
  """At most `max_words` words, ending with a sentence where one ends late.

  >>> shorten('One two three. Four five six.', 4)
  'One two three.'
  >>> shorten('One. Two three four five.', 4)
  'One. Two three four'
  """
  words = text.split()
  if len(words) <= max_words:
    return ' '.join(words)
  for end in range(max_words, max_words // 2, -1):
    if words[end - 1].rstrip('"\')')[-1:] in ('.', '!', '?'):
      return ' '.join(words[:end])
  return ' '.join(words[:max_words])


def display_title(title: str) -> str:
  """A title with its article in front, as it is spoken.

  >>> display_title('Usual Suspects, The (1995)')
  'The Usual Suspects (1995)'
  """
  match = _ARTICLE.match(clean_text(title))
  if match is None:
    return clean_text(title)
  return f'{match["article"]} {match["rest"]}{match["end"]}'


def plot_prompt(tokens_per_vector: int = 1) -> Prompt:
  """Item vector -> plot: trains the adapter W_I."""
  return _soft_prompt('plot:', ('item',), tokens_per_vector)


def preferences_prompt(tokens_per_vector: int = 1) -> Prompt:
  """User vector -> preference bullets: trains the adapter W_U."""
  return _soft_prompt('likes:', ('user',), tokens_per_vector)


def title_plot_prompt(item: Mapping[str, object]) -> Prompt:
  """Title -> plot: `plot_prompt` with words in the item vector's place."""
  return Prompt(f'item: {display_title(str(item["title"]))} plot:')


def preferences_plain_prompt() -> Prompt:
  """Nothing -> preference bullets of some user."""
  return Prompt('user: likes:')


def preferences_text(preferences: Sequence[str]) -> str:
  """The bullets as one text: the target of `preferences_prompt`.

  >>> preferences_text(['enjoys westerns', 'avoids musicals.'])
  'enjoys westerns; avoids musicals'
  """
  bullets = (clean_text(bullet).rstrip('.;') for bullet in preferences)
  return '; '.join(bullet for bullet in bullets if bullet)


def pitch_prompt(
  item: Mapping[str, object], tokens_per_vector: int = 1
) -> Prompt:
  """User and item vectors, title, plot -> pitch.

  Args:
    item: a row of `items.parquet`; title and plot are read.
    tokens_per_vector: placeholders for each CF vector.
  """
  return _soft_prompt(
    f'{_item_text(item)} pitch:', ('user', 'item'), tokens_per_vector
  )


def pitch_plain_prompt(item: Mapping[str, object]) -> Prompt:
  """Title and plot -> a pitch for nobody in particular."""
  return Prompt(f'{_item_text(item)} pitch:')


def pitch_text_prompt(
  item: Mapping[str, object], preferences: Sequence[str]
) -> Prompt:
  """Preference bullets, title, plot -> pitch; no CF vectors (SFT-Text)."""
  likes = preferences_text(preferences)
  return Prompt(f'likes: {likes} {_item_text(item)} pitch:')


def weighted_prompt(prompt: Prompt, parts: Mapping[str, int]) -> Prompt:
  """The prompt after the weights of what its response is to be good at.

  In front, where no cut at the end reaches them. Each name is said as often as
  its weight: a model that has not learned to count reads it by how much of its
  attention falls on the name. (Written as numbers, "nli 2 appeal 1", a small T5
  had learned nothing of opposed weights when by names it followed them.)

  >>> weighted_prompt(Prompt('pitch:'), {'nli': 2, 'appeal': 1}).text
  'weights: nli nli appeal pitch:'

  Args:
    prompt: any.
    parts: {name: whole number}, in the order in which a model knows them.
  """
  words = [clean_text(name) for name, n in parts.items() for _ in range(n)]
  text = f'weights: {" ".join(words)} {prompt.text}'
  return dataclasses.replace(prompt, text=text)


def nli_prompt(premise: str) -> Prompt:
  """The premise (a plot) that the response must be entailed by."""
  premise = shorten(clean_text(premise), MAX_PLOT_WORDS)
  return Prompt(f'premise: {premise} hypothesis:')


def appeal_prompt() -> Prompt:
  """How appealing is the response by itself?"""
  return Prompt('appeal:')


def personalization_prompt(
  item: Mapping[str, object], tokens_per_vector: int = 1
) -> Prompt:
  """How well does the response sell the item to this user?

  The prompt of the pitch itself: a reward model that starts from a writer then
  reads user and item as it did when it wrote.
  """
  return pitch_prompt(item, tokens_per_vector)


def relevance_prompt(
  item: Mapping[str, object], tokens_per_vector: int = 1
) -> Prompt:
  """How close is the response to what the user likes about such items?"""
  return pitch_prompt(item, tokens_per_vector)


def _item_text(item: Mapping[str, object]) -> str:
  title = display_title(str(item['title']))
  plot = shorten(clean_text(str(item['plot'])), MAX_PLOT_WORDS)
  return f'title: {title} plot: {plot}'


def _soft_prompt(
  rest: str, kinds: tuple[str, ...], tokens_per_vector: int
) -> Prompt:
  if tokens_per_vector < 1:
    raise ValueError(
      f'tokens_per_vector must be at least 1, got {tokens_per_vector}'
    )
  # The tokenizer knows a placeholder only at the start of a word.
  soft = ' '.join([SOFT] * tokens_per_vector)
  heads = ' '.join(f'{kind}: {soft}' for kind in kinds)
  return Prompt(f'{heads} {rest}', kinds)
