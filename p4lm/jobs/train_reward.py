"""Trains one of P4LM's reward models and says how far it can be trusted.

nli              entailment of a claim by a plot, binary cross-entropy
appeal           which of two texts appeals more, Bradley-Terry
personalization  which of two texts fits this user, Bradley-Terry
relevance        closeness to the user's relevant preferences, regression
"""

from __future__ import annotations

import jax
import numpy as np

from p4lm import output_directory
from p4lm.cf.tables import CFTables
from p4lm.data import cache, loader
from p4lm.data.features import CFFeatures, PairConverter, PointwiseConverter
from p4lm.data.vocabulary import Vocabulary
from p4lm.models.adapter import AdapterConfig
from p4lm.models.reward_model import (
  RewardModel,
  RewardModelConfig,
  init_from_recommender,
)
from p4lm.models.t5 import T5Config
from p4lm.rewards.kinds import CLASSIFIED, PAIRWISE, check_kind
from p4lm.rewards.losses import RewardLossConfig, make_reward_loss
from p4lm.rewards.report import (
  classification_report,
  pairwise_report,
  regression_report,
)
from p4lm.runs import fitting, model_directory, step_flops
from p4lm.runs.model_losses import scores_of
from p4lm.runs.reward_report import write_reward_report


def train_reward(
  *,
  kind: str,
  data_dir: str,
  output_dir: str,
  model: T5Config,
  training: fitting.FitConfig,
  batch_size: int,
  prompt_length: int,
  response_length: int,
  split: str = 'train',
  cf_dir: str | None = None,
  tasks_dir: str | None = None,
  checkpoint: str | None = None,
  task: str | None = None,
  task_module: str = 'tasks.movielens',
  loss: RewardLossConfig | None = None,
  num_heads: int = 1,
) -> None:
  """Fits a scalar reward, then reports accuracy and calibration.

  Args:
    kind: 'nli', 'appeal', 'personalization' or 'relevance'.
    data_dir: tables and vocabulary of `make_data`.
    output_dir: gets checkpoints, metrics, `model.json`, `report.json`.
    model: sizes of the encoder; those of `checkpoint` win over it.
    training: what trains, the optimizer, steps, seed and mesh.
    batch_size: examples a step.
    prompt_length, response_length: P and L in tokens.
    split: 'train' for the rewards of RL, 'judge' for those that judge it.
    cf_dir: CF embeddings, for kinds that read them.
    tasks_dir: where cached tasks are; `DATA_DIR/tasks` by default.
    checkpoint: a train_lm directory whose language model and adapters to
      start from; None starts fresh.
    task: SeqIO task; `movielens_KIND` by default.
    task_module: Python module that registers the task.
    loss: margins, smoothing and the like.
    num_heads: an ensemble of heads on one model; their mean is the score.
  Raises:
    UserError: bad input, a checkpoint that does not fit, a loss that is NaN.
  """
  check_kind(kind)
  directory = output_directory.claim(output_dir)
  vocabulary = Vocabulary.load(f'{data_dir}/vocabulary.model')
  task = task or f'movielens_{kind}'
  cached = cache.ensure_cached(task_module, task, data_dir, tasks_dir)
  tables = CFTables.load(cf_dir) if cached.cf_kinds else None

  reward_model = _reward_model(
    kind, model, vocabulary, tables, checkpoint, training.seed, num_heads
  )
  card = model_directory.describe(
    reward_model.config,
    task=task,
    vocabulary=vocabulary,
    prompt_length=prompt_length,
    response_length=response_length,
    tables=tables,
    cf_dir=cf_dir,
  )
  model_directory.write_card(directory, card, vocabulary)

  convert = PairConverter if kind in PAIRWISE else PointwiseConverter
  converter = convert(
    prompt_length, response_length, vocabulary.eos_id, CFFeatures.of(tables)
  )
  fit = fitting.prepare(reward_model, directory, training)
  state = fit.run(
    fit.step_of(
      make_reward_loss(kind, scores_of(fit.graphdef), loss),
      step_flops.model_flops(
        step_flops.reward_update_flops(reward_model.config)
      ),
    ),
    lambda start: loader.load_batches(
      cached.directory,
      cached.tasks,
      split,
      converter,
      batch_size,
      training.seed,
      start_step=start,
    ),
  )
  validation = loader.iterate_once(
    cached.directory, cached.tasks, 'validation', converter, batch_size
  )
  report = _report(kind, fit.graphdef, state, validation)
  write_reward_report(directory, kind, split, report)


def _reward_model(
  kind, sizes, vocabulary, tables, checkpoint, seed, num_heads
) -> RewardModel:
  start = None
  if checkpoint is not None:
    start = model_directory.load_model(checkpoint, kind='recommender')
    model_directory.check_same_vocabulary(start, vocabulary)
    sizes = start.config.lm
  else:
    sizes = model_directory.sizes_for(sizes, vocabulary)
  adapter = None
  if tables is not None:
    shared = start.config.adapter if start is not None else None
    adapter = shared or AdapterConfig(tables.width, sizes.d_model)
  config = RewardModelConfig(
    sizes, adapter, vocabulary.soft_token_id, kind, num_heads
  )
  reward_model = model_directory.new_model(config, seed)
  if start is not None:
    init_from_recommender(reward_model, start.module())
  return reward_model


def _report(kind, graphdef, state, batches) -> dict[str, float]:
  """The calibration report on the validation split."""
  score = jax.jit(scores_of(graphdef))
  sides = ('chosen_tokens', 'rejected_tokens')
  names = sides if kind in PAIRWISE else ('response_tokens',)
  scores, lengths, labels = [], [], []
  for batch in batches:
    mask = batch['example_mask']
    cf = (batch['cf_embeddings'], batch['cf_kind_ids'])
    prompt = batch['prompt_tokens']
    scores.append(
      [
        score(state.params, state.frozen, prompt, batch[name], *cf)[mask]
        for name in names
      ]
    )
    lengths.append([(batch[name] != 0).sum(axis=1)[mask] for name in names])
    labels.append(batch.get('labels', mask)[mask])
  scores = np.concatenate(scores, axis=1)
  lengths = np.concatenate(lengths, axis=1)
  if kind in PAIRWISE:
    return pairwise_report(*scores, *lengths)
  report = classification_report if kind in CLASSIFIED else regression_report
  return report(scores[0], np.concatenate(labels), lengths[0])
