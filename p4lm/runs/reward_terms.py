"""Reward checkpoints as terms of a joint reward."""

from __future__ import annotations

import os
from collections.abc import Mapping

from p4lm.errors import UserError
from p4lm.rewards.kinds import prompt_builder
from p4lm.rewards.learned import LearnedTerm, LearnedTermConfig
from p4lm.rewards.text_encoding import CachingEncoder
from p4lm.runs.model_directory import LoadedModel, load_model
from p4lm.runs.reward_report import population_mean

# Entailment is read as a probability (P4LM's precision lies in [0, 1]).
_OUTPUTS = {'nli': 'probability'}
_BUCKETS = (32, 48, 64, 96, 128, 192, 256, 384)


def load_reward_terms(
  directories: Mapping[str, str | os.PathLike],
  *,
  vocabulary_sha256: str | None = None,
  batch_size: int = 128,
  outputs: Mapping[str, str] | None = None,
) -> list[LearnedTerm]:
  """One term for each train_reward directory, in the order given.

  Args:
    directories: {kind: directory}.
    vocabulary_sha256: the vocabulary they must speak, or None for any.
    batch_size: texts a forward pass.
    outputs: {kind: output}, how a score is read, see `LearnedTermConfig`.
  Raises:
    UserError: a directory holds no reward model, one whose training has not
      ended, or one of another kind or vocabulary.
  """
  outputs = {**_OUTPUTS, **(outputs or {})}
  encoders: dict[str, CachingEncoder] = {}
  terms = []
  for kind, directory in directories.items():
    model = load_model(directory, kind='reward')
    _check(kind, model, vocabulary_sha256)
    length = model.card.prompt_length
    config = LearnedTermConfig(
      prompt_length=length,
      response_length=model.card.response_length,
      batch_size=batch_size,
      length_buckets=tuple(b for b in _BUCKETS if b < length),
      output=outputs.get(kind, 'score'),
      population_mean=population_mean(directory),
      tokens_per_vector=model.tokens_per_vector,
    )
    hash_ = model.vocabulary.sha256
    encoder = encoders.setdefault(hash_, CachingEncoder(model.vocabulary))
    terms.append(
      LearnedTerm.from_model(
        kind,
        model.module(),
        config,
        vocabulary=model.vocabulary,
        build_prompt=prompt_builder(
          kind, tokens_per_vector=model.tokens_per_vector
        ),
        cf_lookup=model.cf_lookup,
        encoder=encoder,
      )
    )
  return terms


def _check(kind: str, model: LoadedModel, vocabulary_sha256) -> None:
  if model.config.kind != kind:
    raise UserError(
      f'reward {kind!r}: {model.directory} holds a {model.config.kind!r} reward'
    )
  found = model.vocabulary.sha256
  if vocabulary_sha256 is not None and found != vocabulary_sha256:
    raise UserError(
      f'reward {kind!r} in {model.directory} speaks another vocabulary than '
      'the policy; train it on the same DATA_DIR'
    )
