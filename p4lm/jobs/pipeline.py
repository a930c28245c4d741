"""The whole of P4LM: ratings -> CF -> SFT -> rewards -> RL -> the table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from p4lm import output_directory
from p4lm.errors import UserError
from p4lm.stages.display import Display
from p4lm.stages.graph import Stage
from p4lm.stages.runner import Runner

REWARDS = ('nli', 'appeal', 'personalization', 'relevance')


def pipeline(
  *,
  dataset: str,
  output_dir: str,
  data_dir: str | None = None,
  plots_file: str | None = None,
  vocabulary: str | None = None,
  model: str = 't5_tiny',
  small_model: str = 't5_mini_s',
  seed: int = 0,
  parallel: int = 2,
  overrides: Mapping[str, Mapping[str, object]] | None = None,
) -> None:
  """Runs an experiment from ratings to the report; finished stages are kept.

  Args:
    dataset: 'world', or a MovieLens release (see `make_data`).
    output_dir: each stage writes its own subdirectory here.
    data_dir: directory or zip of the ratings; None for the world.
    plots_file: JSON lines with `movieId` and `overview`; None for the world.
    vocabulary: a SentencePiece model to use; None trains one.
    model: sizes of SFT and P4LM, a name in `gin/models`.
    small_model: sizes of P4LM-S.
    seed: every stage derives its own from it.
    parallel: stages that run side by side (each on its share of the cores).
    overrides: {stage: {NAME: value}}, added to a stage's bindings.
  Raises:
    UserError: an override names no stage, or a stage failed.
  """
  root = output_directory.claim(output_dir)
  stages = _with_overrides(
    p4lm_stages(
      root,
      dataset=dataset,
      data_dir=data_dir,
      plots_file=plots_file,
      vocabulary=vocabulary,
      model=model,
      small_model=small_model,
      seed=seed,
    ),
    overrides or {},
  )
  display = Display(len(stages))
  try:
    Runner(root, parallel, display).run(stages)
  finally:
    display.close()
  results = root / 'evaluation'
  print((results / 'results.txt').read_text())
  print(f'Report: {results / "report" / "index.html"}')


def p4lm_stages(
  root: Path,
  *,
  dataset,
  data_dir,
  plots_file,
  vocabulary,
  model,
  small_model,
  seed,
) -> list[Stage]:
  """The stages of the paper, in running order."""
  path = lambda name: str(root / name)
  common = {'DATA_DIR': path('data'), 'SEED': seed}
  lm = {**common, 'CF_DIR': path('cf'), 'TASKS_DIR': path('tasks')}

  def train_lm(name, about, *, task, after, **bindings):
    bindings = {**lm, 'TASK': task, **bindings}
    return Stage(name, 'train_lm', about, bindings, ('tasks', 'cf', *after))

  def reward(kind, split):
    judge = split == 'judge'
    return Stage(
      f'{"judge" if judge else "reward"}_{kind}',
      'train_reward',
      f'{kind} reward model' + (', apart, to judge with' if judge else ''),
      {
        **lm,
        'KIND': kind,
        'SPLIT': split,
        'SEED': seed + 1000 * judge,
        'CHECKPOINT': path('sft'),
      },
      ('sft',),
    )

  def train_rl(name, about, checkpoint):
    return Stage(
      name,
      'train_rl',
      about,
      {
        **common,
        'CHECKPOINT': path(checkpoint),
        'REWARDS': {kind: path(f'reward_{kind}') for kind in REWARDS},
      },
      (checkpoint, *(f'reward_{kind}' for kind in REWARDS)),
    )

  make_data = {
    'DATASET': dataset,
    'DATA_DIR': data_dir,
    'PLOTS_FILE': plots_file,
    'VOCABULARY': vocabulary,
    'SEED': seed,
  }
  systems = {
    'SFT-Text': path('sft_text'),
    'SFT': path('sft'),
    'P4LM': path('p4lm'),
    'P4LM-S': path('p4lm_s'),
  }
  return [
    Stage('data', 'make_data', 'tables, texts, splits, vocabulary', make_data),
    Stage(
      'tasks',
      'cache_tasks',
      'SeqIO tasks, tokenized and cached',
      {'DATA_DIR': path('data')},
      ('data',),
    ),
    Stage('cf', 'fit_cf', 'CF embeddings by weighted ALS', common, ('data',)),
    train_lm(
      'base',
      'a language model of the texts alone, in place of a pretrained one',
      task='movielens_base',
      after=(),
      STAGE='full',
      MODEL=model,
    ),
    train_lm(
      'adapters',
      'warm start: the adapters W_U and W_I alone',
      task='movielens_warm_start',
      after=('base',),
      STAGE='adapters',
      CHECKPOINT=path('base'),
    ),
    train_lm(
      'sft',
      'SFT: pitches from plots and soft tokens, everything trained',
      task='movielens_pitch',
      after=('adapters',),
      STAGE='full',
      CHECKPOINT=path('adapters'),
    ),
    *(reward(kind, 'train') for kind in REWARDS),
    train_lm(
      'sft_s',
      'the smaller SFT model',
      task='movielens_pitch',
      after=(),
      STAGE='full',
      MODEL=small_model,
    ),
    train_lm(
      'sft_text',
      'SFT-Text: pitches from plots and bullets, no CF vectors',
      task='movielens_pitch_text',
      after=('base',),
      STAGE='full',
      CHECKPOINT=path('base'),
    ),
    train_rl('p4lm', 'P4LM: REINFORCE on the joint reward', 'sft'),
    train_rl('p4lm_s', 'P4LM-S: the same for the smaller model', 'sft_s'),
    *(reward(kind, 'judge') for kind in REWARDS),
    Stage(
      'evaluation',
      'evaluate',
      "the paper's Table 1, gold scores, report",
      {
        **common,
        'SYSTEMS': systems,
        'CONTRASTS': (
          ('P4LM', 'SFT'),
          ('P4LM-S', 'SFT'),
          ('SFT', 'SFT-Text'),
          ('SFT', 'SFT (shuffled users)'),
          ('P4LM', 'P4LM (shuffled users)'),
        ),
        'JUDGES': {kind: path(f'judge_{kind}') for kind in REWARDS},
        'RUNS': {
          name: path(name)
          for name in (
            'base',
            'adapters',
            'sft_text',
            'sft',
            'sft_s',
            'p4lm',
            'p4lm_s',
          )
        },
      },
      ('sft_text', 'p4lm', 'p4lm_s', *(f'judge_{kind}' for kind in REWARDS)),
    ),
  ]


def _with_overrides(stages, overrides):
  names = [stage.name for stage in stages]
  unknown = sorted(set(overrides) - set(names))
  if unknown:
    raise UserError(
      f'overrides name no stage: {unknown}; stages: {", ".join(names)}'
    )
  return [
    Stage(
      stage.name,
      stage.job,
      stage.about,
      {**stage.bindings, **overrides.get(stage.name, {})},
      stage.after,
      stage.gin_files,
    )
    for stage in stages
  ]
