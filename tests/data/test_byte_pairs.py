"""Byte-pair vocabularies against the tokenizers library."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p4lm.data.byte_pairs import BytePairVocabulary
from p4lm.errors import UserError

CORPUS = [
  "The quiet harbour hides a thief, and it's a tired detective who follows.",
  'A detective hunted by a thief crosses the quiet desert in 1987.',
  'user: likes slow  mysteries;\n\n avoids musicals. Café noir für 2!\t²½Ⅷ',
]
WHOLE = ['<|end|>', '<|start|>']
LLAMA_3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
  r' ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)


@pytest.fixture(scope='module', params=['gpt-2', 'smollm', 'llama-bpe'])
def pair(request):
  """The library's tokenizer, trained here, and ours of its tokens."""
  tokenizers = pytest.importorskip(
    'tokenizers', reason='the reference is absent: pip install transformers'
  )
  pre = tokenizers.pre_tokenizers
  level = pre.ByteLevel(add_prefix_space=False)
  if request.param == 'smollm':
    level = pre.Sequence([pre.Digits(individual_digits=True), level])
  if request.param == 'llama-bpe':
    split = pre.Split(tokenizers.Regex(LLAMA_3), 'isolated')
    plain = pre.ByteLevel(add_prefix_space=False, use_regex=False)
    level = pre.Sequence([split, plain])
  theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
  theirs.pre_tokenizer = level
  theirs.decoder = tokenizers.decoders.ByteLevel()
  theirs.train_from_iterator(
    CORPUS * 3,
    tokenizers.trainers.BpeTrainer(
      vocab_size=420,
      special_tokens=WHOLE,
      initial_alphabet=pre.ByteLevel.alphabet(),
      show_progress=False,
    ),
  )
  model = json.loads(theirs.to_str())['model']
  tokens = sorted(model['vocab'], key=model['vocab'].get)
  merges = [' '.join(pair) for pair in model['merges']]
  assert len(merges) > 50
  ours = BytePairVocabulary.make(
    tokens, merges, pattern=request.param, whole=WHOLE, eos_id=0, bos_id=None
  )
  return theirs, ours


@settings(max_examples=150, deadline=None)
@given(
  st.lists(
    st.one_of(
      st.sampled_from([*' \n\t\r\'"', "'s", "'LL", '  ', '19', '²', *WHOLE]),
      st.sampled_from(' '.join(CORPUS).split()),
      st.text(max_size=5),
    )
  ).map(''.join)
)
def test_ids_are_those_of_the_library(pair, text):
  theirs, ours = pair
  ids = ours.encode(text)
  assert ids == theirs.encode(text).ids
  if ours.eos_id not in ids:
    assert ours.decode(ids) == text


def test_a_response_ends_at_its_end(pair):
  _, ours = pair
  ids = ours.encode('a quiet thief')
  assert ours.decode([*ids, ours.eos_id, *ids]) == 'a quiet thief'
  assert ours.decode([*ids, ours.size + 3]) == 'a quiet thief'
  assert ours.encode_prompt('thief') == ours.encode('thief')


def test_files_come_back_and_damage_is_named(pair, tmp_path):
  _, ours = pair
  path = tmp_path / ours.file_name
  path.write_bytes(ours.contents)
  again = BytePairVocabulary.load(path)
  assert again.sha256 == ours.sha256
  assert again.encode(CORPUS[2]) == ours.encode(CORPUS[2])
  path.write_bytes(ours.contents[:500])
  with pytest.raises(UserError, match='vocabulary.json is damaged'):
    BytePairVocabulary.load(path)
  with pytest.raises(UserError, match="not as 'qwen2'"):
    BytePairVocabulary.make(
      ['a'], [], pattern='qwen2', whole=[], eos_id=0, bos_id=None
    )
