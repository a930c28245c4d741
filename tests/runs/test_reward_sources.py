"""Rewards of another tokenizer or CF table are refused before any work."""

import json
import pathlib

import numpy as np
import pytest
from tiny_models import ADAPTER, LM, SOFT

from p4lm.cf.tables import CFTables
from p4lm.data import tables
from p4lm.data.vocabulary import Vocabulary
from p4lm.errors import UserError
from p4lm.main import main
from p4lm.models.recommender import RecommenderConfig
from p4lm.models.reward_model import REWARD_KINDS, RewardModelConfig
from p4lm.runs.model_directory import describe, write_card
from p4lm.runs.reward_sources import check_reward_sources

READERS = ('personalization', 'relevance')


@pytest.fixture(name='vocabularies', scope='module')
def _vocabularies(tmp_path_factory):
  root = tmp_path_factory.mktemp('vocabularies')
  return [
    Vocabulary.train([text] * 3, root / f'{text}.model', size=250)
    for text in ('one', 'two')
  ]


@pytest.fixture(name='fits', scope='module')
def _fits(tmp_path_factory):
  """Two directories of CF tables that differ in one number."""
  root = tmp_path_factory.mktemp('fits')
  for number in range(2):
    users = np.ones((2, ADAPTER.cf_width), np.float32)
    users[1, 0] += number
    CFTables(users, users[:1], ['a', 'b'], ['i']).save(root / f'cf{number}')
  return [root / 'cf0', root / 'cf1']


@pytest.fixture(name='make')
def _make(tmp_path, vocabularies, fits):
  """Writes the card of a model of given sources; returns its directory."""

  def make(name, kind=None, cf=0, vocabulary=0):
    adapter = None if cf is None else ADAPTER
    config = RecommenderConfig(LM, adapter, SOFT)
    if kind is not None:
      config = RewardModelConfig(LM, adapter, SOFT, kind)
    card = describe(
      config,
      task='movielens_pitch',
      vocabulary=vocabularies[vocabulary],
      prompt_length=9,
      response_length=9,
      tables=None if cf is None else CFTables.load(fits[cf]),
      cf_dir=None if cf is None else fits[cf],
    )
    (tmp_path / name).mkdir()
    write_card(tmp_path / name, card, vocabularies[vocabulary])
    return str(tmp_path / name)

  return make


@pytest.fixture(name='rewards')
def _rewards(make):
  """One of each kind on the first fit; appeal and nli read no CF vector."""
  return {
    kind: make(kind, kind, 0 if kind in READERS else None)
    for kind in REWARD_KINDS
  }


def run(job, tmp_path, **settings):
  flags = [f'--gin.{name}={value}' for name, value in settings.items()]
  return main([job, f'--gin.OUTPUT_DIR={tmp_path / "out"}', *flags])


def test_rewards_of_the_policys_sources_pass(make, rewards):
  policies = {'SFT': make('sft'), 'SFT-Text': make('text', cf=None)}
  mine = {'mine': lambda request: 1.0}
  assert check_reward_sources(rewards | mine, policies) is None
  # Nothing to differ in: a policy of text, and one that takes token ids.
  other = make('other', 'personalization', cf=1)
  assert (
    check_reward_sources(
      {'personalization': other}, {'SFT-Text': policies['SFT-Text']}
    )
    is None
  )
  ids = make('ids', vocabulary=1)
  path = pathlib.Path(ids, 'model.json')
  without = {'vocabulary_sha256': None, 'eos_id': 1}
  path.write_text(json.dumps(json.loads(path.read_text()) | without))
  assert check_reward_sources(rewards, {'ids': ids}) is None


def test_rewards_must_agree_where_no_policy_tells(make, rewards):
  rewards['relevance'] = make('other', 'relevance', cf=1)
  with pytest.raises(UserError, match="'relevance' .* other CF .* 'personali"):
    check_reward_sources(rewards, {})


def test_what_is_no_such_reward_is_named(make, rewards):
  with pytest.raises(UserError, match='holds a recommender model'):
    check_reward_sources({'nli': make('sft')}, {})
  with pytest.raises(UserError, match="'nli': .* holds a 'appeal' reward"):
    check_reward_sources({'nli': rewards['appeal']}, {})


@pytest.mark.parametrize(
  'change,message',
  [
    ({'cf': 1}, 'reads other CF embeddings than'),
    ({'vocabulary': 1}, 'speaks another vocabulary than'),
  ],
)
@pytest.mark.parametrize('job', ['train_rl', 'evaluate', 'infer'])
def test_jobs_refuse_them_in_one_line(
  job, change, message, make, rewards, tmp_path, capsys
):
  """Only cards are there: whatever reads a checkpoint would fail otherwise."""
  policy = make('sft')
  rewards['relevance'] = make('other', 'relevance', **change)
  tables.save_tables(
    tmp_path,
    {n: tables.SCHEMAS[n].empty_table() for n in ('items', 'users')},
  )
  (tmp_path / 'in.jsonl').write_text('{"custom_id": "1"}\n')
  settings = {
    'train_rl': {'CHECKPOINT': policy, 'REWARDS': rewards},
    'evaluate': {
      'SYSTEMS': {'Text': make('text', cf=None), 'SFT': policy},
      'JUDGES': rewards,
    },
    'infer': {
      'MODE': 'reward',
      'INPUT': tmp_path / 'in.jsonl',
      'CHECKPOINT': policy,
      'REWARDS': rewards,
    },
  }[job]
  assert run(job, tmp_path, DATA_DIR=tmp_path, **settings) == 1
  said = capsys.readouterr().err
  [line] = [line for line in said.splitlines() if 'p4lm: error' in line]
  assert "reward 'relevance'" in line and message in line
  assert rewards['relevance'] in line and 'Traceback' not in said
  # Which of the two it is compared with is a system that has what differs.
  assert ('Text' in line) == (job == 'evaluate' and 'vocabulary' in change)
  if 'cf' in change:
    assert policy in line and '--gin.CF_DIR=' in line


def test_judges_are_counted_before_systems_write(
  make, rewards, tmp_path, capsys
):
  del rewards['nli']
  settings = {'SYSTEMS': {'SFT': make('sft')}, 'JUDGES': rewards}
  assert run('evaluate', tmp_path, DATA_DIR=tmp_path, **settings) == 1
  assert 'JUDGES lack nli' in capsys.readouterr().err
