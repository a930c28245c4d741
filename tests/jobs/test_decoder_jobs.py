"""A tiny Gemma through the jobs: soft tokens, training, inference."""

from __future__ import annotations

import json

import pytest

from p4lm.main import main
from p4lm.runs.model_directory import load_model

WORLD = {
  'DATASET': 'world',
  'WorldConfig.num_users': 30,
  'WorldConfig.num_items': 30,
  'WorldConfig.num_archive_items': 15,
  'WorldConfig.num_ratings': 400,
  'WorldConfig.num_pitches': 60,
  'WorldConfig.num_pairs': 40,
  'WorldConfig.num_entailment': 40,
  'WorldConfig.num_relevance': 40,
  'WorldConfig.num_rl_prompts': 20,
  'NUM_EVALUATION_PAIRS': 6,
}


def run(job, output_dir, **settings):
  flags = [f'--gin.{name}={value}' for name, value in settings.items()]
  assert main([job, f'--gin.OUTPUT_DIR={output_dir}', *flags]) == 0
  return output_dir


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """OUTPUT_DIR of a short train_lm run, beside its data."""
  root = tmp_path_factory.mktemp('decoder')
  data = run('make_data', root / 'data', **WORLD)
  cf_dir = run(
    'fit_cf',
    root / 'cf',
    DATA_DIR=data,
    **{'fit_cf.width': 6, 'fit_cf.epochs': 2},
  )
  return run(
    'train_lm',
    root / 'lm',
    DATA_DIR=data,
    CF_DIR=cf_dir,
    MODEL='gemma3_tiny',
    STEPS=6,
    BATCH_SIZE=8,
    **{'FitConfig.log_every': 1},
  )


def answers(trained, requests, **settings):
  root = trained.parent / settings['MODE']
  root.mkdir()
  (root / 'in.jsonl').write_text('\n'.join(map(json.dumps, requests)))
  run(
    'infer',
    root / 'out',
    CHECKPOINT=trained,
    INPUT=root / 'in.jsonl',
    DATA_DIR=trained.parent / 'data',
    BATCH_SIZE=4,
    **settings,
  )
  return [
    json.loads(line)
    for line in (root / 'out' / 'outputs.jsonl').read_text().splitlines()
  ]


def test_a_tiny_gemma_trains_and_writes_with_soft_tokens(trained):
  losses = [
    json.loads(line)['loss']
    for line in (trained / 'metrics.jsonl').read_text().splitlines()
    if 'loss' in json.loads(line)
  ]
  assert len(losses) == 6 and losses[-1] < losses[0]
  model = load_model(trained)
  assert model.config.lm.family == 'decoder'
  assert model.config.adapter is not None

  users, item = model.cf_tables.user_ids[:3], model.cf_tables.item_ids[0]
  requests = [
    {'custom_id': f'u{user}', 'user_id': user, 'item_id': item}
    for user in users
  ]
  written = answers(trained, requests, MODE='generate', GREEDY=True)
  assert [row['error'] for row in written] == [None] * 3
  scored = answers(
    trained,
    [
      {**request, 'response_tokens': row['tokens']}
      for request, row in zip(requests, written)
    ],
    MODE='score',
  )
  for row, again in zip(written, scored):
    assert row['tokens'] == again['tokens']
    # Greedy log-probabilities are the model's own.
    assert again['logps'] == pytest.approx(row['logps'], abs=1e-4)


def test_other_cf_embeddings_want_adapters_of_their_own(trained, capfd):
  root = trained.parent
  other = run(
    'fit_cf',
    root / 'other_cf',
    DATA_DIR=root / 'data',
    **{'fit_cf.width': 6, 'fit_cf.epochs': 2, 'SEED': 5},
  )
  settings = {'DATA_DIR': root / 'data', 'CF_DIR': other, 'STEPS': 2,
              'CHECKPOINT': trained, 'BATCH_SIZE': 4}  # fmt: skip
  for job, more in (
    ('train_lm', {}),
    ('train_reward', {'KIND': 'personalization'}),
  ):
    flags = [f'--gin.{k}={v}' for k, v in {**settings, **more}.items()]
    assert main([job, f'--gin.OUTPUT_DIR={root / job}', *flags]) == 1
    message = capfd.readouterr().err
    assert f'CHECKPOINT {trained} reads other CF embeddings' in message
    assert f'--gin.CF_DIR={root / "cf"}' in message
  run('train_lm', root / 'adapters', STAGE='adapters', **settings)
