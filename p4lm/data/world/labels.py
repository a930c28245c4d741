"""Labelled texts: preference pairs, entailment rows, relevance targets."""

import dataclasses

import numpy as np

from p4lm.data.world import lexicon
from p4lm.data.world.gold import GoldScorer
from p4lm.data.world.judged_texts import JudgedTextWriter, cut
from p4lm.data.world.pitches import (
  NUM_CLAIMS,
  draw_false_value,
  misreadings,
  render_claims,
  render_pitch,
)
from p4lm.data.world.plots import join_sentences
from p4lm.data.world.simulate import World


@dataclasses.dataclass(frozen=True)
class LabelledPairs:
  """Preference pairs, N rows: `chosen[n]` won over `rejected[n]`."""

  chosen: list[str]
  rejected: list[str]


def label_pairs(
  world: World,
  scorer: GoldScorer,
  kind: str,
  users: np.ndarray,
  items: np.ndarray,
  rng: np.random.Generator,
) -> LabelledPairs:
  r"""Two texts about each item, ranked by a rater who knows the gold score.

  The rater errs as Bradley and Terry have it: with s the gold score,
      P(a is chosen) = sigmoid(sharpness (s_a - s_b)).

  Args:
    world: whose truth and sharpness count.
    scorer: its gold scorer.
    kind: 'personalization' or 'appeal', the gold score to rank by.
    users: int [N], user indices.
    items: int [N], item indices.
    rng: consumed.
  """
  sharpness = {
    'personalization': world.config.personalization_sharpness,
    'appeal': world.config.appeal_sharpness,
  }[kind]
  writer = JudgedTextWriter(world)
  first = [writer.write(u, i, rng) for u, i in zip(users, items)]
  second = []
  for user, item, other in zip(users, items, first):
    text = other
    while text == other:
      text = writer.write(user, item, rng)
    second.append(text)
  user_ids, item_ids = ids_of(users), ids_of(items)
  gap = scorer.score(first, user_ids, item_ids)[kind]
  gap = gap - scorer.score(second, user_ids, item_ids)[kind]
  first_wins = rng.random(len(gap)) < 1 / (1 + np.exp(-sharpness * gap))
  return LabelledPairs(
    chosen=[a if win else b for a, b, win in zip(first, second, first_wins)],
    rejected=[b if win else a for a, b, win in zip(first, second, first_wins)],
  )


def label_relevance(
  world: World,
  scorer: GoldScorer,
  users: np.ndarray,
  items: np.ndarray,
  rng: np.random.Generator,
) -> tuple[list[str], np.ndarray]:
  """One text a (user, item) and its gold relevance plus a little noise.

  Returns:
    list [N] of texts and float32 [N] of targets in [-1, 1].
  """
  writer = JudgedTextWriter(world)
  texts = [writer.write(u, i, rng) for u, i in zip(users, items)]
  gold = scorer.score(texts, ids_of(users), ids_of(items))['relevance']
  noise = world.config.relevance_noise * rng.standard_normal(len(texts))
  return texts, np.clip(gold + noise, -1, 1).astype(np.float32)


def label_entailment(
  world: World, scorer: GoldScorer, items: np.ndarray, rng: np.random.Generator
) -> tuple[list[str], np.ndarray]:
  """One hypothesis an item; 1 iff it makes claims and all of them are true.

  The facets of a hypothesis are chosen before its truth, so the facets and
  the form say nothing about the label. False claims are plausible values,
  swapped roles and values that the plot mentions only to deny.

  Returns:
    list [N] of hypotheses and int32 [N] of labels, about half of them 1.
  """
  hypotheses = []
  for item in items:
    entailed = rng.random() < 0.5
    values = _choose_hypothesis(world, item, entailed, rng)
    hypotheses.append(_write_hypothesis(world, values, entailed, rng))
  # An odd hypothesis may have lost its false claim: the text itself decides.
  users = ['1'] * len(hypotheses)
  precision = scorer.score(hypotheses, users, ids_of(items))['precision']
  return hypotheses, (precision == 1).astype(np.int32)


def ids_of(indices: np.ndarray) -> list[str]:
  """The id of each user or item index: '1' for 0."""
  return [str(index + 1) for index in indices.tolist()]


def _choose_hypothesis(world, item, entailed, rng) -> list[int]:
  """Value ids of one to six claims, all true or at least one false."""
  form = rng.random()
  swapped = 0.5 + 0.4 * world.config.misreading_rate
  if form < 0.5:
    facets = [_choose_facet(world, item, rng)]
  elif form < swapped:
    facets = [lexicon.HERO, lexicon.RIVAL]
    if rng.random() < 0.5:
      facets.reverse()
  else:
    num_claims = NUM_CLAIMS if form < 0.95 else rng.integers(4, 7)
    facets = list(rng.permutation(lexicon.NUM_FACETS)[:num_claims])
  values = [int(world.attributes[item, facet]) for facet in facets]
  if entailed:
    return values
  if 0.5 <= form < swapped:
    # Each role with the other's profession.
    return [misreadings(world, item, facet)[0] for facet in facets]
  num_false = min(1 + rng.binomial(2, 0.2), len(facets))
  for place in rng.permutation(len(facets))[:num_false]:
    values[place] = draw_false_value(world, item, facets[place], rng)
  return values


def _choose_facet(world, item, rng) -> int:
  """Any facet; roles and the one with the distractor more often."""
  distractor = world.distractors[item]
  draw, rate = rng.random(), world.config.misreading_rate
  if draw < rate / 2 and distractor >= 0:
    return lexicon.VALUE_FACETS[distractor]
  if draw < rate:
    return (lexicon.HERO, lexicon.RIVAL)[rng.integers(2)]
  return int(rng.integers(lexicon.NUM_FACETS))


def _write_hypothesis(world, values, entailed, rng) -> str:
  """A whole pitch around the claims, or bare clauses; sometimes an odd one."""
  if rng.random() < world.config.degraded_rate:
    oddity = rng.integers(3 if entailed else 4)
    if oddity == 3:
      values = []
    elif oddity == 2:
      values = values + [values[rng.integers(len(values))]]
    hooks = rng.random(2) < 0.5
    text = render_pitch(values, hooks[0], hooks[1], rng)
    return cut(text, rng) if oddity == 0 else text
  if rng.random() < 0.2:
    return join_sentences([render_claims(values)])
  hooks = rng.random(2) < world.config.hook_rate
  return render_pitch(values, hooks[0], hooks[1], rng)
