"""What a system wrote for given users and items, kept on disk."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from p4lm.data.catalogue import Catalogue
from p4lm.decoding.sampler import SamplerConfig
from p4lm.runs.model_directory import LoadedModel
from p4lm.runs.task_prompts import writing_request
from p4lm.writers.checkpoint import CheckpointWriter


class Generations:
  """Texts of one model, generated once and read from disk afterwards.

  Args:
    directory: gets one JSON-lines file a name.
    model: a recommender.
    catalogue: finds items and users.
    config: how to sample.
    batch_size: texts at a time.
  """

  def __init__(
    self,
    directory: Path,
    model: LoadedModel,
    catalogue: Catalogue,
    config: SamplerConfig,
    batch_size: int,
  ):
    self._directory, self._model = directory, model
    self._catalogue, self._config = catalogue, config
    self._writer = CheckpointWriter(
      graphdef=model.graphdef,
      params=model.params,
      vocabulary=model.vocabulary,
      cf_lookup=model.cf_lookup,
      prompt_length=model.card.prompt_length,
      batch_size=batch_size,
      length_bucket=model.card.prompt_length,
      pad_id=model.config.lm.pad_id,
    )

  def texts(
    self,
    name: str,
    user_ids: Sequence[str],
    item_ids: Sequence[str],
    key: jax.Array,
    weights: Mapping[str, float] | None = None,
  ) -> list[str]:
    """One text a pair, in order.

    Args:
      name: of the file; a finished one is read if it is of the same model,
        pairs and sampling.
      user_ids, item_ids: the pairs.
      key: of the sampling.
      weights: that a conditioned policy is told.
    """
    path = self._directory / f'{_slug(name)}.jsonl'
    about = {
      'system': name,
      'checkpoint': str(self._model.directory),
      'step': self._model.step,
      'identity': self._model.identity,
      'sampler': repr(self._config),
      'key': jax.random.key_data(key).tolist(),
      'pairs': len(user_ids),
    }
    if weights:
      about['weights'] = dict(weights)
    kept = _read(path, about)
    if kept is not None:
      return kept
    requests = [
      writing_request(self._model, self._catalogue, user, item, weights=weights)
      for user, item in zip(user_ids, item_ids)
    ]
    texts = [w.text for w in self._writer.write(requests, self._config, key)]
    rows = [
      {'user_id': user, 'item_id': item, 'text': text}
      for user, item, text in zip(user_ids, item_ids, texts)
    ]
    self._directory.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.name}.partial')
    with partial.open('w', encoding='utf-8') as stream:
      for row in (about, *rows):
        stream.write(json.dumps(row, ensure_ascii=False) + '\n')
    os.replace(partial, path)
    return texts


def _slug(name: str) -> str:
  return re.sub(r'[^a-z0-9]+', '_', name.lower()).strip('_')


def _read(path: Path, about: dict) -> list[str] | None:
  if not path.exists():
    return None
  lines = path.read_text(encoding='utf-8').splitlines()
  # The identity says which model it was, wherever it lay.
  written = json.loads(lines[0]) | {'checkpoint': about['checkpoint']}
  if written != about:
    return None
  return [json.loads(line)['text'] for line in lines[1:]]
