import itertools
import json
import threading
import time

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import given
from hypothesis import strategies as st

from p4lm.data import loader, records
from p4lm.data.features import CFFeatures, LMConverter
from p4lm.data.order import GroupedOrder
from p4lm.errors import UserError


def write_task(cache_dir, name, counts, first=0, cf_kinds=()):
  """A cached task whose example i has the prompt [i+2] and response [i+3]."""
  (cache_dir / name).mkdir(parents=True)
  for split, count in counts.items():
    path = cache_dir / name / f'{split}.array_record'
    writer = ArrayRecordWriter(str(path), 'group_size:1')
    for i in range(first, first + count):
      example = {
        'inputs': np.array([i + 2], np.int32),
        'targets': np.array([i + 3], np.int32),
        'user_id': str(i),
        'item_id': '',
      }
      writer.write(records.encode_record(example))
    writer.close()
  info = {'cf_kinds': list(cf_kinds), 'num_examples': counts}
  (cache_dir / name / 'info.json').write_text(json.dumps(info))


@pytest.fixture(scope='module')
def cache_dir(tmp_path_factory):
  path = tmp_path_factory.mktemp('tasks')
  write_task(path, 'plots', {'train': 24, 'validation': 5})
  write_task(path, 'likes', {'train': 12, 'validation': 0}, first=100)
  return path


CONVERTER = LMConverter(prompt_length=2, response_length=3, eos_id=1)


def batches(cache_dir, tasks=('plots',), size=6, seed=0, start=0, **options):
  return loader.load_batches(
    cache_dir, tasks, 'train', CONVERTER, size, seed, start, **options
  )


def read_ids(some_batches):
  return [(b['prompt_tokens'][:, 0] - 2).tolist() for b in some_batches]


def test_a_batch_depends_on_seed_and_step_alone(cache_dir):
  whole = read_ids(itertools.islice(batches(cache_dir), 12))
  for start in (0, 1, 5, 11):
    resumed = next(batches(cache_dir, start=start))
    assert read_ids([resumed]) == [whole[start]]
  assert read_ids(itertools.islice(batches(cache_dir, seed=1), 12)) != whole


def test_a_grouped_order_resumes_and_keeps_runs_of_a_group_together(cache_dir):
  groups = [str(row % 5) for row in range(24)]
  order = lambda: GroupedOrder(groups, most=3, seed=0)
  whole = read_ids(itertools.islice(batches(cache_dir, order=order()), 12))
  for start in (0, 3, 11):
    resumed = next(batches(cache_dir, start=start, order=order()))
    assert read_ids([resumed]) == [whole[start]]
  epochs = [sum(whole[at : at + 4], []) for at in (0, 4, 8)]
  assert all(sorted(rows) == list(range(24)) for rows in epochs)
  assert epochs[0] != epochs[1] != epochs[2]


@given(
  st.lists(st.integers(0, 6), min_size=1, max_size=40),
  st.integers(1, 5),
  st.integers(0, 3),
)
def test_runs_of_a_group_are_as_long_as_they_may_be(groups, most, seed):
  order = GroupedOrder(groups, most, seed)
  rows = [order[position] for position in range(3 * len(groups))]
  for epoch in range(3):
    part = rows[epoch * len(groups) : (epoch + 1) * len(groups)]
    assert sorted(part) == list(range(len(groups)))
    # Least changes of group: a group of n rows has ceil(n / most) runs.
    runs = sum(-(-groups.count(group) // most) for group in set(groups))
    changes = sum(groups[a] != groups[b] for a, b in itertools.pairwise(part))
    assert changes < runs
  again = GroupedOrder(groups, most, seed)
  assert again[2 * len(groups)] == rows[2 * len(groups)]


def test_an_epoch_has_every_example_once_and_the_next_another_order(cache_dir):
  rows = read_ids(itertools.islice(batches(cache_dir), 8))
  first, second = sum(rows[:4], []), sum(rows[4:], [])
  assert sorted(first) == sorted(second) == list(range(24))
  assert first != second != list(range(24))


def test_a_mixture_draws_in_proportion_and_covers_all(cache_dir):
  rows = read_ids(itertools.islice(batches(cache_dir, ('plots', 'likes')), 12))
  assert sorted(sum(rows[:6], [])) == [*range(24), *range(100, 112)]
  assert any({r >= 100 for r in row} == {True, False} for row in rows)


def test_a_batch_may_be_larger_than_the_data(cache_dir):
  (row,) = read_ids([next(batches(cache_dir, ('likes',), size=30))])
  counts = np.bincount(np.array(row) - 100, minlength=12)
  assert counts.sum() == 30 and counts.min() >= 2 and counts.max() <= 3


def test_without_shuffling_the_order_is_that_of_the_cache(cache_dir):
  rows = read_ids(itertools.islice(batches(cache_dir, shuffle=False), 5))
  assert sum(rows, []) == [*range(24), *range(6)]


def test_processes_get_the_parts_of_one_global_batch(cache_dir):
  whole = next(batches(cache_dir, start=3))
  for count in (2, 3):
    parts = [
      next(batches(cache_dir, start=3, process_index=p, process_count=count))
      for p in range(count)
    ]
    for name, value in whole.items():
      joined = np.concatenate([part[name] for part in parts])
      np.testing.assert_array_equal(joined, value)


def test_features_are_the_converters_whether_kept_or_not(
  cache_dir, monkeypatch
):
  kept = list(itertools.islice(batches(cache_dir), 10))
  monkeypatch.setattr(loader, '_KEEP_BYTES', 0)
  read = list(itertools.islice(batches(cache_dir), 10))
  for a, b in zip(kept, read):
    assert a.keys() == b.keys()
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])
      assert a[name].dtype == b[name].dtype
  batch = kept[0]
  assert batch['response_mask'].tolist() == [[True, True, False]] * 6
  assert (batch['response_tokens'][:, 1] == 1).all()
  np.testing.assert_array_equal(
    batch['response_tokens'][:, 0], batch['prompt_tokens'][:, 0] + 1
  )


def test_iterate_once_fills_the_last_batch_and_says_so(cache_dir):
  found = list(
    loader.iterate_once(cache_dir, ['plots'], 'validation', CONVERTER, 3)
  )
  assert read_ids(found) == [[0, 1, 2], [3, 4, 4]]
  assert [b['example_mask'].tolist() for b in found] == [
    [True, True, True],
    [True, True, False],
  ]
  assert not found[1]['response_mask'][2].any()
  assert found[1]['response_mask'][:2, :2].all()
  few = loader.iterate_once(
    cache_dir, ['plots'], 'train', CONVERTER, 4, max_examples=5
  )
  assert sum(b['example_mask'].sum() for b in few) == 5


def test_missing_and_damaged_caches_are_named(cache_dir, tmp_path):
  with pytest.raises(UserError, match="'absent' is not cached.*cache_tasks"):
    next(batches(cache_dir, ('absent',)))
  with pytest.raises(UserError, match="no example in split 'validation'"):
    next(loader.iterate_once(cache_dir, ['likes'], 'validation', CONVERTER, 2))
  write_task(tmp_path, 'cut', {'train': 4})
  records_path = tmp_path / 'cut' / 'train.array_record'
  records_path.write_bytes(records_path.read_bytes()[:40])
  with pytest.raises(UserError, match='train.array_record.*cache_tasks'):
    next(batches(tmp_path, ('cut',)))
  (tmp_path / 'cut' / 'info.json').write_text('{"cf_')
  with pytest.raises(UserError, match='info.json is damaged'):
    next(batches(tmp_path, ('cut',)))


@pytest.mark.parametrize('size, count', [(0, 1), (-2, 1), (5, 2)])
def test_batch_sizes_that_cannot_be_are_refused(cache_dir, size, count):
  with pytest.raises(UserError, match=f'BATCH_SIZE.*got {size}'):
    batch = batches(cache_dir, size=size, process_index=0, process_count=count)
    next(batch)


def test_tasks_of_other_shapes_cannot_be_mixed(cache_dir, tmp_path):
  write_task(tmp_path, 'one', {'train': 3}, cf_kinds=('user',))
  write_task(tmp_path, 'two', {'train': 3}, cf_kinds=('user', 'user'))
  cf = CFFeatures(lambda kind, id_: np.zeros(4), 4)
  converter = LMConverter(2, 3, 1, cf)
  with pytest.raises(UserError, match='one and two cannot be mixed'):
    next(
      loader.load_batches(tmp_path, ['one', 'two'], 'train', converter, 2, 0)
    )


def test_an_error_in_a_converter_reaches_the_reader_and_the_thread_ends(
  cache_dir,
):
  calls = itertools.count()

  def converter(example, cf_kinds):
    if next(calls) > 20:
      raise UserError('no such item')
    return CONVERTER(example, cf_kinds)

  reader = loader.load_batches(cache_dir, ['plots'], 'train', converter, 6, 0)
  with pytest.raises(UserError, match='no such item'):
    for _ in range(20):
      next(reader)
  unfinished = batches(cache_dir)
  next(unfinished)
  unfinished.close()
  deadline = time.monotonic() + 5
  while any(t.name == 'loader' for t in threading.enumerate()):
    assert time.monotonic() < deadline
    time.sleep(0.01)


@given(
  st.dictionaries(
    st.text(max_size=8),
    st.one_of(
      st.text(),
      st.integers(-(2**63), 2**63 - 1),
      st.floats(allow_nan=False),
      st.lists(st.integers(-(2**31), 2**31 - 1)).map(
        lambda v: np.array(v, np.int32)
      ),
    ),
    max_size=5,
  )
)
def test_records_come_back_as_they_were(features):
  found = records.decode_record(records.encode_record(features))
  assert found.keys() == features.keys()
  for name, value in features.items():
    assert type(found[name]) is type(value)
    np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize(
  'value', [None, [1, 2], np.zeros(2), np.zeros((2, 2), np.int32)]
)
def test_records_refuse_what_they_cannot_hold(value):
  with pytest.raises(TypeError, match="feature 'x'"):
    records.encode_record({'x': value})
