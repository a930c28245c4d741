"""The `ndcg` reward over the items of a data directory."""

from __future__ import annotations

import os

from p4lm.data import prompts, tables
from p4lm.errors import UserError
from p4lm.rewards.ndcg import NDCGTerm
from p4lm.writers.sentence_encoder import LSAEncoder, SentenceEncoder


def ndcg_reward(
  data_dir: str | os.PathLike,
  *,
  encoder: SentenceEncoder | None = None,
  cutoff: int = 20,
) -> NDCGTerm:
  """A term that ranks the items of `make_data` by their titles and plots.

  From gin: REWARDS = {'ndcg': @ndcg_reward.ndcg_reward()}.

  Args:
    data_dir: tables of `make_data`.
    encoder: texts to vectors; None fits latent semantic analysis on the items.
    cutoff: of the ranking.
  Raises:
    UserError: no items, or none with a text.
  """
  items = tables.read_table(data_dir, 'items').to_pylist()
  texts = [
    f'{prompts.display_title(item["title"])} '
    f'{prompts.clean_text(item["plot"] or "")}'
    for item in items
  ]
  if not items:
    raise UserError(f'{data_dir} has no items to rank')
  encoder = encoder or LSAEncoder.fit(texts)
  return NDCGTerm(
    encoder.encode,
    [item['item_id'] for item in items],
    encoder.encode(texts),
    cutoff,
  )
