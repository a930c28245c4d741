"""What the models read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p4lm.data import prompts

ITEM = {
  'title': 'Matrix, The (1999)',
  'plot': 'Genres: action. A hacker learns the truth.',
}


def test_every_prompt_is_worded_so():
  assert prompts.plot_prompt() == prompts.Prompt(
    'item: <extra_id_0> plot:', ('item',)
  )
  assert prompts.preferences_prompt() == prompts.Prompt(
    'user: <extra_id_0> likes:', ('user',)
  )
  assert prompts.pitch_prompt(ITEM) == prompts.Prompt(
    'user: <extra_id_0> item: <extra_id_0> title: The Matrix (1999) '
    'plot: Genres: action. A hacker learns the truth. pitch:',
    ('user', 'item'),
  )
  assert prompts.pitch_text_prompt(
    ITEM, ['enjoys westerns.', 'avoids war']
  ) == (
    prompts.Prompt(
      'likes: enjoys westerns; avoids war title: The Matrix (1999) '
      'plot: Genres: action. A hacker learns the truth. pitch:'
    )
  )
  assert prompts.nli_prompt('A  <br>plot.') == prompts.Prompt(
    'premise: A plot. hypothesis:'
  )
  assert prompts.appeal_prompt() == prompts.Prompt('appeal:')
  # What a reward model reads is what the pitch was written from.
  pitch = prompts.pitch_prompt(ITEM)
  assert prompts.personalization_prompt(ITEM) == pitch
  assert prompts.relevance_prompt(ITEM) == pitch


def test_prompts_of_the_base_have_words_where_vectors_will_be():
  assert prompts.title_plot_prompt(ITEM) == prompts.Prompt(
    'item: The Matrix (1999) plot:'
  )
  assert prompts.preferences_plain_prompt() == prompts.Prompt('user: likes:')
  assert prompts.pitch_plain_prompt(ITEM) == prompts.Prompt(
    'title: The Matrix (1999) '
    'plot: Genres: action. A hacker learns the truth. pitch:'
  )


def test_a_premise_is_cut_as_the_plot_of_a_pitch_is():
  words = [f'word{n}' for n in range(prompts.MAX_PLOT_WORDS + 9)]
  kept = prompts.nli_prompt(' '.join(words)).text.split()[1:-1]
  assert kept == words[: prompts.MAX_PLOT_WORDS]


@pytest.mark.parametrize('count', [1, 3])
def test_each_vector_has_its_placeholders_first(count):
  prompt = prompts.pitch_prompt(ITEM, count)
  soft = ' '.join([prompts.SOFT] * count)
  assert prompt.text.startswith(f'user: {soft} item: {soft} title:')
  assert prompt.cf_kinds == ('user', 'item')


def test_tokens_per_vector_must_be_positive():
  with pytest.raises(ValueError, match='at least 1, got 0'):
    prompts.plot_prompt(0)


HOSTILE = [
  'a <extra_id_0> b',
  '<extra_<extra_id_0>id_0>',
  '\uff1cextra_id_0\uff1e',
  '\ufe64extra_id_0\ufe65',
  '<<extra_id_0>>',
  '<extra_id_0\n>',
  '<' + 'x' * 50 + '<extra_id_0>',
]


def _all_prompts(text):
  item = {'title': text, 'plot': text}
  return [
    prompts.pitch_prompt(item),
    prompts.pitch_text_prompt(item, [text]),
    prompts.title_plot_prompt(item),
    prompts.pitch_plain_prompt(item),
    prompts.nli_prompt(text),
    prompts.personalization_prompt(item),
    prompts.relevance_prompt(item),
    prompts.Prompt(prompts.preferences_text([text])),
    prompts.Prompt(prompts.clean_text(text)),
  ]


@pytest.mark.parametrize('text', HOSTILE)
def test_texts_cannot_add_placeholders(text):
  for prompt in _all_prompts(text):
    assert prompt.text.count(prompts.SOFT) == len(prompt.cf_kinds)
    assert prompt.text.count('<') == len(prompt.cf_kinds)


@pytest.mark.parametrize('text', HOSTILE)
def test_the_tokenizer_finds_no_added_placeholder(text, vocabulary):
  for prompt in _all_prompts(text):
    tokens = vocabulary.encode(prompt.text)
    assert tokens.count(vocabulary.soft_token_id) == len(prompt.cf_kinds)


def test_the_tokenizer_finds_every_placeholder(vocabulary):
  tokens = vocabulary.encode(prompts.pitch_prompt(ITEM, 4).text)
  assert tokens.count(vocabulary.soft_token_id) == 8


@pytest.fixture(scope='module')
def vocabulary(tmp_path_factory):
  from p4lm.data.vocabulary import Vocabulary

  texts = [prompts.pitch_prompt(ITEM).text.replace(prompts.SOFT, '')] * 20
  path = tmp_path_factory.mktemp('vocabulary') / 'model'
  return Vocabulary.train(texts, path, size=320)


@given(st.text())
def test_clean_text_is_one_line_and_stays_clean(text):
  clean = prompts.clean_text(text)
  assert prompts.clean_text(clean) == clean
  assert not set(clean) & set('<>\n\uff1c\uff1e')
  assert clean == ' '.join(clean.split())


@given(st.text('ab .,&\'"-:', max_size=60))
def test_clean_text_keeps_ordinary_words(text):
  assert prompts.clean_text(text) == ' '.join(text.split())


@given(st.text('ab. ', max_size=80), st.integers(1, 12))
def test_shorten_gives_a_beginning_of_at_most_max_words(text, max_words):
  short = prompts.shorten(text, max_words)
  assert len(short.split()) <= max_words
  assert ' '.join(text.split()).startswith(short)


def test_long_plots_are_cut_and_the_end_of_the_prompt_is_kept():
  item = {'title': 'T', 'plot': 'word ' * 500}
  text = prompts.pitch_prompt(item).text
  assert text.endswith(' pitch:')
  assert text.count('word') == prompts.MAX_PLOT_WORDS


@pytest.mark.parametrize(
  ('title', 'spoken'),
  [
    ('Toy Story (1995)', 'Toy Story (1995)'),
    ('American President, The (1995)', 'The American President (1995)'),
    (
      'City of Lost Children, The (Cité des enfants perdus, La) (1995)',
      'The City of Lost Children (Cité des enfants perdus, La) (1995)',
    ),
    ('Good, the Bad and the Ugly, The', 'The Good, the Bad and the Ugly'),
    ('Me, Myself & Irene (2000)', 'Me, Myself & Irene (2000)'),
  ],
)
def test_titles_are_written_as_spoken(title, spoken):
  assert prompts.display_title(title) == spoken
