"""Sessions in both modes: by hand, against a plain reading, and for leaks."""

import collections
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from p4lm.data import pair_order
from p4lm.data.profile_sessions import Mode, SessionRule, build_sessions
from p4lm.errors import UserError

PUBLISHED, CORRECTED = Mode.AS_PUBLISHED, Mode.CORRECTED


def table(rows):
  users, items, times = zip(*rows)
  return pa.table(
    {
      'user_id': pa.array(users, pa.string()),
      'item_id': pa.array(items, pa.string()),
      'timestamp': pa.array(times, pa.int64()),
    }
  )


def by_user(sessions):
  return {row['user_id']: row for row in sessions.table.to_pylist()}


def users_of(num_users, items, start=0, step=100):
  """Each user rates all items, one user after the other."""
  return [
    (f'u{u:02}', item, start + step * u + place)
    for u in range(num_users)
    for place, item in enumerate(items)
  ]


def test_history_target_and_later():
  rows = users_of(10, 'ABCDEF')
  for mode in Mode:
    sessions = build_sessions(table(rows), SessionRule(mode))
    row = by_user(sessions)['u03']
    assert row['history'] == list('ABCD')
    assert row['target'] == 'E' and row['later'] == ['F']
    assert row['history_rows'] == [18, 19, 20, 21]
    assert row['target_row'] == 22
    assert sessions.candidates == list('ABCDEF')
    splits = collections.Counter(sessions.table['split'].to_pylist())
    assert splits == {'train': 8, 'validation': 1, 'test': 1}
    assert sessions.dropped == {}


def test_the_split_of_selection_is_named():
  rows = table(users_of(10, 'ABCDE'))
  published = build_sessions(rows, SessionRule(PUBLISHED))
  assert published.selection_split == 'test'
  assert build_sessions(rows).selection_split == 'validation'


def test_users_are_ordered_by_first_review_or_by_target():
  # `early` begins first of all and goes on last of all.
  rows = users_of(9, 'ABCDE', start=100)
  early = [('early', item, t) for item, t in zip('ABC', (1, 2, 3))]
  rows += early + [('early', 'D', 5000), ('early', 'E', 5001)]
  published = build_sessions(table(rows), SessionRule(PUBLISHED))
  assert published.table['user_id'][0].as_py() == 'early'
  assert by_user(published)['early']['split'] == 'train'
  corrected = build_sessions(table(rows))
  assert corrected.table['user_id'][-1].as_py() == 'early'
  assert by_user(corrected)['early']['split'] == 'test'


def test_repeats_fill_a_published_history():
  rows = users_of(10, 'ABCDE')
  # u00 reviews A twice before anything else.
  rows.insert(0, ('u00', 'A', 0))
  published = by_user(build_sessions(table(rows), SessionRule(PUBLISHED)))
  assert published['u00']['history'] == list('AABC')
  assert published['u00']['target'] == 'D'
  sessions = build_sessions(table(rows))
  assert by_user(sessions)['u00']['history'] == list('ABCD')
  assert sessions.dropped == {'duplicate (user, item), an older event': 1}


def test_a_published_target_is_new_to_the_user():
  rows = users_of(10, 'ABCDAE')
  published = by_user(build_sessions(table(rows), SessionRule(PUBLISHED)))
  assert published['u02']['history'] == list('ABCD')
  assert published['u02']['target'] == 'E' and published['u02']['later'] == []
  again = [('bore', 'A', t) for t in range(6)]
  sessions = build_sessions(table(rows + again), SessionRule(PUBLISHED))
  assert 'bore' not in by_user(sessions)
  assert sessions.dropped == {'user who met nothing but the history again': 1}


def test_five_repeats_make_a_published_core():
  rows = users_of(10, 'ABCDE')
  rows += [('u00', 'rare', 900 + t) for t in range(5)]
  assert 'rare' in build_sessions(
    table(rows), SessionRule(PUBLISHED)
  ).candidates  # fmt: skip
  sessions = build_sessions(table(rows))
  assert 'rare' not in sessions.candidates
  assert sessions.dropped == {
    'duplicate (user, item), an older event': 4,
    'event outside the 5-core': 1,
  }


def test_long_texts_take_users_or_events():
  rows = users_of(20, 'ABCDE') + [(f'u{u:02}', 'L', 9000) for u in range(10)]
  published = build_sessions(
    table(rows), SessionRule(PUBLISHED), long_items={'L'}
  )
  assert len(published.table) == 10
  assert published.dropped == {'user of an item whose text is too long': 10}
  corrected = build_sessions(table(rows), long_items={'L'})
  assert len(corrected.table) == 20
  assert corrected.dropped == {'event of an item whose text is too long': 10}


@pytest.mark.parametrize('mode', Mode)
def test_long_prompts_take_users(mode):
  rows = table(users_of(10, 'ABCDE'))
  seen = []

  def prompt_fits(history):
    seen.append(history.tolist())
    return 5 not in history  # the first row of u01

  sessions = build_sessions(rows, SessionRule(mode), prompt_fits=prompt_fits)
  assert [0, 1, 2, 3] in seen
  assert 'u01' not in by_user(sessions) and len(sessions.table) == 9
  assert sessions.dropped == {'user whose prompt is too long': 1}


def test_cold_items_of_held_out_users_go():
  rows = users_of(10, 'ABCDE')
  # Six late users share an item that no early user has, and one has only four
  # others.
  rows += [
    (f'v{v}', item, 5000 + 100 * v + place)
    for v in range(6)
    for place, item in enumerate('NABCDE' if v else 'NABCD')
  ]
  rule = SessionRule(PUBLISHED, held_out_share=0.375)
  published = build_sessions(table(rows), rule)
  assert 'N' not in published.candidates
  assert by_user(published)['v1']['history'] == list('ABCD')
  assert 'v0' not in by_user(published)
  assert published.dropped == {
    'held-out event of an item that training does not know': 6,
    'held-out user with fewer than 5 events left': 1,
  }


def test_training_does_not_see_what_comes_after_the_cut():
  """A later review of a training user makes no item known."""
  rows = users_of(10, 'ABCDE')
  # X first appears after every target; u00 to u04 review it then.
  rows += [(f'u{u:02}', 'X', 9000 + u) for u in range(5)]
  corrected = build_sessions(table(rows))
  assert 'X' not in corrected.candidates
  assert by_user(corrected)['u00']['later'] == []
  reason = 'training event after the first held-out target'
  assert corrected.dropped == {reason: 5}
  published = build_sessions(table(rows), SessionRule(PUBLISHED))
  assert 'X' in published.candidates
  assert by_user(published)['u00']['later'] == ['X']


def test_rules_and_emptiness_are_told():
  rows = table(users_of(10, 'ABCDE'))
  with pytest.raises(UserError, match='history_length=5 must be positive and'):
    SessionRule(history_length=5)
  with pytest.raises(UserError, match='held_out_share=1.0 must be between'):
    SessionRule(held_out_share=1.0)
  for mode in Mode:
    with pytest.raises(UserError, match='nothing is left of the 9-core'):
      build_sessions(rows, SessionRule(mode, min_events=9))
  with pytest.raises(UserError, match='no test sessions are left|no validat'):
    build_sessions(rows.slice(0, 25), SessionRule(PUBLISHED))
  same = table([(user, item, 7) for user, item, _ in users_of(10, 'ABCDE')])
  with pytest.raises(UserError, match='no moment leaves 20% of 10 users'):
    build_sessions(same)


def _core(events, least):
  """events: [(user, item, time, row)]."""
  while True:
    users = collections.Counter(e[0] for e in events)
    kept = [e for e in events if users[e[0]] >= least]
    items = collections.Counter(e[1] for e in kept)
    kept = [e for e in kept if items[e[1]] >= least]
    if len(kept) == len(events):
      return kept
    events = kept


def _by_user(events):
  found = {}
  for event in events:
    found.setdefault(event[0], []).append(event)
  return found


def published_reference(rows, rule, long_items, long_prompts):
  """{user: (history, target, split)} and candidates, with plain lists."""
  events = sorted(
    ((*row, number) for number, row in enumerate(rows)), key=lambda e: e[2]
  )
  events, length = _core(events, rule.min_events), rule.history_length
  bad = {e[0] for e in events if e[1] in long_items}
  events = [e for e in events if e[0] not in bad]
  fits = lambda mine: mine[0][3] not in long_prompts
  users = _by_user(events)
  events = _core([e for e in events if fits(users[e[0]])], rule.min_events)
  users = _by_user(events)
  num_train = len(users) - math.ceil(rule.held_out_share * len(users))
  train = list(users)[:num_train]
  known = {e[1] for user in train for e in users[user]}
  made, held = {}, []
  for user, mine in users.items():
    if user not in train:
      mine = [e for e in mine if e[1] in known]
      if len(mine) < rule.min_events:
        continue
    if not fits(mine):
      continue
    history = [e[1] for e in mine[:length]]
    target = next((e for e in mine[length:] if e[1] not in history), None)
    if target is not None:
      made[user] = [history, target[1], 'train']
      if user not in train:
        held.append(user)
        made[user][2] = 'validation'
  number = dict(zip(held, pair_order.id_numbers(held, f'half {rule.seed}')))
  held.sort(key=number.get)
  for user in held[: math.ceil(len(held) / 2)]:
    made[user][2] = 'test'
  return made, known


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_published_equals_the_reference(data):
  num_users = data.draw(st.integers(3, 9))
  rows = data.draw(
    st.lists(
      st.tuples(
        st.integers(0, num_users - 1).map('u{}'.format),
        st.sampled_from('ABCDE'),
        st.integers(0, 30),
      ),
      min_size=20,
      max_size=90,
    )
  )
  rule = SessionRule(
    PUBLISHED,
    data.draw(st.integers(1, 2)),
    3,
    0.4,
    data.draw(st.integers(0, 2)),
  )
  long_items = data.draw(st.sets(st.sampled_from('E'), max_size=1))
  long_prompts = data.draw(st.sets(st.integers(0, len(rows)), max_size=2))
  try:
    sessions = build_sessions(
      table(rows), rule, long_items=long_items,
      prompt_fits=lambda history: int(history[0]) not in long_prompts,
    )  # fmt: skip
  except UserError:
    made, _ = published_reference(rows, rule, long_items, long_prompts)
    assert len({split for _, _, split in made.values()}) < 3
    return
  made, known = published_reference(rows, rule, long_items, long_prompts)
  found = {
    user: [row['history'], row['target'], row['split']]
    for user, row in by_user(sessions).items()
  }
  assert found == made
  assert set(sessions.candidates) == known


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_corrected_sessions_do_not_leak(data):
  """What the mode promises, looked at in the result alone."""
  num_users = data.draw(st.integers(4, 12))
  rows = data.draw(
    st.lists(
      st.tuples(
        st.integers(0, num_users - 1).map('u{}'.format),
        st.sampled_from('ABCDEFG'),
        st.integers(0, 60),
      ),
      min_size=30,
      max_size=120,
    )
  )
  rule = SessionRule(CORRECTED, 2, 3, 0.5)
  try:
    sessions = build_sessions(table(rows), rule, long_items={'G'})
  except UserError:
    assume(False)
  time = lambda row: rows[row][2]
  targets, events = collections.defaultdict(list), {}
  for user, row in by_user(sessions).items():
    targets[row['split']].append(time(row['target_row']))
    met = [*row['history'], row['target'], *row['later']]
    assert len(set(met)) == len(met) and 'G' not in met
    assert set(met) <= set(sessions.candidates)
    events[user] = [*row['history_rows'], row['target_row']]
    assert [rows[r][0] for r in events[user]] == [user] * 3
    assert [rows[r][1] for r in events[user]] == met[:3]
    times = [time(r) for r in events[user]]
    assert times == sorted(times)
    # Of a user's reviews of an item the latest counts.
    for r in events[user]:
      assert time(r) == max(t for u, i, t in rows if (u, i) == rows[r][:2])
  assert max(targets['train']) < min(targets['validation'])
  assert max(targets['validation']) < min(targets['test'])
  first = min(targets['validation'])
  early = {i for u, i, t in rows if t < first}
  assert set(sessions.candidates) <= early
  trained = by_user(sessions)
  trained = [u for u, row in trained.items() if row['split'] == 'train']
  shown = {i for u, i, t in rows if u in trained and t < first}
  assert set(sessions.candidates) <= shown


def test_rows_reach_back_to_the_ratings():
  rng = np.random.default_rng(0)
  rows = [
    (f'u{rng.integers(60)}', f'i{rng.integers(20)}', int(rng.integers(10**6)))
    for _ in range(3000)
  ]
  ratings = table(rows)
  for mode in Mode:
    for row in build_sessions(ratings, SessionRule(mode)).table.to_pylist():
      items = ratings['item_id'].take(row['history_rows']).to_pylist()
      assert items == row['history']
      assert ratings['item_id'][row['target_row']].as_py() == row['target']
