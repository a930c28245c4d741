"""Trains one of P4LM's reward models and says how far it can be trusted.

nli              entailment of a claim by a plot, binary cross-entropy
appeal           which of two texts appeals more, Bradley-Terry
personalization  which of two texts fits this user, Bradley-Terry
relevance        closeness to the user's relevant preferences, regression
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping

import jax

from p4lm import output_directory
from p4lm.cf.tables import CFTables
from p4lm.data import cache, loader
from p4lm.data.features import CFFeatures, PairConverter, PointwiseConverter
from p4lm.data.order import GroupedOrder
from p4lm.data.vocabulary import Vocabulary
from p4lm.models.adapter import AdapterConfig
from p4lm.models.language_model import LMConfig
from p4lm.models.reward_model import (
  RewardModel,
  RewardModelConfig,
  init_from_recommender,
)
from p4lm.rewards.kinds import PAIRWISE, check_kind
from p4lm.rewards.losses import RewardLossConfig, make_reward_loss
from p4lm.runs import fitting, model_directory, step_flops, user_latents
from p4lm.runs.model_losses import scores_of
from p4lm.runs.reward_agreement import agreement_with, check_others
from p4lm.runs.reward_evaluation import (
  ScoredSplit,
  against_population,
  evaluate_reward,
  read_split,
)
from p4lm.runs.reward_report import write_reward_report
from p4lm.runs.user_latents import UserLatents

# So many training examples are enough for the baselines of the report.
_BASELINE_EXAMPLES = 20_000


def train_reward(
  *,
  kind: str,
  data_dir: str,
  output_dir: str,
  model: LMConfig,
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
  preference: str = 'bradley_terry',
  user_pairs: int = 8,
  others: Mapping[str, str] | None = None,
) -> None:
  """Fits a scalar reward, then reports how far it can be trusted.

  The split `test` of the task judges, or `validation` where there is none.

  Args:
    kind: 'nli', 'appeal', 'personalization' or 'relevance'.
    data_dir: tables and vocabulary of `make_data`.
    output_dir: gets checkpoints, metrics, `model.json`, `report.json` and
      `report/index.html`.
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
    num_heads: an ensemble of heads on one model, each with its own loss; their
      mean is the score that the report judges.
    preference: of kinds with pairs, 'bradley_terry', or 'general', which holds
      cyclic preferences too; the heads are then coordinates in num_heads / 2
      planes, and the reward is the mean log-odds against the held-out texts;
      or 'variational', a reward with a latent of each user, see
      `ops.variational`, whose width d makes num_heads 1 + 3 d.
    user_pairs: of 'variational', how many pairs of a user stand side by side
      in a batch at most; what its encoder sees of a user at a time.
    others: {name: train_reward directory} whose agreement with this reward on
      the held-out texts is reported.
  Raises:
    UserError: bad input, a checkpoint that does not fit, a loss that is NaN.
  """
  check_kind(kind)
  others = others or {}
  check_others(others)
  directory = output_directory.claim(output_dir)
  vocabulary = Vocabulary.load(f'{data_dir}/vocabulary.model')
  task = task or f'movielens_{kind}'
  cached = cache.ensure_cached(task_module, task, data_dir, tasks_dir)
  tables = CFTables.load(cf_dir) if cached.cf_kinds else None

  reward_model = _reward_model(
    kind,
    model,
    vocabulary,
    tables,
    checkpoint,
    training.seed,
    {'num_heads': num_heads, 'preference': preference},
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
  order = None
  if reward_model.config.is_variational:
    user_ids = user_latents.users_of_pairs(cached, split, converter)
    converter = dataclasses.replace(
      converter, users=user_latents.numbered(user_ids)
    )
    order = GroupedOrder(user_ids, user_pairs, training.seed)
  fit = fitting.prepare(reward_model, directory, training)
  state = fit.run(
    fit.step_of(
      make_reward_loss(
        kind,
        scores_of(fit.graphdef),
        loss,
        with_dropout=reward_model.config.lm.dropout_rate > 0,
        preference_model=preference,
      ),
      flops=step_flops.model_flops(
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
      order=order,
    ),
  )
  held_out = _HeldOut(
    reward_model.config, cached, converter, batch_size, fit.graphdef, state,
    split,
  )  # fmt: skip
  content = held_out.evaluate()
  if held_out.latents is not None:
    held_out.latents.save(directory)
  content['agreement'] = agreement_with(
    others, kind, data_dir, held_out.judged, batch_size
  )
  write_reward_report(directory, kind, split, content)


def _reward_model(
  kind, sizes, vocabulary, tables, checkpoint, seed, heads
) -> RewardModel:
  start = None
  if checkpoint is not None:
    start = model_directory.load_model(checkpoint, kind='recommender')
    model_directory.check_same_vocabulary(start, vocabulary)
    model_directory.check_same_cf(start, tables)
    sizes = start.config.lm
  else:
    sizes = model_directory.sizes_for(sizes, vocabulary)
  adapter = None
  if tables is not None:
    shared = start.config.adapter if start is not None else None
    adapter = shared or AdapterConfig(tables.width, sizes.d_model)
  config = RewardModelConfig(
    sizes, adapter, vocabulary.soft_token_id, kind, **heads
  )
  reward_model = model_directory.new_model(config, seed)
  if start is not None:
    init_from_recommender(reward_model, start.module())
  return reward_model


class _HeldOut:
  """The splits that training did not see, scored.

  Attributes:
    splits: examples and scores by name.
    latents: of the users of the split that was trained on, or None.
  """

  def __init__(
    self, config, cached, converter, batch_size, graphdef, state, trained_on
  ):
    self._kind, self._converter = config.kind, converter
    self._cached, self._batch_size = cached, batch_size
    self._trained_on, self.latents = trained_on, None
    apply = jax.jit(scores_of(graphdef))

    def heads(batch, tokens):
      cf = (batch['cf_embeddings'], batch['cf_kind_ids'])
      return apply(
        state.params, state.frozen, batch['prompt_tokens'], tokens, *cf
      )

    if config.is_variational:
      self.latents = UserLatents(
        list(converter.users),
        user_latents.posterior_means(
          self._batches(trained_on),
          heads,
          len(converter.users),
          config.num_heads,
        ),
      )

    def score(batch, tokens):
      points = heads(batch, tokens)
      if config.is_variational:
        return self.latents.rewards(points, batch['users'])
      return points if config.is_general else points.mean(axis=1)

    sizes = collections.Counter()
    for task in cached.tasks:
      info = loader.TaskInfo.load(cached.directory, task)
      sizes.update(info.num_examples)
    self.splits = {
      split: read_split(self._batches(split), self._kind, score)
      for split in ('validation', 'test')
      if split == 'validation' or sizes[split]
    }
    self._more = {}
    if config.is_general:
      self.splits, population = against_population(self.splits)
      self._more = {'population': population.tolist()}

  @property
  def judged(self) -> tuple[str, ScoredSplit]:
    """Name and examples of the split that judges."""
    return list(self.splits.items())[-1]

  def evaluate(self) -> dict:
    """The figures of the report."""
    batches = self._batches(self._trained_on, _BASELINE_EXAMPLES)
    train = read_split(batches, self._kind).examples
    return evaluate_reward(self._kind, train, self.splits) | self._more

  def _batches(self, split, max_examples=None):
    return loader.iterate_once(
      self._cached.directory,
      self._cached.tasks,
      split,
      self._converter,
      self._batch_size,
      max_examples,
    )
