"""Sentences against premise chunks, with an entailment that can be redone."""

import dataclasses
import doctest

import numpy as np
import pytest

from p4lm.data import sentences
from p4lm.errors import UserError
from p4lm.rewards.joint import JointReward, JointRewardConfig
from p4lm.rewards.sentence_entailment import SentenceEntailment
from p4lm.rewards.terms import CallableTerm, RewardRequest, TermValues
from p4lm.rewards.terms import evaluate_term as judged

PLOT = 'Ann finds a map. Bob sells boats. Carl is a cook.'


def share_known(request):
  """Share of the words that the premise has; NaN without a premise."""
  premise = request.item['plot'].lower().strip('.').replace('.', ' ').split()
  words = request.text.lower().strip('.').split()
  return np.mean([w in premise for w in words]) if premise else np.nan


def asked(*texts, plot=PLOT):
  return [RewardRequest(text, 'i', 'u', {'plot': plot}) for text in texts]


def term(**options):
  return SentenceEntailment(CallableTerm('nli', share_known), **options)


TEXTS = ('Ann finds boats. Carl is a cook.', 'Bob sells a map.', 'x. y.')


@pytest.mark.parametrize(
  ('options', 'expected'),
  [
    # Chunks of one sentence: 'Ann finds boats' has 2 of 3 words in the first.
    ({'premise_words': 4}, [2 / 3, 2 / 4, 0]),
    ({'premise_words': 4, 'reduction': 'mean'}, [(2 / 3 + 1) / 2, 2 / 4, 0]),
    # In a premise of one chunk all words are known.
    ({'premise_words': 40}, [1, 1, 0]),
    # Two sentences and one: 'map' and 'Bob sells' are in the first chunk.
    ({'premise_words': 7}, [1, 1, 0]),
  ],
)
def test_a_sentence_is_as_entailed_as_its_best_chunk(options, expected):
  found = judged(term(**options), asked(*TEXTS))
  np.testing.assert_allclose(found.values, expected, rtol=1e-6)
  assert found.valid.all()
  assert found.counts['sentences'] == 4


def test_the_weakest_sentence_counts():
  lie = 'Ann finds a map. Zed flies.'
  whole = judged(CallableTerm('nli', share_known), asked(lie)).values
  weakest = judged(term(), asked(lie)).values
  assert weakest[0] == 0 < whole[0]


def test_what_cannot_be_judged_is_masked_and_counted():
  texts = ('', '  ', 'Ann finds a map.')
  found = judged(term(), asked(*texts))
  np.testing.assert_array_equal(found.valid, [False, False, True])
  assert found.counts['without_sentence'] == 2
  # One sentence without an answer leaves the text without one.
  nothing = judged(term(), asked('Ann finds a map.', plot=''))
  assert not nothing.valid.any()
  empty = judged(term(), [])
  assert empty.values.shape == (0,)


def test_responses_that_are_all_empty_stop_the_joint_reward():
  joint = JointReward([term()], JointRewardConfig(weights={'nli': 1.0}))
  with pytest.raises(UserError, match="'nli' has no finite value for any of 2"):
    joint(asked('', ''))


def test_the_checkpoint_is_passed_on():
  def answer(requests):
    rows = len(requests)
    return TermValues(
      np.ones(rows), np.ones(rows, bool), {'truncated': rows}, checkpoint='ab'
    )

  inner = CallableTerm('nli', answer, batched=True)
  found = judged(SentenceEntailment(inner), asked('One. Two.'))
  assert found.checkpoint == 'ab'
  assert found.counts['truncated'] == 2


@pytest.mark.parametrize(
  ('options', 'named'),
  [({'reduction': 'max'}, "got 'max'"), ({'premise_words': 0}, 'got 0')],
)
def test_bad_choices_are_named(options, named):
  with pytest.raises(UserError, match=named):
    term(**options)


def test_chunks_keep_every_sentence_in_order():
  assert doctest.testmod(sentences).failed == 0
  for size in range(1, 14):
    found = sentences.chunks(PLOT, size)
    assert ' '.join(found) == PLOT
    assert all(
      len(chunk.split()) <= size or len(sentences.split_sentences(chunk)) == 1
      for chunk in found
    )
  assert sentences.chunks('', 3) == []
  assert dataclasses.asdict(term())['premise_words'] == 40
