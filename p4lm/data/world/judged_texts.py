"""Texts for judges to learn from: good, bad and odd ones."""

import numpy as np

from p4lm.data.world import lexicon
from p4lm.data.world.pitches import (
  NUM_CLAIMS,
  PitchStyle,
  PitchWriter,
  render_claims,
  render_pitch,
)
from p4lm.data.world.plots import join_sentences
from p4lm.data.world.simulate import World, facet_slice

ODDITIES = ('repeated', 'cut', 'empty', 'stuffed', 'long', 'short')


class JudgedTextWriter:
  """Writes what reward models must be able to tell apart.

  One text in `degraded_rate` is odd (see `degrade`), as texts of a model under
  training are. The others come from writers that choose as the demonstrator
  does, or nearly always what the user likes best, or what the user likes
  least, or anything; or from a flatterer who claims whatever the user loves,
  true or not.
  """

  def __init__(self, world: World):
    config = world.config
    self.world = world
    rate, hooks = config.hallucination_rate, config.hook_rate
    likes = world.tastes
    self._writers = (
      PitchWriter(world, PitchStyle(config.temperature, rate, hooks), likes),
      PitchWriter(world, PitchStyle(0.1, rate / 2, hooks), likes),
      PitchWriter(world, PitchStyle(0.5, rate, hooks), -likes),
      PitchWriter(world, PitchStyle(1e6, 2 * rate, hooks), likes),
    )
    self._weights = np.array([0.35, 0.2, 0.15, 0.15, 0.15])

  def choose_values(self, user: int, item: int, rng) -> list[int]:
    """Three value ids by a writer drawn at random."""
    writer = rng.choice(len(self._weights), p=self._weights)
    if writer < len(self._writers):
      return self._writers[writer].choose_values(user, item, rng)
    return self._flatter(user, item, rng)

  def write(self, user: int, item: int, rng: np.random.Generator) -> str:
    """One text about an item for a user."""
    values = self.choose_values(user, item, rng)
    if rng.random() < self.world.config.degraded_rate:
      return degrade(values, self.world.attributes[item], rng)
    hooks = rng.random(2) < self.world.config.hook_rate
    return render_pitch(values, hooks[0], hooks[1], rng)

  def _flatter(self, user: int, item: int, rng) -> list[int]:
    """Two claims in three are the user's favourite of a facet, true or not."""
    values = []
    for facet in rng.permutation(lexicon.NUM_FACETS)[:NUM_CLAIMS]:
      favourite = int(np.argmax(self.world.tastes[user, facet_slice(facet)]))
      values.append(
        lexicon.VALUE_OFFSETS[facet] + favourite
        if rng.random() < 2 / 3
        else int(self.world.attributes[item, facet])
      )
    return values


def degrade(
  values: list[int], attributes: np.ndarray, rng: np.random.Generator
) -> str:
  """An odd text around some claims; one of `ODDITIES` at random.

  repeated: one of the claims once or twice more; cut: ends in the middle;
  empty: opener and ending without a claim; stuffed: hook lines over and over;
  long: further true facets, up to all; short: one claim.

  Args:
    values: value ids to claim.
    attributes: int [facets], the item's true value ids.
    rng: consumed.
  """
  oddity = ODDITIES[rng.integers(len(ODDITIES))]
  hooks = rng.random(2) < 0.5
  if oddity == 'repeated':
    again = [values[rng.integers(len(values))]] * int(rng.integers(1, 3))
    values = list(rng.permutation(values + again))
  elif oddity == 'empty':
    values = []
  elif oddity == 'long':
    facets = {lexicon.VALUE_FACETS[value] for value in values}
    others = [int(v) for f, v in enumerate(attributes) if f not in facets]
    more = rng.permutation(others)[: rng.integers(1, len(others) + 1)]
    values = [*values, *more]
  elif oddity == 'short':
    values = values[:1]
  elif oddity == 'stuffed':
    return _stuff(values, rng)
  text = render_pitch(values, hooks[0], hooks[1], rng)
  return cut(text, rng) if oddity == 'cut' else text


def cut(text: str, rng: np.random.Generator) -> str:
  """The first words of a text, at least five and never all of them."""
  words = text.split()
  return ' '.join(words[: rng.integers(5, len(words))])


def _stuff(values: list[int], rng) -> str:
  """Three to five hook lines, with or without claims between them."""
  lines = list(lexicon.HOOKED_OPENERS + lexicon.HOOKED_ENDINGS)
  sentences = [
    lines[i] for i in rng.integers(len(lines), size=rng.integers(3, 6))
  ]
  if rng.random() < 0.5:
    sentences.insert(1, render_claims(values[: rng.integers(1, 4)]))
  return join_sentences(sentences)
