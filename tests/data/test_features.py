"""Converters by literal examples."""

import doctest

import numpy as np
import pytest

from p4lm.data import features as features_module
from p4lm.data import records
from p4lm.data.features import (
  CFFeatures,
  LMConverter,
  PairConverter,
  PointwiseConverter,
)
from p4lm.errors import UserError

VECTORS = {('user', '42'): [1.0, 2.0], ('item', '7'): [3.0, 4.0]}
CF = CFFeatures(lambda kind, id_: np.array(VECTORS[kind, id_]), 2)


def ids(*tokens):
  return np.array(tokens, np.int32)


PITCH = {
  'inputs': ids(7, 90, 8, 90, 5),
  'targets': ids(12, 13),
  'user_id': '42',
  'item_id': '7',
}


def check(features, **expected):
  assert features.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(features[name], value, err_msg=name)


def test_a_pitch_becomes_padded_prompt_and_response():
  features = LMConverter(6, 4, eos_id=1, cf=CF)(PITCH, ('user', 'item'))
  check(
    features,
    prompt_tokens=[7, 90, 8, 90, 5, 0],
    response_tokens=[12, 13, 1, 0],
    response_mask=[True, True, True, False],
    cf_embeddings=[[1, 2], [3, 4]],
    cf_kind_ids=[0, 1],
  )
  dtypes = {name: value.dtype.name for name, value in features.items()}
  assert dtypes == {
    'prompt_tokens': 'int32',
    'response_tokens': 'int32',
    'response_mask': 'bool',
    'cf_embeddings': 'float32',
    'cf_kind_ids': 'int32',
  }


def test_vectors_come_in_the_order_of_the_placeholders():
  features = LMConverter(6, 4, 1, CF)(PITCH, ('item', 'user'))
  assert features['cf_embeddings'].tolist() == [[3, 4], [1, 2]]
  assert features['cf_kind_ids'].tolist() == [1, 0]


@pytest.mark.parametrize(
  'length, tokens, mask',
  [
    (3, [12, 13, 1], [True, True, True]),
    (2, [12, 13], [True, True]),
    (1, [12], [True]),
  ],
)
def test_a_response_too_long_is_cut_and_does_not_end(length, tokens, mask):
  features = LMConverter(3, length, 1)({**PITCH}, ())
  assert features['prompt_tokens'].tolist() == [7, 90, 8]
  assert features['response_tokens'].tolist() == tokens
  assert features['response_mask'].tolist() == mask


def test_text_only_tasks_have_no_vectors():
  features = LMConverter(5, 3, 1)(PITCH, ())
  assert features['cf_embeddings'].shape == (0, 0)
  assert features['cf_kind_ids'].shape == (0,)


def test_a_task_with_vectors_needs_the_tables():
  with pytest.raises(UserError, match='user, item.*CF_DIR'):
    LMConverter(5, 3, 1)(PITCH, ('user', 'item'))


def test_pointwise_and_pairs():
  example = {
    'inputs': ids(5, 6),
    'targets': ids(8),
    'label': 0.25,
    'item_id': '7',
  }
  features = PointwiseConverter(3, 4, eos_id=1, cf=CF)(example, ('item',))
  check(
    features,
    prompt_tokens=[5, 6, 0],
    response_tokens=[8, 1, 0, 0],
    labels=np.float32(0.25),
    cf_embeddings=[[3, 4]],
    cf_kind_ids=[1],
  )
  assert features['labels'].dtype == np.float32
  assert features['labels'].shape == ()
  pair = {
    'inputs': ids(4),
    'targets_chosen': ids(5, 6, 7, 8),
    'targets_rejected': ids(9),
  }
  check(
    PairConverter(2, 3, eos_id=1)(pair, ()),
    prompt_tokens=[4, 0],
    chosen_tokens=[5, 6, 7],  # Cut, so it does not end.
    rejected_tokens=[9, 1, 0],
    labels=np.float32(1.0),
    cf_embeddings=np.zeros((0, 0)),
    cf_kind_ids=[],
  )
  tie = PairConverter(2, 3, eos_id=1)(pair | {'label': 0.5}, ())
  assert tie['labels'] == 0.5 and tie['labels'].dtype == np.float32


def test_documented_examples_hold():
  for module in (features_module, records):
    results = doctest.testmod(module)
    assert results.attempted and not results.failed
