"""One run over opposed rewards: its policy follows the weights it is told."""

import json
import pathlib
import sys

import pytest

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))

import tiny_run  # noqa: E402

from p4lm.data.catalogue import Catalogue  # noqa: E402
from p4lm.errors import UserError  # noqa: E402
from p4lm.jobs.train_rl import train_rl  # noqa: E402
from p4lm.main import main  # noqa: E402
from p4lm.rewards.joint import JointRewardConfig  # noqa: E402
from p4lm.rewards.weightings import WeightingConfig  # noqa: E402
from p4lm.rl.eos import EosContract  # noqa: E402
from p4lm.rl.reinforce import ReinforceConfig  # noqa: E402
from p4lm.runs.conditioning import check_weights, conditioned  # noqa: E402
from p4lm.runs.fitting import FitConfig  # noqa: E402
from p4lm.runs.model_directory import load_model, read_card  # noqa: E402
from p4lm.runs.system_texts import system_texts  # noqa: E402
from p4lm.training.optimizers import OptimizerConfig  # noqa: E402

WEIGHTING = WeightingConfig(concentration=0.3, levels=4)


def many(request):
  """The share of letters that are an o."""
  return request.text.count('o') / max(len(request.text), 1)


def few(request):
  return -many(request)


REWARDS = {'few': few, 'many': many}


def train(world, output_dir, **options):
  train_rl(
    data_dir=str(world / 'data'),
    output_dir=str(output_dir),
    eos_contract=EosContract('score_anyway'),
    training=FitConfig(
      stage='full',
      optimizer=OptimizerConfig(learning_rate=1e-2),
      steps=56,
      seed=5,
      mesh_shape='data=1',
      log_every=1,
      checkpoint_every=100,
    ),
    batch_size=8,
    num_samples=8,
    algorithm=ReinforceConfig(kl_coefficient=0.05),
    **{
      'checkpoint': str(world / 'sft'),
      'rewards': REWARDS,
      'joint_reward': JointRewardConfig(weights=dict.fromkeys(REWARDS, 10.0)),
      **options,
    },
  )


@pytest.fixture(name='world', scope='module')
def _world(tmp_path_factory):
  """A world on disk, and `policy`, trained over weightings of two rewards."""
  root = tmp_path_factory.mktemp('conditioned')
  tiny_run.make_tiny_run(root)
  train(root, root / 'policy', weighting=WEIGHTING)
  return root


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def infer(world, output_dir, requests, **settings):
  """Exit status of `infer`, and its answers."""
  source = world / f'{output_dir.name}.jsonl'
  source.write_text('\n'.join(json.dumps(request) for request in requests))
  settings = {
    'MODE': 'generate',
    'INPUT': source,
    'OUTPUT_DIR': output_dir,
    'CHECKPOINT': world / 'policy',
    'DATA_DIR': world / 'data',
    'BATCH_SIZE': 16,
  } | settings
  status = main(['infer', *(f'--gin.{k}={v}' for k, v in settings.items())])
  answers = output_dir / 'outputs.jsonl'
  return status, read(answers) if answers.exists() else []


def prompts(world, count, **more):
  rows = read(world / 'policy' / 'samples.jsonl')[:count]
  ids = [{'user_id': row['user_id'], 'item_id': row['item_id']} for row in rows]
  return [{'custom_id': str(k), **row, **more} for k, row in enumerate(ids)]


def os_in(answers):
  text = ''.join(answer['text'] for answer in answers)
  return text.count('o') / len(text)


def test_each_sample_is_paid_by_the_weights_that_its_prompt_told(world):
  rows = read(world / 'policy' / 'samples.jsonl')
  assert len(rows) == 56 * 64
  for row in rows:
    weights = row['weights']
    assert sum(weights.values()) == 1
    assert all(4 * weight == int(4 * weight) for weight in weights.values())
    paid = sum(10 * weights[name] * row['terms'][name] for name in REWARDS)
    assert row['reward'] == pytest.approx(paid, abs=2e-4)
  # The samples of a prompt have one weighting; prompts have many.
  groups = [rows[k : k + 8] for k in range(0, len(rows), 8)]
  assert all(len({str(r['weights']) for r in group}) == 1 for group in groups)
  assert len({str(row['weights']) for row in rows}) == 5


def test_it_learns_to_differ_by_weights(world):
  slopes = [
    row['reward/many/by_share'] for row in read(world / 'policy/metrics.jsonl')
  ]
  assert abs(sum(slopes[:8]) / 8) < 0.05
  assert sum(slopes[-8:]) / 8 > 0.25


def test_infer_takes_the_weights_wanted_by_job_or_request(world, tmp_path):
  requests = prompts(world, 16)
  status, found = infer(
    world, tmp_path / 'many', requests, WEIGHTS={'few': 0, 'many': 3}
  )
  assert status == 0 and all(answer['error'] is None for answer in found)
  requests = prompts(world, 16, weights={'few': 2})
  status, other = infer(world, tmp_path / 'few', requests, WEIGHTS={'many': 1})
  assert status == 0 and os_in(found) > os_in(other) + 0.2
  # A free prompt is told the same words, in front.
  told = 'weights: many many many many '
  free = {'custom_id': 'a', 'prompt': 'likes: tea title: Harbour pitch:'}
  _, answers = infer(
    world,
    tmp_path / 'free',
    [free | {'weights': {'many': 1}}],
    MODE='generate',
    GREEDY=True,
  )
  model = load_model(world / 'policy')
  tokens = model.vocabulary.encode_prompt(told + free['prompt'])
  _, same = infer(
    world,
    tmp_path / 'tokens',
    [{'custom_id': 'a', 'prompt_tokens': tokens}],
    GREEDY=True,
  )
  assert answers[0]['tokens'] == same[0]['tokens']


def test_systems_of_one_policy_write_by_their_own_weights(world, tmp_path):
  catalogue = Catalogue.load(world / 'data')
  pairs = prompts(world, 64)
  assert len({pair['user_id'] for pair in pairs}) > 1

  def write(weights):
    systems = dict.fromkeys(weights, str(world / 'policy'))
    return system_texts(
      systems, pairs, catalogue, tmp_path, 1.0, False, 16, 0, weights
    )

  texts = write({'Few': {'few': 1}, 'Many': {'many': 1}})
  shares = {
    name: ''.join(each).count('o') / len(''.join(each))
    for name, each in texts.items()
  }
  assert shares['Many'] > shares['Few'] + 0.2
  assert shares['Many (shuffled users)'] > shares['Few'] + 0.2
  # What is on disk is of the weights that it says.
  assert write({'Few': {'few': 1}})['Few'] == texts['Few']
  turned = ''.join(write({'Few': {'many': 1}})['Few'])
  assert turned.count('o') / len(turned) > shares['Few'] + 0.2


def test_weights_that_do_not_fit_are_named(world, tmp_path, capsys):
  status, answers = infer(world, tmp_path / 'none', prompts(world, 1))
  assert status == 0 and 'got none: give weights' in answers[0]['error']
  status, answers = infer(
    world, tmp_path / 'odd', prompts(world, 1), WEIGHTS={'mny': 1}
  )
  assert status == 1 and not answers
  assert 'name mny, of which the policy knows' in capsys.readouterr().err
  status, answers = infer(
    world, tmp_path / 'sft', prompts(world, 1, weights={'many': 1}),
    CHECKPOINT=world / 'sft',
  )  # fmt: skip
  assert 'follows no weights' in answers[0]['error']
  systems = {'P': world / 'policy', 'SFT': world / 'sft'}
  assert check_weights(systems, {'P': {'few': 1}}) is None
  for weights, message in (
    ({}, "'P' in .* got none"),
    ({'P': {'few': 1}, 'SFT': {'few': 1}}, "'SFT' in .* follows no weights"),
    ({'Q': {'few': 1}}, 'not there: Q; the systems are P, SFT'),
  ):
    with pytest.raises(UserError, match=message):
      check_weights(systems, weights)


def test_a_conditioned_policy_goes_on_as_it_began(world, tmp_path):
  card, vocabulary = read_card(world / 'policy'), None
  assert card.weighted == {'terms': ['few', 'many'], 'levels': 4}
  assert conditioned(card, vocabulary, WEIGHTING, REWARDS) is card
  for weighting, rewards, message in (
    (None, REWARDS, 'is told the weights of its rewards'),
    (WEIGHTING, {'few': few, 'odd': many}, 'this run has few, odd in 4'),
    (WeightingConfig(levels=5), REWARDS, 'in 4 levels; this run .* in 5'),
  ):
    with pytest.raises(UserError, match=message):
      conditioned(card, vocabulary, weighting, rewards)
  before = read_card(world / 'sft')
  # Room for the longest words: no plot is cut for them.
  model = load_model(world / 'sft')
  longest = max(
    len(model.vocabulary.encode('weights:' + f' {name}' * 4))
    for name in REWARDS
  )
  assert card.prompt_length == before.prompt_length + longest
  with pytest.raises(UserError, match='two reward terms or more, got many'):
    train(
      world,
      tmp_path,
      weighting=WEIGHTING,
      rewards={'many': many},
      joint_reward=JointRewardConfig(weights={'many': 1.0}),
    )
