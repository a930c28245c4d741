import numpy as np
import pytest

from p4lm.errors import UserError
from p4lm.rewards import rules
from p4lm.rewards.terms import (
  CallableTerm,
  RewardRequest,
  TermValues,
  evaluate_term,
)


def _requests(*texts):
  return [RewardRequest(text, 'item', 'user') for text in texts]


def test_a_callable_of_one_request():
  term = CallableTerm('words', lambda r: len(r.text.split()))
  answer = evaluate_term(term, _requests('a b', '', 'a b c'))
  np.testing.assert_array_equal(answer.values, [2, 0, 3])
  assert answer.values.dtype == np.float32
  assert answer.valid.all()


def test_a_callable_of_the_batch():
  term = CallableTerm('rank', lambda rs: range(len(rs)), batched=True)
  answer = evaluate_term(term, _requests('a', 'b'))
  np.testing.assert_array_equal(answer.values, [0, 1])


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf, None, 1e300])
def test_what_is_not_finite_is_masked(bad):
  term = CallableTerm('odd', lambda rs: [1.0, bad], batched=True)
  answer = evaluate_term(term, _requests('a', 'b'))
  np.testing.assert_array_equal(answer.valid, [True, False])
  np.testing.assert_array_equal(answer.values, [1, 0])


@pytest.mark.parametrize('answer', [[1.0], [1.0] * 3, 1.0, [[1.0], [2.0]]])
def test_another_length_names_the_term(answer):
  term = CallableTerm('short', lambda rs: answer, batched=True)
  with pytest.raises(UserError, match="'short' must return one value a text"):
    evaluate_term(term, _requests('a', 'b'))


def test_a_mask_of_another_length_names_the_term():
  term = CallableTerm(
    'mask', lambda rs: TermValues(np.zeros(2), np.ones(3, bool)), batched=True
  )
  with pytest.raises(UserError, match=r"'mask'.*valid of shape \(3,\)"):
    evaluate_term(term, _requests('a', 'b'))


@pytest.mark.parametrize('result', ['much', object()])
def test_what_is_no_number_names_the_term(result):
  term = CallableTerm('words', lambda r: result)
  with pytest.raises(UserError, match="'words' failed on a batch of 1 texts"):
    evaluate_term(term, _requests('a'))


def test_a_term_that_throws_is_named_with_its_error():
  def broken(request):
    raise KeyError('plot')

  with pytest.raises(UserError, match="'broken' failed.*KeyError: 'plot'"):
    evaluate_term(CallableTerm('broken', broken), _requests('a'))


def test_no_texts_no_values():
  term = CallableTerm('words', lambda r: 1.0)
  assert evaluate_term(term, []).values.shape == (0,)


def test_length_is_judged_relative_to_its_range():
  term = rules.length_term(fewest_words=4, most_words=10)
  texts = ['w ' * n for n in (0, 2, 4, 10, 15)]
  answer = evaluate_term(term, _requests(*texts))
  np.testing.assert_allclose(answer.values, [-1, -0.5, 0, 0, -0.5])
  with pytest.raises(ValueError, match='5 and 4'):
    rules.length_term(fewest_words=5, most_words=4)


def test_repetition_counts_ngrams_that_came_before():
  term = rules.repetition_term(ngram=2)
  texts = ['', 'one', 'a b a b a b', 'a b c d', 'A b a B']
  answer = evaluate_term(term, _requests(*texts))
  # a-b b-a a-b b-a a-b: three of five repeat; A-b b-a a-B: one of three.
  np.testing.assert_allclose(answer.values, [0, 0, -0.6, 0, -1 / 3], rtol=1e-6)
  with pytest.raises(ValueError, match='got 0'):
    rules.repetition_term(ngram=0)
