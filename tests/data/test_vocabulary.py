import pytest

from p4lm.data.vocabulary import EXTRA_IDS, Vocabulary
from p4lm.errors import UserError

CORPUS = [
  'The quiet harbour hides a thief, and a tired detective follows.',
  'A detective hunted by a thief crosses the quiet desert in 1987.',
  'user: likes slow mysteries; avoids musicals. pitch: a Café noir for 2!',
]


@pytest.fixture(scope='module')
def vocabulary(tmp_path_factory):
  path = tmp_path_factory.mktemp('vocabulary') / 'made' / 'vocabulary.model'
  return Vocabulary.train(CORPUS, path, size=300)


def test_training_twice_gives_the_same_file(vocabulary, tmp_path):
  again = Vocabulary.train(iter(CORPUS), tmp_path / 'v.model', size=300)
  assert again.path.read_bytes() == vocabulary.path.read_bytes()
  assert again.sha256 == vocabulary.sha256
  assert [p.name for p in tmp_path.iterdir()] == ['v.model']


def test_special_ids_and_sentinels_are_those_of_t5(vocabulary):
  assert (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id) == (0, 1, 2)
  assert vocabulary.soft_token_id == vocabulary.size - 1
  for k in (0, 1, EXTRA_IDS - 1):
    assert vocabulary.encode(f'<extra_id_{k}>') == [vocabulary.size - 1 - k]


def test_a_sentinel_between_words_is_one_token(vocabulary):
  ids = vocabulary.encode('user: <extra_id_0> <extra_id_0> likes')
  soft = vocabulary.soft_token_id
  assert ids.count(soft) == 2
  assert ids == [
    *vocabulary.encode('user:'),
    soft,
    soft,
    *vocabulary.encode('likes'),
  ]


def test_any_ascii_text_survives_and_digits_are_split(vocabulary):
  text = 'zebra (1994) & {x|y} ~ "quoted" #7/8 @home'
  assert vocabulary.decode(vocabulary.encode(text)) == text
  assert vocabulary.unk_id not in vocabulary.encode(text)
  digits = set(vocabulary.encode('1987')) - set(vocabulary.encode('x'))
  assert len(digits) >= 4


def test_decoding_stops_at_eos_and_drops_padding(vocabulary):
  ids = vocabulary.encode('The quiet harbour')
  padded = [0, *ids, 0, 1, *ids, 0]
  assert vocabulary.decode(padded) == 'The quiet harbour'
  assert vocabulary.decode([]) == ''
  assert vocabulary.decode([1, *ids]) == ''
  beyond = [*ids, vocabulary.size + 5]
  assert vocabulary.decode(beyond) == vocabulary.decode([*ids, 2])
  assert vocabulary.decode_batch([ids, [1]]) == ['The quiet harbour', '']


def test_batches_are_encoded_like_single_texts(vocabulary):
  assert vocabulary.encode_batch(CORPUS) == [
    vocabulary.encode(text) for text in CORPUS
  ]
  assert vocabulary.encode_batch([]) == []
  assert vocabulary.encode('') == []


def test_loading_gives_what_was_trained(vocabulary):
  loaded = Vocabulary.load(vocabulary.path)
  assert loaded.sha256 == vocabulary.sha256
  assert loaded.encode(CORPUS[0]) == vocabulary.encode(CORPUS[0])


def test_t5_model_has_its_known_ids(data_dir):
  t5 = Vocabulary.load(data_dir / 'tokenizers' / 't5' / 'spiece.model')
  assert t5.size == 32_100
  assert t5.encode('<extra_id_0>') == [32_099]
  text = 'The house is wonderful.'
  assert t5.encode(text) == [37, 629, 19, 1627, 5]
  assert t5.decode(t5.encode(text)) == text


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(UserError, match='absent.model.*make_data'):
    Vocabulary.load(tmp_path / 'absent.model')


@pytest.mark.parametrize(
  'content', [b'', b'not a model', b'PK\x03\x04' * 9, bytes(range(256)) * 20]
)
def test_files_of_another_kind_are_refused(tmp_path, content):
  path = tmp_path / 'bad.model'
  path.write_bytes(content)
  with pytest.raises(UserError, match='bad.model is not a whole Sentence'):
    Vocabulary.load(path)


def test_a_model_cut_anywhere_is_refused(vocabulary, tmp_path):
  """Also between two pieces, where what is left is a valid message."""
  model = vocabulary.path.read_bytes()
  path = tmp_path / 'cut.model'
  boundary = model.index(b'\x0a', 200)
  cuts = [1, 7, 100, *range(boundary, boundary + 40), len(model) - 1]
  for cut in cuts:
    path.write_bytes(model[:cut])
    with pytest.raises(UserError, match='not a whole SentencePiece model'):
      Vocabulary.load(path)


def test_a_model_with_other_special_ids_is_refused(tmp_path):
  import sentencepiece

  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(CORPUS),
    model_prefix=str(tmp_path / 'other'),
    vocab_size=120,
    hard_vocab_limit=False,
    minloglevel=3,
  )
  with pytest.raises(UserError, match=r'\(-1, 2, 0\).*--pad_id=0'):
    Vocabulary.load(tmp_path / 'other.model')


def test_training_refuses_no_text_and_too_small_a_size(tmp_path):
  path = tmp_path / 'v.model'
  with pytest.raises(UserError, match='holds no text'):
    Vocabulary.train(['', '  '], path, size=300)
  with pytest.raises(UserError, match='size=150.*Raise size'):
    Vocabulary.train(CORPUS, path, size=150)
  assert list(tmp_path.iterdir()) == []
