"""Rows that reward models learn from: entailment, pairs, relevance."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import numpy as np

from p4lm.writers import pitches
from p4lm.writers.films import Film, Films
from p4lm.writers.pitches import Manner, Plan, Style
from p4lm.writers.sentence_encoder import SentenceEncoder

# Chosen to fit: nearly the best attributes, nothing false.
FITTED = Manner(temperature=0.15, false_claim_rate=0.0, opener_rate=0.9)
# Anything, fitted to nobody.
RANDOM = Manner(temperature=1e6, genre_opener_rate=0.5)
_RIVALS = 8
_MIN_GAP = 0.1


def entailment_hypothesis(
  films: Films, film: Film, label: int, rng: random.Random
) -> str:
  """A text whose claims about the film are all true (1) or not (0).

  What is said to the user ('If you enjoy westerns') claims nothing of the
  film. A text without any claim is not entailed.
  """
  kind = rng.choices(
    ('claims', 'clause', 'pitch', 'degraded'), (35, 15, 35, 15)
  )[0]
  if kind == 'clause' and (text := _clause(films, film, label, rng)):
    return text
  plan = _claims_plan(films, film, label, rng)
  style = pitches.draw_style(Manner(), rng)
  attributes = films.attributes.all
  if kind == 'pitch':
    return _whole_pitch(films, film, plan, style, label, rng)
  if kind == 'degraded':
    if not label and rng.random() < 0.4:
      return pitches.empty(rng)
    if rng.random() < 0.5:
      return pitches.repeat(plan, style, attributes, rng.randint(2, 4))
    return pitches.flat(plan, rng, attributes)
  return pitches.render_claims(plan.claims, style.plain(), attributes)


def _clause(films, film, label, rng) -> str:
  source = film if label else films.neighbour(film, rng)
  if not source.clauses or (not label and source.row == film.row):
    return ''
  return rng.choice(source.clauses)


def _claims_plan(films, film, label, rng) -> Plan:
  count = min(rng.choice((1, 2, 2, 3)), len(film.attributes))
  claims = rng.sample(film.attributes, count)
  if not label:
    # The first is false, so that a text cut short stays false.
    claims[0] = films.false_attribute(film, rng, claims)
    for position in range(1, count):
      if rng.random() < 0.3:
        claims[position] = films.false_attribute(film, rng, claims)
  shuffled = claims if rng.random() < 0.5 or not label else claims[::-1]
  fragment = rng.choice(film.clauses) if film.clauses else ''
  return Plan(None, tuple(shuffled), fragment, False)


def _whole_pitch(films, film, plan, style, label, rng) -> str:
  opener = rng.choice(films.genres or range(len(films.attributes)))
  fragment = plan.fragment
  claims = list(plan.claims)
  rng.shuffle(claims)
  if not label and style.has_fragment and rng.random() < 0.3:
    fragment = _clause(films, film, 0, rng) or fragment
  whole = Plan(
    opener if rng.random() < 0.7 else None,
    tuple(claims),
    fragment,
    opener in film.all_attributes,
  )
  return pitches.render(whole, style, films.attributes.all)


def personalization_pair(
  films: Films,
  film: Film,
  affinity: np.ndarray,
  others: np.ndarray,
  rng: random.Random,
) -> tuple[str, str]:
  """(chosen, rejected) pitches of one film: fitted to the user, and not.

  The rejected one is fitted to the user of most different taste among a few
  others, or says anything; half of the pairs share their style, so that it is
  the content that decides. One in eight is a degraded text.

  Args:
    films: all films.
    film: the film.
    affinity: float [K], of the user.
    others: float [N, K], of other users.
    rng: consumed.
  """
  attributes = films.attributes.all
  style = pitches.draw_style(Manner(), rng)
  chosen = pitches.draw_plan(films, film, affinity, FITTED, rng)
  if rng.random() < 0.125:
    return (
      pitches.render(chosen, style, attributes),
      _degraded(chosen, style, attributes, rng),
    )
  manner = RANDOM if rng.random() < 0.25 else FITTED
  taste = _rival(films, film, affinity, others, rng)
  rejected = chosen
  for _ in range(8):
    rejected = pitches.draw_plan(films, film, taste, manner, rng)
    if fit(chosen, affinity) > fit(rejected, affinity) + _MIN_GAP:
      break
    manner = RANDOM
  if fit(chosen, affinity) < fit(rejected, affinity):
    chosen, rejected = rejected, chosen
  if rng.random() < 0.5:
    # Same clause, too: nothing but the attributes differs.
    other_style = style
    rejected = Plan(
      rejected.opener, rejected.claims, chosen.fragment, rejected.of_film
    )
  else:
    other_style = pitches.draw_style(Manner(), rng)
  return (
    pitches.render(chosen, style, attributes),
    pitches.render(rejected, other_style, attributes),
  )


def fit(plan: Plan, affinity: np.ndarray) -> float:
  """Mean affinity of the attributes that a pitch names."""
  named = plan.attributes()
  return float(affinity[named].mean()) if named else 0.0


def _rival(films, film, affinity, others, rng) -> np.ndarray:
  rows = [rng.randrange(len(others)) for _ in range(_RIVALS)]
  about = [*film.attributes, *films.genres]
  scores = others[np.ix_(rows, about)] @ affinity[about]
  return others[rows[int(scores.argmin())]]


def _degraded(plan: Plan, style: Style, attributes, rng) -> str:
  kind = rng.randrange(3)
  if kind == 0:
    return pitches.empty(rng)
  if kind == 1:
    return pitches.repeat(plan, style, attributes, rng.randint(3, 5))
  return pitches.truncate(pitches.render(plan, style, attributes), rng)


def appeal_pair(
  films: Films, film: Film, affinity: np.ndarray, rng: random.Random
) -> tuple[str, str]:
  """(chosen, rejected) pitches: vivid and whole, and not so.

  Most are improved-pitch pairs: the same content without and with adjectives
  and a hook. The others lose to a flat, repetitive, unfinished, empty or
  overloaded text.
  """
  attributes = films.attributes.all
  manner = Manner(opener_rate=0.9, fragment_rate=0.85)
  plan = pitches.draw_plan(films, film, affinity, manner, rng)
  style = pitches.draw_style(manner, rng)
  better = style.improved(rng)
  chosen = pitches.render(plan, better, attributes)
  kind = rng.choices(
    ('plain', 'flat', 'repeated', 'truncated', 'empty', 'overloaded'),
    (40, 15, 13, 14, 9, 9),
  )[0]
  if kind == 'plain':
    rejected = pitches.render(plan, style.plain(), attributes)
  elif kind == 'flat':
    rejected = pitches.flat(plan, rng, attributes)
  elif kind == 'repeated':
    repeated = pitches.repeat(plan, style, attributes, rng.randint(2, 5))
    whole = pitches.render(plan, better, attributes)
    rejected = f'{whole} {repeated}' if rng.random() < 0.5 else repeated
  elif kind == 'truncated':
    rejected = pitches.truncate(chosen, rng)
  elif kind == 'empty':
    rejected = pitches.empty(rng)
  else:
    rejected = _overloaded(plan, style, attributes, rng)
  return chosen, rejected


def _overloaded(plan: Plan, style: Style, attributes, rng) -> str:
  many = rng.sample(range(len(attributes)), min(6, len(attributes)))
  claims = [*plan.claims, *(k for k in many if k not in plan.claims)]
  return pitches.render(
    Plan(plan.opener, tuple(claims), plan.fragment, plan.of_film),
    style,
    attributes,
  )


def relevance_text(
  films: Films,
  film: Film,
  affinity: np.ndarray,
  others: np.ndarray,
  rng: random.Random,
) -> str:
  """A pitch for the user, for another one, for anybody, or a degraded one."""
  kind = rng.choices(('own', 'other', 'any', 'degraded'), (40, 25, 20, 15))[0]
  taste = others[rng.randrange(len(others))] if kind == 'other' else affinity
  manner = RANDOM if kind == 'any' else Manner()
  plan = pitches.draw_plan(films, film, taste, manner, rng)
  style = pitches.draw_style(manner, rng)
  if kind == 'degraded':
    return _degraded(plan, style, films.attributes.all, rng)
  return pitches.render(plan, style, films.attributes.all)


def relevance_targets(
  encoder: SentenceEncoder,
  texts: Sequence[str],
  preferences: Sequence[Sequence[str]],
  descriptions: Sequence[str],
  *,
  top: int = 4,
) -> np.ndarray:
  r"""How close texts are to what users like about such items, in [-1, 1].

  Of a user's ten bullets the `top` nearest to the item's description count,
  with sign s = +1 for likes (the first half) and -1 for dislikes:

      target = d(Y) / top * sum_{b in top} s_b cos(Y, b)

  d is the share of distinct word triples, which takes away what repetition
  would gain.

  Args:
    encoder: texts to unit vectors.
    texts: B texts Y.
    preferences: B lists of an even number of bullets.
    descriptions: B descriptions of the items.
    top: bullets that count.
  Returns:
    float32 [B], rounded to 4 places, so that they do not depend on how a
    machine orders its sums.
  """
  bullets = sorted({b for user in preferences for b in user})
  row = {bullet: i for i, bullet in enumerate(bullets)}
  # In double precision the order of a machine's sums is far below 4 places.
  encode = lambda rows: encoder.encode(rows).astype(np.float64)
  bullet_vectors = encode(bullets)
  items = sorted(set(descriptions))
  item_row = {item: i for i, item in enumerate(items)}
  item_vectors = encode(items)
  targets = np.empty(len(texts), np.float32)
  for b, vector in enumerate(encode(texts)):
    own = bullet_vectors[[row[bullet] for bullet in preferences[b]]]
    signs = np.where(np.arange(len(own)) < len(own) // 2, 1.0, -1.0)
    nearness = own @ item_vectors[item_row[descriptions[b]]]
    # Rounded, or noise in the last digit would decide between equals.
    nearest = np.argsort(-np.round(nearness, 5), kind='stable')[:top]
    closeness = (signs * (own @ vector))[nearest].mean()
    targets[b] = distinct_share(texts[b]) * closeness
  return np.clip(np.round(targets, 4), -1, 1)


def distinct_share(text: str) -> float:
  """Distinct word triples as a share of all, 1 for a text without repeats.

  >>> distinct_share('one two three one two three')
  0.75
  """
  words = re.findall(r"[a-z0-9']+", text.lower())
  triples = list(zip(words, words[1:], words[2:]))
  return len(set(triples)) / len(triples) if triples else 1.0
