"""A vocabulary whose special ids are Gemma's, and plain ids."""

from __future__ import annotations

import io

import pytest
import sentencepiece

from p4lm.data.token_ids import TokenIds
from p4lm.data.vocabulary import Vocabulary
from p4lm.errors import UserError

CORPUS = [
  'The quiet harbour hides a thief, and a tired detective follows.',
  'A detective hunted by a thief crosses the quiet desert in 1987.',
]


def trained(path, **options):
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(CORPUS * 4),
    model_writer=model,
    vocab_size=60,
    pad_id=0,
    eos_id=1,
    bos_id=2,
    unk_id=3,
    hard_vocab_limit=False,
    num_threads=1,
    minloglevel=3,
    **options,
  )
  path.write_bytes(model.getvalue())
  return Vocabulary.load(path)


@pytest.fixture(scope='module')
def gemma(tmp_path_factory):
  return trained(
    tmp_path_factory.mktemp('v') / 'tokenizer.model',
    user_defined_symbols=['<unused0>', '<unused1>'],
    add_dummy_prefix=False,
  )


def test_no_id_is_added_to_the_file(gemma):
  processor = sentencepiece.SentencePieceProcessor(str(gemma.path))
  assert gemma.size == processor.get_piece_size()
  assert (gemma.bos_id, gemma.eos_id, gemma.unk_id) == (2, 1, 3)
  text = 'The quiet detective'
  assert gemma.encode(text) == processor.encode(text)
  assert gemma.encode_prompt(text) == [2, *processor.encode(text)]


def test_the_placeholder_is_a_piece_of_the_file(gemma):
  ids = gemma.encode('user:<extra_id_0> thief')
  assert gemma.soft_token_id == 4
  assert ids.count(4) == 1
  assert gemma.encode_batch(['a<extra_id_0>'])[0][-1] == 4


def test_decoding_drops_what_frames_a_text(gemma):
  ids = gemma.encode_prompt('A quiet thief')
  assert gemma.decode([0, *ids, 1, 7, 7]) == 'A quiet thief'


def test_a_file_without_the_piece_has_no_placeholder(tmp_path):
  assert trained(tmp_path / 'plain.model').soft_token_id is None


def test_prompts_of_t5_have_no_beginning(tmp_path):
  vocabulary = Vocabulary.train(CORPUS, tmp_path / 'v.model', size=200)
  assert vocabulary.bos_id is None
  assert vocabulary.encode_prompt('thief') == vocabulary.encode('thief')


def test_plain_ids_have_no_text():
  ids = TokenIds(size=50, eos_id=1)
  assert ids.decode([3, 4]) is None and ids.decode_batch([[3], [4]]) == [
    None,
    None,
  ]
  for encode in (ids.encode, ids.encode_prompt):
    with pytest.raises(UserError, match='give prompt_tokens'):
      encode('a text')
