"""Titles, texts and prices of Amazon's metadata, value by value."""

import doctest

import pytest

from p4lm.data import amazon_items


def test_examples():
  found = doctest.testmod(amazon_items)
  assert found.attempted >= 3 and found.failed == 0


@pytest.mark.parametrize(
  ('price', 'value'),
  [
    ('$12.99', 12.99),
    ('$5.00 - $9.00', 5.0),
    ('$5.00-9', 5.0),
    ('from 12', 12.0),
    ('From $14.95', 14.95),
    ('$1,299.00', 1299.0),
    ('1e1', 10.0),
    ('.99', 0.99),
    (' $3 ', 3.0),
    (7, 7.0),
    (7.25, 7.25),
    ('', None),
    (None, None),
    ('$', None),
    ('-5', None),
    (-5.0, None),
    ('nan', None),
    (float('nan'), None),
    ('inf', None),
    ('1_000', None),
    ('5 stars', None),
    ('12.99.1', None),
    ('9' * 400, None),
    ('.a-box-inner{background-color:#fff}#alohaBuyBoxWidget{color:#12}', None),
  ],
)
def test_prices(price, value):
  assert amazon_items.parse_price(price) == value


@pytest.mark.parametrize(
  'title',
  [
    'var aPageStart = (new Date()).getTime();\nvar ue_t0=ue_t0||+new Date();',
    '\n  <span id="productTitle" class="a-size-large">Mug</span>',
    '&lt;span class=&quot;x&quot;&gt;Mug&lt;/span&gt;',
    'Mug <img src="x">',
    '<SCRIPT>',
    'Mug <br> large',
  ],
)
def test_scripts_are_no_titles(title):
  assert amazon_items.clean_title(title) is None


@pytest.mark.parametrize(
  'title',
  ['A < B > C', '5 <3', 'Span & Div', '<Anonymous>', 'Brass<->Iron', 'a<b'],
)
def test_odd_titles_are_titles(title):
  assert amazon_items.clean_title(title) == title


def test_descriptions_that_spell_a_list_are_lists():
  clean = amazon_items.clean_texts
  assert clean(["['It\\'s &amp; well.', '', \"b\"]"]) == ["It's & well.", 'b']
  assert clean(['["a", "b"]', 'c']) == ['["a", "b"]', 'c']
  for text in ('[1, 2]', '[unclosed', '[a b]', r"['\d']x", "['a'"):
    assert clean([text]) == [text]
  assert clean([r"['\d']"]) == [r'\d']
  assert clean(None) == clean([]) == clean([None, ' ']) == []
