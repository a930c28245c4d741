"""Examples written by Protocol Buffers' own library, read by ours."""

import numpy as np
import pyarrow as pa
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given, settings
from hypothesis import strategies as st

from p4lm.data import tf_examples, tfrecords

# tensorflow/core/example/{example,feature}.proto
LISTS = {
  'bytes_list': 'BytesList',
  'float_list': 'FloatList',
  'int64_list': 'Int64List',
}


def _example_class():
  file = descriptor_pb2.FileDescriptorProto(
    name='p4lm_test_example.proto', package='p4lm.test', syntax='proto3'
  )
  field = descriptor_pb2.FieldDescriptorProto
  for name, kind in (
    ('BytesList', field.TYPE_BYTES),
    ('FloatList', field.TYPE_FLOAT),
    ('Int64List', field.TYPE_INT64),
  ):
    file.message_type.add(name=name).field.add(
      name='value', number=1, type=kind, label=field.LABEL_REPEATED
    )
  feature = file.message_type.add(name='Feature')
  feature.oneof_decl.add(name='kind')
  for number, (name, kind) in enumerate(LISTS.items(), 1):
    feature.field.add(
      name=name, number=number, type=field.TYPE_MESSAGE, oneof_index=0,
      type_name=f'.p4lm.test.{kind}', label=field.LABEL_OPTIONAL,
    )  # fmt: skip
  features = file.message_type.add(name='Features')
  entry = features.nested_type.add(name='FeatureEntry')
  entry.options.map_entry = True
  entry.field.add(
    name='key', number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL
  )
  entry.field.add(
    name='value', number=2, type=field.TYPE_MESSAGE,
    type_name='.p4lm.test.Feature', label=field.LABEL_OPTIONAL,
  )  # fmt: skip
  features.field.add(
    name='feature', number=1, type=field.TYPE_MESSAGE,
    type_name='.p4lm.test.Features.FeatureEntry', label=field.LABEL_REPEATED,
  )  # fmt: skip
  file.message_type.add(name='Example').field.add(
    name='features', number=1, type=field.TYPE_MESSAGE,
    type_name='.p4lm.test.Features', label=field.LABEL_OPTIONAL,
  )  # fmt: skip
  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  found = pool.FindMessageTypeByName('p4lm.test.Example')
  return message_factory.GetMessageClass(found)


EXAMPLE = _example_class()


def _serialized(features, names=None) -> bytes:
  """{name: (kind, values)}, in the order of `names` if they are given."""
  parts = []
  for name in names or features:
    example = EXAMPLE()
    kind, values = features[name]
    found = getattr(example.features.feature[name], kind)
    found.SetInParent()  # An empty list is there too.
    found.value.extend(values)
    parts.append(example.features.SerializeToString())
  body = b''.join(parts)  # Joined messages are one with the fields of all.
  return b'\x0a' + _varint(len(body)) + body


def _varint(number: int) -> bytes:
  found = bytearray()
  while number >= 0x80:
    found.append(number & 0x7F | 0x80)
    number >>= 7
  return bytes([*found, number])


def _block(records) -> tfrecords.Block:
  """Records with something between them, as in a file."""
  lengths = np.array([len(record) for record in records], np.int64)
  starts = 3 + np.cumsum(lengths + 5) - lengths - 5
  data = b'abc' + b''.join(record + b'?????' for record in records)
  return tfrecords.Block(data, tfrecords.Places(starts, lengths))


FLOATS = st.floats(width=32, allow_nan=False)
INTEGERS = st.integers(-(2**63), 2**63 - 1)
RECORD = st.fixed_dictionaries(
  {
    'user_id': st.text(max_size=9).map(lambda x: ('bytes_list', [x.encode()])),
    'movie_title': st.text(max_size=300).map(
      lambda x: ('bytes_list', [x.encode()])
    ),
    'user_rating': FLOATS.map(lambda x: ('float_list', [x])),
    'timestamp': INTEGERS.map(lambda x: ('int64_list', [x])),
    'movie_genres': st.lists(INTEGERS, max_size=40).map(
      lambda x: ('int64_list', x)
    ),
    'another': st.lists(FLOATS, max_size=40).map(lambda x: ('float_list', x)),
  }
)
ASKED = (
  'user_id', 'movie_title', 'user_rating', 'timestamp', 'movie_genres'
)  # fmt: skip


@settings(deadline=None)
@given(st.data())
def test_what_protocol_buffers_wrote_is_read(data):
  records, written = data.draw(st.lists(RECORD, max_size=6)), []
  for record in records:
    names = data.draw(st.permutations(list(record)))
    written.append(_serialized(record, names))
    example = EXAMPLE.FromString(written[-1])
    for name, (kind, values) in record.items():
      read = getattr(example.features.feature[name], kind).value
      assert list(read) == list(values)
  found = tf_examples.parse(_block(written), ASKED)
  for name in ('user_id', 'movie_title'):
    texts = [record[name][1][0].decode() for record in records]
    assert found[name].texts().to_pylist() == texts
    joined = tf_examples.join_ids([found[name].ids()])
    assert joined.to_pylist() == texts
    assert len(joined.dictionary) == len(set(texts))
  ratings = [record['user_rating'][1][0] for record in records]
  assert found['user_rating'].floats().tolist() == ratings
  assert found['user_rating'].floats().dtype == np.float32
  times = [record['timestamp'][1][0] for record in records]
  assert found['timestamp'].integers().tolist() == times
  lists = [record['movie_genres'][1] for record in records]
  assert found['movie_genres'].integer_lists().to_pylist() == lists


def _ids(*texts) -> pa.Array:
  records = [_serialized({'id': ('bytes_list', [text])}) for text in texts]
  return tf_examples.parse(_block(records), ['id'])['id'].ids()


def test_short_and_long_ids_of_several_blocks_are_one_column():
  """Seven bytes fit into a word; a zero byte and none differ."""
  short = _ids(b'1234567', b'a', b'a\0', b'', '€'.encode())
  long = _ids(b'12345678', b'a')
  again = _ids(b'1234567')
  assert pa.types.is_uint64(short.type)
  assert not pa.types.is_uint64(long.type)
  for pieces in ([short, again], [short, long, again], [long], []):
    texts = []
    for piece in pieces:
      texts += ['1234567', 'a', 'a\0', '', '€'] if piece is short else []
      texts += ['12345678', 'a'] if piece is long else []
      texts += ['1234567'] if piece is again else []
    joined = tf_examples.join_ids(pieces)
    assert joined.to_pylist() == texts
    assert len(joined.dictionary) == len(set(texts))
    assert joined.type == pa.dictionary(pa.int32(), pa.string())


GOOD = {
  'id': ('bytes_list', [b'12']),
  'rating': ('float_list', [4.5]),
  'time': ('int64_list', [978300760]),
}


@pytest.mark.parametrize(
  ('change', 'read', 'message'),
  [
    ({'id': ('bytes_list', [])}, 'texts', 'a field is missing'),
    ({'id': ('bytes_list', [b'1', b'2'])}, 'texts', "'id' is not one text"),
    ({'id': ('bytes_list', [b'\xff'])}, 'texts', 'not UTF-8'),
    ({'id': ('int64_list', [1])}, 'texts', 'a field is missing'),
    ({'rating': ('float_list', [])}, 'floats', "'rating' is not one number"),
    ({'rating': ('float_list', [1, 2])}, 'floats', "'rating' is not one numb"),
    ({'rating': ('int64_list', [1])}, 'floats', 'a field is missing'),
    ({'time': ('int64_list', [1, 2])}, 'integers', "'time' is not one number"),
    ({'time': ('int64_list', [])}, 'integers', "'time' is not one number"),
  ],
)
def test_other_values_than_expected_are_errors(change, read, message):
  """In the second of three records."""
  name = next(iter(change))
  records = [_serialized({**GOOD, **new}) for new in ({}, change, {})]
  feature = tf_examples.parse(_block(records), [name])[name]
  with pytest.raises(tf_examples.NotAnExample, match=message):
    getattr(feature, read)()


def test_a_feature_that_is_not_there_is_an_error():
  lacking = {name: GOOD[name] for name in ('id', 'time')}
  block = _block([_serialized(GOOD), _serialized(lacking), b''])
  with pytest.raises(tf_examples.NotAnExample):
    tf_examples.parse(block, ['id'])
  block = _block([_serialized(GOOD), _serialized(lacking)])
  tf_examples.parse(block, ['id', 'time'])
  with pytest.raises(tf_examples.NotAnExample, match="it has no 'rating'"):
    tf_examples.parse(block, ['id', 'rating'])


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_bytes_that_are_no_example_are_an_error_or_read(record):
  """Never a crash, nor what lies beyond the record."""
  _read_or_refuse(record)


@settings(deadline=None)
@given(st.data())
def test_a_changed_example_is_an_error_or_read(data):
  record = bytearray(_serialized(GOOD))
  place = data.draw(st.integers(0, len(record) - 1))
  record[place] = data.draw(st.integers(0, 255))
  _read_or_refuse(bytes(record))
  _read_or_refuse(bytes(record[:place]))


def _read_or_refuse(record):
  block = _block([_serialized(GOOD), record])
  try:
    found = tf_examples.parse(block, list(GOOD))
    found['id'].texts()
    found['rating'].floats()
    found['time'].integers()
    found['time'].integer_lists()
  except tf_examples.NotAnExample:
    return
  values = EXAMPLE.FromString(record).features.feature
  assert (
    found['id'].texts()[1].as_py().encode()
    == (values['id'].bytes_list.value[0])
  )
