"""A world, an SFT policy and a reward on disk: what `train_rl` starts from.

The policy and the reward have random weights. A test of a run's course needs
no good ones, and this takes seconds where training them takes minutes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from p4lm.checkpoints.manager import CheckpointStore
from p4lm.data.vocabulary import Vocabulary
from p4lm.data.world import WorldConfig
from p4lm.jobs.make_data import make_data
from p4lm.models.lora import apply_lora
from p4lm.models.recommender import RecommenderConfig
from p4lm.models.reward_model import RewardModelConfig
from p4lm.models.selection import split_trainable
from p4lm.models.t5_config import T5Config
from p4lm.runs import model_directory
from p4lm.runs.model_directory import describe, new_model, write_card
from p4lm.runs.reward_report import write_reward_report

LORA = {'rank': 2, 'alpha': 2.0}
LENGTHS = {'prompt_length': 24, 'response_length': 6}


def make_tiny_run(root: Path) -> None:
  """Makes root/data, root/sft, root/sft_lora and root/appeal."""
  make_data(
    output_dir=str(root / 'data'),
    world=WorldConfig(
      num_users=12,
      num_items=12,
      num_archive_items=6,
      num_ratings=60,
      num_pitches=40,
      num_pairs=20,
      num_entailment=20,
      num_relevance=20,
      num_rl_prompts=10,
    ),
    num_evaluation_pairs=4,
    vocabulary_size=600,
  )
  vocabulary = Vocabulary.load(root / 'data' / 'vocabulary.model')
  sizes = model_directory.sizes_for(
    T5Config(
      vocab_size=vocabulary.size,
      d_model=16,
      d_ff=32,
      num_heads=2,
      d_kv=8,
      num_encoder_layers=1,
      num_decoder_layers=1,
      scan_unroll=0,
    ),
    vocabulary,
  )
  policy = RecommenderConfig(sizes, None, vocabulary.soft_token_id)
  for name, lora in (('sft', None), ('sft_lora', LORA)):
    module = new_model(policy, seed=1)
    if lora is not None:
      apply_lora(module, **lora, rngs=nnx.Rngs(2))
    _save(root / name, module, policy, vocabulary, 'movielens_pitch_text', lora)
  reward = RewardModelConfig(sizes, None, vocabulary.soft_token_id, 'appeal')
  module = new_model(reward, seed=2)
  _draw_heads(module)
  _save(root / 'appeal', module, reward, vocabulary, 'movielens_appeal')
  # Of no trained model; only that there is one lets its rewards be read.
  untrained = {'judged_by': 'validation', 'validation': {'count': 0}}
  write_reward_report(root / 'appeal', 'appeal', 'train', untrained)


def _draw_heads(module) -> None:
  """Heads start at zero; a reward that says the same of all teaches nothing."""
  generator = np.random.default_rng(3)
  for _, variable in nnx.to_flat_state(nnx.state(module, nnx.Param)):
    if not np.any(variable[...]):
      drawn = generator.normal(size=variable[...].shape)
      variable[...] = jax.numpy.asarray(drawn, variable[...].dtype)


def _save(directory, module, config, vocabulary, task, lora=None) -> None:
  directory.mkdir()
  card = describe(
    config, task=task, vocabulary=vocabulary, lora_config=lora, **LENGTHS
  )
  write_card(directory, card, vocabulary)
  _, params, frozen = split_trainable(module, 'full')
  CheckpointStore(directory / 'checkpoints').save(
    1, {'params': params, 'frozen': frozen}
  )


if __name__ == '__main__':
  make_tiny_run(Path(sys.argv[1]))
