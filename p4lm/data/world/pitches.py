"""Writers of pitches: an imperfect one to learn from, a text-only one."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from p4lm.data.world import lexicon
from p4lm.data.world.plots import join_sentences
from p4lm.data.world.simulate import World, facet_slice

MIN_PITCH_WORDS, MAX_PITCH_WORDS = 20, 28
NUM_CLAIMS = 3


@dataclasses.dataclass(frozen=True)
class PitchStyle:
  """How a writer chooses and errs.

  Attributes:
    temperature: of the softmax over taste that chooses what to praise.
    hallucination_rate: probability that a claim is replaced by a false one.
    hook_rate: probability of a hook word in the opener, and in the ending.
  """

  temperature: float
  hallucination_rate: float
  hook_rate: float


class PitchWriter:
  """Praises three facets of an item to a user whose tastes it knows.

  The facets are drawn without replacement, each next one in proportion to
  exp(taste / temperature) of the item's value. Then each claim is made false
  with probability `hallucination_rate`, by `false_value_probabilities`.

  Attributes:
    world: whose items are pitched.
    style: how the writer chooses and errs.
    tastes: [U, V], what the writer believes the users like.
  """

  def __init__(self, world: World, style: PitchStyle, tastes: np.ndarray):
    self.world = world
    self.style = style
    self.tastes = tastes

  def choose_values(self, user: int, item: int, rng) -> list[int]:
    """Value ids of the three claims, false ones included."""
    values = self.world.attributes[item]
    scores = self.tastes[user, values] / self.style.temperature
    # Gumbel noise turns the ranking into draws without replacement.
    order = np.argsort(-(scores + rng.gumbel(size=len(values))))
    return [
      draw_false_value(self.world, item, facet, rng)
      if rng.random() < self.style.hallucination_rate
      else int(values[facet])
      for facet in order[:NUM_CLAIMS]
    ]

  def write(self, user: int, item: int, rng: np.random.Generator) -> str:
    """One pitch of 20 to 28 words."""
    values = self.choose_values(user, item, rng)
    hooks = rng.random(2) < self.style.hook_rate
    return render_pitch(values, hooks[0], hooks[1], rng)


def demonstrator(world: World) -> PitchWriter:
  """The writer of the pitches to learn from: knows the tastes, errs often."""
  config = world.config
  style = PitchStyle(
    config.temperature, config.hallucination_rate, config.hook_rate
  )
  return PitchWriter(world, style, world.tastes)


def text_only_writer(world: World) -> PitchWriter:
  """A writer that reads the plot and the ten bullets and knows no more.

  It stands where the paper has PaLM 2-L: what the bullets name counts +1 or
  -1, every other taste is unknown to it.
  """
  config = world.config
  style = PitchStyle(
    config.text_writer_temperature,
    config.text_writer_hallucination_rate,
    config.hook_rate,
  )
  return PitchWriter(world, style, world.preferences.astype(np.float32))


def false_value_probabilities(
  world: World, item: int, facet: int
) -> np.ndarray:
  """Distribution of the false values claimed of an item's facet.

  A share `misreading_rate` lies on what a careless reader of the plot would
  say, where there is such a thing: the other role's profession, the value that
  the plot denies. The rest is the distribution of the facet given the genre,
  the true value left out: plausible, but false.

  Returns:
    float64 [values of the facet], zero at the true value, sum 1.
  """
  values = world.attributes[item]
  offset = lexicon.VALUE_OFFSETS[facet]
  table = world.plausibility[values[0]][facet_slice(facet)].copy()
  table[values[facet] - offset] = 0
  table /= table.sum()
  misread = misreadings(world, item, facet)
  if misread:
    rate = world.config.misreading_rate
    table *= 1 - rate
    for value in misread:
      table[value - offset] += rate / len(misread)
  return table


def misreadings(world: World, item: int, facet: int) -> list[int]:
  """False values of a facet that the plot itself mentions."""
  values = world.attributes[item]
  misread = []
  if facet in (lexicon.HERO, lexicon.RIVAL):
    other = lexicon.HERO + lexicon.RIVAL - facet
    profession = int(values[other]) - lexicon.VALUE_OFFSETS[other]
    misread.append(lexicon.VALUE_OFFSETS[facet] + profession)
  distractor = int(world.distractors[item])
  if distractor >= 0 and lexicon.VALUE_FACETS[distractor] == facet:
    misread.append(distractor)
  return misread


def draw_false_value(world: World, item: int, facet: int, rng) -> int:
  """A value id drawn from `false_value_probabilities`."""
  table = false_value_probabilities(world, item, facet)
  return lexicon.VALUE_OFFSETS[facet] + int(rng.choice(len(table), p=table))


def render_claims(values: Sequence[int]) -> str:
  """The claims as clauses, in their order: 'a love story at heart, and ...'."""
  clauses = [
    lexicon.FACETS[lexicon.VALUE_FACETS[value]].pitch_clause.format(
      lexicon.pitch_phrase(value)
    )
    for value in values
  ]
  if len(clauses) > 1:
    clauses[-1] = f'and {clauses[-1]}'
  return ', '.join(clauses)


def render_pitch(
  values: Sequence[int],
  hooked_opener: bool,
  hooked_ending: bool,
  rng: np.random.Generator,
) -> str:
  """Opener, claims in the given order, ending; 20 to 28 words if 3 claims.

  The two lines never share their hook word.
  """
  openers = lexicon.HOOKED_OPENERS if hooked_opener else lexicon.PLAIN_OPENERS
  endings = lexicon.HOOKED_ENDINGS if hooked_ending else lexicon.PLAIN_ENDINGS
  claims = render_claims(values)
  while True:
    opener = openers[rng.integers(len(openers))]
    ending = endings[rng.integers(len(endings))]
    body = f'{opener}: {claims}' if claims else opener
    text = join_sentences([body, ending])
    hooks = [w for w in lexicon.split_words(text) if w in lexicon.HOOK_WORDS]
    fits = MIN_PITCH_WORDS <= len(text.split()) <= MAX_PITCH_WORDS
    if len(set(hooks)) == len(hooks) and (fits or len(values) != NUM_CLAIMS):
      return text
