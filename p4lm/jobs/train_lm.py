"""Trains the soft-token language model by maximum likelihood.

P4LM's warm start is two runs of this job: stage `adapters` trains W_U and W_I
alone under a frozen language model (item embedding -> plot, user embedding ->
preferences); stage `full` or `lora` then trains everything, or low-rank
updates, on pitches. A text-only task trains a model without CF vectors.
"""

from __future__ import annotations

from flax import nnx

from p4lm import output_directory
from p4lm.cf.tables import CFTables
from p4lm.data import cache, loader
from p4lm.data.features import CFFeatures, LMConverter
from p4lm.data.vocabulary import Vocabulary
from p4lm.errors import UserError
from p4lm.models import lora
from p4lm.models.adapter import AdapterConfig
from p4lm.models.language_model import LMConfig
from p4lm.models.recommender import Recommender, RecommenderConfig
from p4lm.runs import fitting, model_directory, step_flops
from p4lm.runs.model_losses import maximum_likelihood


def train_lm(
  *,
  data_dir: str,
  output_dir: str,
  model: LMConfig,
  task: str,
  training: fitting.FitConfig,
  batch_size: int,
  prompt_length: int,
  response_length: int,
  cf_dir: str | None = None,
  tasks_dir: str | None = None,
  checkpoint: str | None = None,
  task_module: str = 'tasks.movielens',
  adapter_width: int | None = None,
  tokens_per_vector: int = 1,
  lora_rank: int = 8,
  lora_alpha: float = 16.0,
) -> None:
  """Maximum likelihood on a SeqIO task, with CF vectors where it has them.

  Args:
    data_dir: tables and vocabulary of `make_data`.
    output_dir: gets checkpoints, metrics, `model.json`, `model-info.txt`.
    model: sizes of the language model; those of `checkpoint` win over it.
    task: a registered SeqIO task or mixture.
    training: what trains ('adapters', 'full', 'lora', or 're:' and a regular
      expression over parameter names; the rest stays bit-identical), the
      optimizer, steps, seed and mesh.
    batch_size: examples a step.
    prompt_length, response_length: P and L in tokens.
    cf_dir: CF embeddings of `fit_cf`, for tasks with CF vectors.
    tasks_dir: where cached tasks are; `DATA_DIR/tasks` by default.
    checkpoint: OUTPUT_DIR of an earlier training whose parameters to start
      from; adapters that it lacks start fresh, and those that it has want the
      CF embeddings that they know, but in stage 'adapters'.
    task_module: Python module that registers the task.
    adapter_width: hidden width of the adapters; the model's width by default.
    tokens_per_vector: soft tokens a CF vector becomes.
    lora_rank, lora_alpha: of stage 'lora'.
  Raises:
    UserError: bad input, a checkpoint that does not fit, a loss that is NaN.
  """
  directory = output_directory.claim(output_dir)
  vocabulary = Vocabulary.load(f'{data_dir}/vocabulary.model')
  fitting.check_layout(
    training, _planned_config(model, vocabulary, checkpoint), batch_size
  )
  cached = cache.ensure_cached(
    task_module,
    task,
    data_dir,
    tasks_dir,
    tokens_per_vector=tokens_per_vector,
  )
  tables = CFTables.load(_needed(cf_dir, task)) if cached.cf_kinds else None

  recommender = _recommender(
    model,
    vocabulary,
    tables,
    checkpoint,
    training,
    adapter_width,
    tokens_per_vector,
  )
  lora_config = None
  if training.stage == 'lora':
    lora_config = {'rank': lora_rank, 'alpha': lora_alpha}
    lora.apply_lora(
      recommender, **lora_config, rngs=nnx.Rngs(training.seed + 1)
    )
  card = model_directory.describe(
    recommender.config,
    task=task,
    vocabulary=vocabulary,
    prompt_length=prompt_length,
    response_length=response_length,
    tables=tables,
    cf_dir=cf_dir,
    stage=training.stage,
    lora_config=lora_config,
  )
  model_directory.write_card(directory, card, vocabulary)

  converter = LMConverter(
    prompt_length, response_length, vocabulary.eos_id, CFFeatures.of(tables)
  )
  fit = fitting.prepare(recommender, directory, training)
  counted = step_flops.model_flops(
    step_flops.supervised_flops(
      recommender.config, **step_flops.trained_part(fit.state)
    )
  )
  fit.run(
    fit.step_of(maximum_likelihood(fit.graphdef), flops=counted),
    lambda start: loader.load_batches(
      cached.directory,
      cached.tasks,
      'train',
      converter,
      batch_size,
      training.seed,
      start_step=start,
    ),
  )


def _planned_config(sizes, vocabulary, checkpoint) -> model_directory.Config:
  """The language model to come; adapters are too small to be divided."""
  if checkpoint is not None:
    return model_directory.read_card(checkpoint).model_config()
  sizes = model_directory.sizes_for(sizes, vocabulary)
  return RecommenderConfig(sizes, None, vocabulary.soft_token_id)


def _needed(cf_dir: str | None, task: str) -> str:
  if cf_dir is None:
    raise UserError(
      f'task {task!r} reads CF vectors: give the OUTPUT_DIR of fit_cf as '
      '--gin.CF_DIR=...'
    )
  return cf_dir


def _recommender(
  sizes,
  vocabulary,
  tables,
  checkpoint,
  training,
  adapter_width,
  tokens_per_vector,
) -> Recommender:
  """A model to train: fresh, or with the parameters of `checkpoint`."""
  start = None
  if checkpoint is not None:
    start = model_directory.load_model(checkpoint, kind='recommender')
    model_directory.check_same_vocabulary(start, vocabulary)
    if training.stage != 'adapters':
      model_directory.check_same_cf(start, tables)
    sizes = start.config.lm
  else:
    sizes = model_directory.sizes_for(sizes, vocabulary)
  adapter = start.config.adapter if start is not None else None
  if adapter is None and tables is not None:
    adapter = AdapterConfig(
      cf_width=tables.width,
      hidden_width=adapter_width or sizes.d_model,
      tokens_per_vector=tokens_per_vector,
    )
  config = RecommenderConfig(sizes, adapter, vocabulary.soft_token_id)
  recommender = model_directory.new_model(config, training.seed)
  if start is not None:
    model_directory.start_from(recommender, start, may_lack='adapters')
  return recommender
