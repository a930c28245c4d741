"""The whole of P4LM: ratings -> CF -> SFT -> rewards -> RL -> the table."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from p4lm import output_directory
from p4lm.errors import UserError
from p4lm.stages.display import Display
from p4lm.stages.graph import Stage
from p4lm.stages.runner import Runner

REWARDS = ('nli', 'appeal', 'personalization', 'relevance')
SYSTEMS = {
  'SFT-Text': 'sft_text',
  'SFT': 'sft',
  'P4LM': 'p4lm',
  'P4LM-S': 'p4lm_s',
}
CONTRASTS = (
  ('P4LM', 'SFT'),
  ('P4LM-S', 'SFT'),
  ('SFT', 'SFT-Text'),
  ('SFT', 'SFT (shuffled users)'),
  ('P4LM', 'P4LM (shuffled users)'),
)
CURVES = ('base', 'adapters', 'sft_text', 'sft', 'sft_s', 'p4lm', 'p4lm_s')
# A judge shares neither the split nor the seed of the reward it stands beside.
_JUDGE_SEED = 1000


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
  variants: Mapping[str, Mapping[str, object]] | None = None,
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
    variants: {system: {NAME: value}}: further policies fine-tuned from SFT as
      P4LM is, but for these bindings (over those of `overrides['p4lm']`); the
      table has a row of each, compared with SFT and with P4LM.
  Raises:
    UserError: an override names no stage, a variant has a name that is taken,
      or a stage failed.
  """
  root = output_directory.claim(output_dir)
  make_data = {
    'DATASET': dataset,
    'DATA_DIR': data_dir,
    'PLOTS_FILE': plots_file,
    'VOCABULARY': vocabulary,
  }
  overrides, variants = dict(overrides or {}), variants or {}
  for system, bindings in variants.items():
    stage = variant_stage(system)
    overrides[stage] = {
      **overrides.get('p4lm', {}),
      **bindings,
      **overrides.get(stage, {}),
    }
  stages = p4lm_stages(
    root, make_data, model, small_model, seed, tuple(variants)
  )
  stages = with_overrides(stages, overrides)
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
  make_data: Mapping[str, object],
  model: str,
  small_model: str,
  seed: int,
  variants: Sequence[str] = (),
) -> list[Stage]:
  """The stages of the paper, in running order.

  Args:
    root: OUTPUT_DIR of the run.
    make_data: bindings of the first stage: which data.
    model, small_model: sizes of P4LM and of P4LM-S.
    seed: of the experiment.
    variants: names of further policies.
  """
  paper = _Paper(root, seed, _systems_of(variants))
  return [
    *paper.data(make_data),
    *paper.language_models(model, small_model),
    *(paper.reward(kind) for kind in REWARDS),
    paper.reinforced('p4lm', 'P4LM: REINFORCE on the joint reward', 'sft'),
    paper.reinforced(
      'p4lm_s', 'P4LM-S: the same for the smaller model', 'sft_s'
    ),
    *(
      paper.reinforced(variant_stage(name), f'P4LM, {name}', 'sft')
      for name in variants
    ),
    *(paper.judge(kind) for kind in REWARDS),
    paper.evaluation(variants),
  ]


def variant_stage(system: str) -> str:
  """The stage of a further policy.

  >>> variant_stage('NLI alone')
  'p4lm_nli_alone'
  """
  return 'p4lm_' + re.sub(r'[^a-z0-9]+', '_', system.lower()).strip('_')


def _systems_of(variants: Sequence[str]) -> dict[str, str]:
  systems = dict(SYSTEMS)
  for name in variants:
    stage = variant_stage(name)
    if name in systems or stage in systems.values():
      raise UserError(
        f'the variant {name!r} (stage {stage}) has the name of another '
        f'system; the others are {", ".join(systems)}'
      )
    systems[name] = stage
  return systems


class _Paper:
  """Makes the stages; knows where each of them writes and what it reads."""

  def __init__(self, root: Path, seed: int, systems: Mapping[str, str]):
    self._root, self._seed, self._systems = root, seed, systems
    self._common = {'DATA_DIR': self._path('data'), 'SEED': seed}
    self._training = {
      **self._common,
      'CF_DIR': self._path('cf'),
      'TASKS_DIR': self._path('tasks'),
    }

  def _path(self, stage: str) -> str:
    return str(self._root / stage)

  def data(self, make_data: Mapping[str, object]) -> list[Stage]:
    """Tables, tasks and CF embeddings."""
    return [
      Stage(
        'data',
        'make_data',
        'tables, texts, splits, vocabulary',
        {**make_data, 'SEED': self._seed},
      ),
      Stage(
        'tasks',
        'cache_tasks',
        'SeqIO tasks, tokenized and cached',
        {'DATA_DIR': self._path('data')},
        ('data',),
      ),
      Stage(
        'cf',
        'fit_cf',
        'CF embeddings of users and items',
        self._common,
        ('data',),
      ),
    ]

  def language_models(self, model: str, small_model: str) -> list[Stage]:
    """The two-stage warm start, the smaller model and the text-only one."""
    return [
      self._language_model(
        'base',
        'a language model of the texts alone, in place of a pretrained one',
        'movielens_base',
        MODEL=model,
      ),
      self._language_model(
        'adapters',
        'warm start: the adapters W_U and W_I alone',
        'movielens_warm_start',
        start='base',
        STAGE='adapters',
      ),
      self._language_model(
        'sft',
        'SFT: pitches from plots and soft tokens, everything trained',
        'movielens_pitch',
        start='adapters',
      ),
      self._language_model(
        'sft_s',
        'the smaller SFT model',
        'movielens_pitch',
        MODEL=small_model,
      ),
      self._language_model(
        'sft_text',
        'SFT-Text: pitches from plots and bullets, no CF vectors',
        'movielens_pitch_text',
        start='base',
      ),
    ]

  def _language_model(
    self, name: str, about: str, task: str, start: str | None = None, **bindings
  ) -> Stage:
    bindings = {'TASK': task, 'STAGE': 'full', **bindings}
    if start is not None:
      bindings['CHECKPOINT'] = self._path(start)
    after = ('tasks', 'cf', *([start] if start else []))
    return Stage(name, 'train_lm', about, {**self._training, **bindings}, after)

  def reward(self, kind: str) -> Stage:
    """A reward model for RL to follow."""
    return self._reward(f'reward_{kind}', f'{kind} reward model', kind, 'train')

  def judge(self, kind: str) -> Stage:
    """A reward model that RL never sees."""
    return self._reward(
      f'judge_{kind}',
      f'{kind} reward model, apart, to judge with',
      kind,
      'judge',
      SEED=self._seed + _JUDGE_SEED,
    )

  def _reward(self, name, about, kind, split, **bindings) -> Stage:
    return Stage(
      name,
      'train_reward',
      about,
      {
        **self._training,
        'KIND': kind,
        'SPLIT': split,
        'CHECKPOINT': self._path('sft'),
        **bindings,
      },
      ('sft',),
    )

  def reinforced(self, name: str, about: str, start: str) -> Stage:
    """A policy fine-tuned against the four rewards."""
    return Stage(
      name,
      'train_rl',
      about,
      {
        **self._common,
        'CHECKPOINT': self._path(start),
        'REWARDS': {kind: self._path(f'reward_{kind}') for kind in REWARDS},
      },
      (start, *(f'reward_{kind}' for kind in REWARDS)),
    )

  def evaluation(self, variants: Sequence[str]) -> Stage:
    """The paper's Table 1; with variants also its Table 2."""
    of_variants = tuple(
      (name, other) for name in variants for other in ('SFT', 'P4LM')
    )
    curves = (*CURVES, *(self._systems[name] for name in variants))
    return Stage(
      'evaluation',
      'evaluate',
      "the paper's Table 1, gold scores, report",
      {
        **self._common,
        'SYSTEMS': {name: self._path(s) for name, s in self._systems.items()},
        'CONTRASTS': CONTRASTS + of_variants,
        'JUDGES': {kind: self._path(f'judge_{kind}') for kind in REWARDS},
        'RUNS': {stage: self._path(stage) for stage in curves},
      },
      (*self._systems.values(), *(f'judge_{kind}' for kind in REWARDS)),
    )


def with_overrides(
  stages: Sequence[Stage], overrides: Mapping[str, Mapping[str, object]]
) -> list[Stage]:
  """The stages with the user's bindings over their own.

  Raises:
    UserError: an override names no stage.
  """
  names = [stage.name for stage in stages]
  unknown = sorted(set(overrides) - set(names))
  if unknown:
    raise UserError(
      f'overrides name no stage: {unknown}; stages: {", ".join(names)}'
    )
  return [
    dataclasses.replace(
      stage, bindings={**stage.bindings, **overrides.get(stage.name, {})}
    )
    for stage in stages
  ]
