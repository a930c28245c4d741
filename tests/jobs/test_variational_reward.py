"""A reward with a latent of each user, from cached pairs to its term."""

import json
import random

import jax.numpy as jnp
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from tiny_models import LM

from p4lm.data import cache
from p4lm.data.cache import CachedTask
from p4lm.data.records import encode_record
from p4lm.data.vocabulary import Vocabulary
from p4lm.errors import UserError
from p4lm.jobs.train_reward import train_reward
from p4lm.rewards.losses import RewardLossConfig
from p4lm.rewards.terms import RewardRequest, evaluate_term
from p4lm.runs.fitting import FitConfig
from p4lm.runs.model_directory import load_model
from p4lm.runs.reward_terms import load_reward_terms
from p4lm.runs.user_latents import UserLatents
from p4lm.training.optimizers import OptimizerConfig

USERS, PAIRS = 24, {'train': 10, 'validation': 4}
WORDS = ('sun', 'sea', 'tea', 'oak', 'owl')


def texts(draw):
  """One with the sun and one with the moon among the same words."""
  words = draw.sample(WORDS, 2)
  return tuple(' '.join([light, *words]) for light in ('day', 'night'))


def pairs(split):
  """(user, chosen, rejected): users of even numbers love the day."""
  for user in range(USERS):
    for number in range(PAIRS[split]):
      day, night = texts(random.Random(f'{split} {user} {number}'))
      sides = (night, day) if user % 2 else (day, night)
      yield f'u{user}', *sides


@pytest.fixture(name='data', scope='module')
def _data(tmp_path_factory):
  """A vocabulary and a cached task, written without SeqIO; with and without
  ids of users."""
  root = tmp_path_factory.mktemp('camps')
  corpus = [text for n in range(60) for text in texts(random.Random(n))]
  vocabulary = Vocabulary.train(corpus, root / 'vocabulary.model', size=240)
  ids = lambda text: np.array(vocabulary.encode(text), np.int32)
  for folder, knows in (('tasks', True), ('nobody', False)):
    task = root / folder / 'movielens_appeal'
    task.mkdir(parents=True)
    for split in PAIRS:
      writer = ArrayRecordWriter(
        str(task / f'{split}.array_record'), 'group_size:1'
      )
      for user, chosen, rejected in pairs(split):
        example = {
          'inputs': ids('tea'),
          'targets_chosen': ids(chosen),
          'targets_rejected': ids(rejected),
          'label': 1.0,
          'user_id': user if knows else '',
          'item_id': '',
        }
        writer.write(encode_record(example))
      writer.close()
    counts = {split: USERS * count for split, count in PAIRS.items()}
    info = {'cf_kinds': [], 'num_examples': counts}
    (task / 'info.json').write_text(json.dumps(info))
  return root


@pytest.fixture(name='train', scope='module')
def _train(data):
  """Runs train_reward and returns its report."""

  def train(output_dir, folder='tasks', **options):
    cached = CachedTask(str(data / folder), ('movielens_appeal',), ())
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(cache, 'ensure_cached', lambda *args, **kwargs: cached)
      train_reward(
        **{
          'kind': 'appeal',
          'data_dir': str(data),
          'output_dir': str(output_dir),
          'model': LM,
          'training': FitConfig(
            stage='full',
            optimizer=OptimizerConfig('adamw', 1e-2),
            steps=60,
            seed=0,
          ),
          'batch_size': 48,
          'prompt_length': 4,
          'response_length': 10,
          **options,
        }
      )
    return json.loads((output_dir / 'report.json').read_text())

  return train


@pytest.fixture(name='reward', scope='module')
def _reward(train, tmp_path_factory):
  directory = tmp_path_factory.mktemp('variational') / 'appeal'
  report = train(directory, preference='variational', num_heads=4)
  return directory, report


def test_two_camps_are_told_apart_where_one_score_is_at_chance(
  reward, train, tmp_path
):
  single = train(tmp_path / 'single')['validation']
  assert 0.4 < single['accuracy'] < 0.6
  _, report = reward
  assert report['validation']['count'] == USERS * PAIRS['validation']
  assert report['validation']['accuracy'] > 0.9
  assert report['validation']['nll'] < single['nll'] - 0.2


def test_the_term_judges_for_the_user_of_the_request(reward):
  directory, report = reward
  [term] = load_reward_terms({'appeal': directory}, batch_size=4)
  day, night = texts(random.Random('new'))
  asked = [
    RewardRequest(text, 'i', user)
    for user in ('u0', 'u1', 'nobody')
    for text in (day, night)
  ]
  found = evaluate_term(term, asked)
  for_day, for_night, unknown = -np.diff(found.values.reshape(3, 2)).ravel()
  assert for_day > 0.5 and for_night < -0.5
  # Whoever has no pairs gets what lies between the camps.
  assert for_night < unknown < for_day
  np.testing.assert_allclose(
    unknown, _gap_at(directory, term, (day, night), 0.0), atol=1e-4
  )
  latents = UserLatents.load(directory)
  assert latents.user_ids == sorted(f'u{user}' for user in range(USERS))
  at = float(latents.means[latents.user_ids.index('u0'), 0])
  np.testing.assert_allclose(
    for_day, _gap_at(directory, term, (day, night), at), rtol=1e-3
  )
  # The camps lie on two sides of the prior's mean.
  sides = np.sign(latents.means[:, 0])
  camps = np.array([int(user[1:]) % 2 for user in latents.user_ids])
  assert abs(np.mean(sides[camps == 0]) - np.mean(sides[camps == 1])) == 2
  assert report['validation']['mean_score'] != 0


def _gap_at(directory, term, sides, latent):
  """s(first) - s(second) + (g(first) - g(second)) z, by the model's heads."""
  model = load_model(directory).module()
  vocabulary = Vocabulary.load(directory / 'vocabulary.model')
  tokens = np.zeros((2, term.config.response_length), np.int32)
  for row, text in zip(tokens, sides):
    ids = [*vocabulary.encode(text), vocabulary.eos_id]
    row[: len(ids)] = ids
  prompt = np.zeros((2, term.config.prompt_length), np.int32)
  ids = vocabulary.encode('appeal:')[: term.config.prompt_length]
  prompt[:, : len(ids)] = ids
  inputs = (prompt, tokens, np.zeros((2, 0, 0)), np.zeros((2, 0), np.int32))
  first, second = np.asarray(model.head_scores(*map(jnp.asarray, inputs)))
  gap = first - second
  return gap[0] + gap[1] * latent


def test_a_run_in_two_parts_ends_with_the_same_bits(train, reward, tmp_path):
  directory, _ = reward
  options = {'preference': 'variational', 'num_heads': 4}
  first = FitConfig(
    stage='full',
    optimizer=OptimizerConfig('adamw', 1e-2),
    steps=25,
    seed=0,
  )
  train(tmp_path / 'a', training=first, **options)
  train(tmp_path / 'a', **options)
  whole, again = (
    UserLatents.load(path).means for path in (directory, tmp_path / 'a')
  )
  np.testing.assert_array_equal(whole, again)


def test_what_does_not_fit_is_named(train, tmp_path):
  options = {'preference': 'variational', 'num_heads': 4}
  for more, message in (
    ({'num_heads': 3}, '1 \\+ 3 d .* got .appeal. and 3'),
    ({'num_heads': 1}, '1 \\+ 3 d'),
    ({'folder': 'nobody'}, 'none of the 240 pairs of split'),
    ({'loss': RewardLossConfig(margin=0.1)}, 'margin is not for'),
  ):
    with pytest.raises(UserError, match=message):
      train(tmp_path / 'out', **(options | more))
  with pytest.raises(UserError, match='training has not ended'):
    UserLatents.load(tmp_path)
  (tmp_path / 'latents.npz').write_bytes(b'PK')
  with pytest.raises(UserError, match='is damaged'):
    UserLatents.load(tmp_path)
