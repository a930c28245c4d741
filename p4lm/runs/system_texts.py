"""What systems write for the evaluation pairs, and for other users."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from p4lm.decoding.sampler import SamplerConfig
from p4lm.errors import UserError
from p4lm.runs.generations import Generations
from p4lm.runs.model_directory import load_model

SHUFFLED = ' (shuffled users)'


def system_texts(
  systems,
  pairs,
  catalogue,
  directory,
  temperature,
  greedy,
  batch_size,
  seed,
  weights,
) -> dict[str, list[str]]:
  """{system: texts}, and for each system its texts for other users.

  `weights` are {system: {term: number}} of the conditioned ones.
  """
  users = [pair['user_id'] for pair in pairs]
  items = [pair['item_id'] for pair in pairs]
  others = other_users(users, seed)
  texts = {}
  for place, (name, source) in enumerate(systems.items()):
    model = load_model(source, kind='recommender')
    sampler = SamplerConfig(
      max_length=model.card.response_length,
      temperature=temperature,
      greedy=greedy,
    )
    generations = Generations(
      directory / 'generations', model, catalogue, sampler, batch_size
    )
    key = jax.random.fold_in(jax.random.key(seed), place)
    told = weights.get(name)
    texts[name] = generations.texts(name, users, items, key, told)
    # The same key: the two differ by the user alone.
    texts[name + SHUFFLED] = generations.texts(
      name + SHUFFLED, others, items, key, told
    )
  return texts


def other_users(users: Sequence[str], seed: int) -> list[str]:
  """Another user for each pair: the users in a random order, moved by one.

  Where that gives a pair its own user (users may have several pairs) the next
  different one is taken.
  """
  distinct = sorted(set(users))
  if len(distinct) < 2:
    raise UserError('evaluation pairs of a single user cannot be shuffled')
  order = np.random.default_rng(seed).permutation(len(distinct))
  following = {
    distinct[order[place]]: distinct[order[(place + 1) % len(order)]]
    for place in range(len(order))
  }
  return [following[user] for user in users]
