"""A pitch as a plan, and the plan as words."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Mapping, Sequence

import numpy as np

from p4lm.data.attributes import Attribute
from p4lm.writers import phrases
from p4lm.writers.films import Film, Films


@dataclasses.dataclass(frozen=True)
class Style:
  """Which phrasing is used; two pitches of one style differ in content only.

  Attributes:
    opener, claims, form, hook: positions in their lists of phrases.
    adjectives: added to the claims, in order; () for none.
    has_hook: whether the pitch ends with a hook.
    has_fragment: whether it tells a clause of the plot.
  """

  opener: int
  claims: int
  form: int
  hook: int
  adjectives: tuple[str, ...]
  has_hook: bool
  has_fragment: bool

  def improved(self, rng: random.Random) -> Style:
    """The same with adjectives and a hook."""
    adjectives = tuple(rng.sample(phrases.ADJECTIVES, 3))
    return dataclasses.replace(self, adjectives=adjectives, has_hook=True)

  def plain(self) -> Style:
    """The same without adjectives and hook."""
    return dataclasses.replace(self, adjectives=(), has_hook=False)


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a pitch says.

  Attributes:
    opener: the user's attribute that it addresses, or None.
    claims: attributes that it claims of the film.
    fragment: a clause of a plot, '' for none.
    of_film: whether the film has the opener's attribute.
  """

  opener: int | None
  claims: tuple[int, ...]
  fragment: str
  of_film: bool

  def attributes(self) -> list[int]:
    opener = [] if self.opener is None else [self.opener]
    return [*opener, *(k for k in self.claims if k != self.opener)]


@dataclasses.dataclass(frozen=True)
class Manner:
  """How a writer chooses what to say.

  Attributes:
    temperature: of the choice among attributes by affinity; 0 takes the best.
    false_claim_rate: chance that a claim is false though plausible.
    opener_rate: chance that the pitch addresses the user's taste.
    genre_opener_rate: chance that the taste addressed is a genre.
    match_bonus: added to the affinity of an opener that the film has.
    fragment_rate: chance that it tells a clause of the plot.
    vivid_rate, hook_rate: chances of adjectives and of a hook.
  """

  temperature: float = 0.4
  false_claim_rate: float = 0.15
  opener_rate: float = 0.85
  genre_opener_rate: float = 0.7
  match_bonus: float = 0.5
  fragment_rate: float = 0.8
  vivid_rate: float = 0.5
  hook_rate: float = 0.5


def draw_style(manner: Manner, rng: random.Random) -> Style:
  """A style at random."""
  vivid = rng.random() < manner.vivid_rate
  return Style(
    opener=rng.randrange(100),
    claims=rng.randrange(100),
    form=rng.randrange(100),
    hook=rng.randrange(100),
    adjectives=tuple(rng.sample(phrases.ADJECTIVES, 2)) if vivid else (),
    has_hook=rng.random() < manner.hook_rate,
    has_fragment=rng.random() < manner.fragment_rate,
  )


def draw_plan(
  films: Films,
  film: Film,
  affinity: np.ndarray,
  manner: Manner,
  rng: random.Random,
  openers: Sequence[int] | None = None,
) -> Plan:
  """Chooses what to say of a film to a user.

  Claims are drawn without replacement from the film's attributes, with
  probabilities proportional to exp(affinity / temperature); the opener
  likewise from all attributes.

  Args:
    films: where plausible false claims come from.
    film: the film.
    affinity: float [K], of the user.
    manner: temperatures and rates.
    rng: consumed.
    openers: attributes that may open; all, mostly genres, when None.
  """
  opener = None
  if rng.random() < manner.opener_rate:
    opener = _draw_opener(films, film, affinity, manner, rng, openers)
  count = rng.choices((1, 2, 3), (15, 70, 15))[0]
  own = [k for k in film.attributes if k != opener] or list(film.attributes)
  claims = draw_attributes(own, affinity, manner.temperature, count, rng)
  told = list(claims)
  for position in range(len(told)):
    if rng.random() < manner.false_claim_rate:
      told[position] = films.false_attribute(film, rng, told)
  fragment = rng.choice(film.clauses) if film.clauses else ''
  of_film = opener is not None and opener in film.all_attributes
  return Plan(opener, tuple(told), fragment, of_film)


def _draw_opener(films, film, affinity, manner, rng, openers) -> int | None:
  if openers is None:
    genres = rng.random() < manner.genre_opener_rate
    openers = films.genres if genres else range(len(affinity))
    # The soft choice is among a user's favourites: far from the top, many
    # small chances would add up to a random opener.
    best = np.argsort(-affinity[list(openers)], kind='stable')[:5]
    openers = [openers[i] for i in best]
  scores = {
    k: affinity[k] + manner.match_bonus * (k in film.all_attributes)
    for k in openers
  }
  chosen = draw_attributes(list(scores), scores, manner.temperature, 1, rng)
  return chosen[0] if chosen else None


def draw_attributes(
  candidates: Sequence[int],
  affinity: np.ndarray | Mapping[int, float],
  temperature: float,
  count: int,
  rng: random.Random,
) -> list[int]:
  """`count` of the candidates without replacement, best first in the mean.

  Adds Gumbel noise of scale `temperature` to the affinities and takes the
  largest: a draw from the softmax, one after the other.
  """
  noisy = [
    (float(affinity[k]) + temperature * _gumbel(rng), k) for k in candidates
  ]
  noisy.sort(reverse=True)
  return [k for _, k in noisy[:count]]


def _gumbel(rng: random.Random) -> float:
  return -math.log(-math.log(rng.random() or 0.5))


def render(plan: Plan, style: Style, attributes: Sequence[Attribute]) -> str:
  """The plan in words: opener, clause, claims, hook."""
  parts = []
  if plan.opener is not None:
    openers = phrases.OPENERS if plan.of_film else phrases.OPENERS_BEYOND
    plural = _form(attributes[plan.opener].plural, style)
    parts.append(openers[style.opener % len(openers)].format(p=plural))
  if style.has_fragment and plan.fragment:
    parts.append(plan.fragment)
  if plan.claims:
    parts.append(render_claims(plan.claims, style, attributes))
  if style.has_hook:
    parts.append(phrases.HOOKS[style.hook % len(phrases.HOOKS)])
  return ' '.join(parts)


def render_claims(
  claims: Sequence[int], style: Style, attributes: Sequence[Attribute]
) -> str:
  """One to three claims as a sentence; more as several sentences."""
  if len(claims) > 3:
    first = render_claims(claims[:3], style, attributes)
    return f'{first} {render_claims(claims[3:], style, attributes)}'
  templates = phrases.CLAIMS[len(claims) - 1]
  words = {}
  for position, (letter, k) in enumerate(zip('abc', claims)):
    phrase = _form(attributes[k].singular, style)
    if position < len(style.adjectives):
      phrase = f'{style.adjectives[position]} {phrase}'
    words[letter] = phrases.with_article(phrase)
    words[f'{letter}0'] = phrase
  text = templates[style.claims % len(templates)].format(**words)
  return text[0].upper() + text[1:]


def _form(forms: Sequence[str], style: Style) -> str:
  return forms[style.form % len(forms)]


def repeat(plan: Plan, style: Style, attributes, times: int) -> str:
  """A degraded pitch: its claims over and over."""
  sentence = render_claims(plan.claims, style, attributes)
  return ' '.join([sentence] * times)


def truncate(text: str, rng: random.Random) -> str:
  """A degraded pitch: it stops within a sentence."""
  words = text.split()
  end = max(2, int(len(words) * rng.uniform(0.25, 0.7)))
  return ' '.join(words[:end]).rstrip('.!?:,')


def flat(plan: Plan, rng: random.Random, attributes) -> str:
  """A degraded pitch: names the first claim without any appeal."""
  phrase = attributes[plan.claims[0]].singular[0]
  return rng.choice(phrases.FLAT).format(
    a=phrases.with_article(phrase), a0=phrase
  )


def empty(rng: random.Random) -> str:
  """A degraded pitch: praise without a claim."""
  return rng.choice(phrases.EMPTY)
