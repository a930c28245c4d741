"""make_data on Amazon reviews: tables, manifest, drop report, refusals."""

import json
import os

import pytest

from p4lm import main
from p4lm.data import splits, tables
from p4lm.errors import UserError
from p4lm.jobs.make_data import make_data

DAY = 86_400


def _lines(path, records):
  path.parent.mkdir(exist_ok=True)
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))


@pytest.fixture
def release(tmp_path):
  """30 users by 6 pens, of which one has no title; 2023."""
  reviews = [
    {
      'user_id': f'u{u}', 'parent_asin': f'P{p}', 'rating': 1 + (u + p) % 5,
      'timestamp': (u * 10 + p) * DAY * 1000, 'title': 'Fine', 'text': 'Fine.',
    }
    for u in range(30)
    for p in range(6)
  ]  # fmt: skip
  items = [
    {'parent_asin': f'P{p}', 'title': f'Pen &#3{p + 3};' if p else None,
     'description': ['Writes.'], 'categories': ['Office'], 'price': 2.5}
    for p in range(6)
  ]  # fmt: skip
  _lines(tmp_path / 'in' / 'Pens.jsonl', reviews + reviews[5:7])
  _lines(tmp_path / 'in' / 'meta_Pens.jsonl', items)
  return tmp_path / 'in'


def _make(release, target, **changes):
  arguments = {
    'dataset': 'amazon-2023', 'data_dir': str(release), 'write_texts': False
  }  # fmt: skip
  return make_data(output_dir=str(target), **(arguments | changes))


def test_reviews_are_made(release, tmp_path, capsys):
  manifest = _make(release, tmp_path / 'data', split_rule='leave_one_out')
  assert sorted(os.listdir(tmp_path / 'data')) == [
    'items.parquet', 'manifest.json', 'ratings.parquet'
  ]  # fmt: skip
  assert manifest['dataset'] == 'amazon-2023'
  assert sorted(manifest['parameters']['inputs']) == [
    'Pens.jsonl', 'meta_Pens.jsonl'
  ]  # fmt: skip
  assert manifest['dropped'] == {
    'repeated review (same user, item, rating and time)': 2,
    'review of an item without a title': 30,
    'metadata without a title': 1,
  }
  assert manifest['counts'] == {
    'items': 5, 'ratings': 150, 'rated_items': 5, 'rating_users': 30,
    'items_with_plot': 5,
  }  # fmt: skip
  assert manifest['split_check'] == "every test rating is its user's newest"
  items = tables.read_table(tmp_path / 'data', 'items').to_pylist()
  assert items[0] == {
    'item_id': 'P1', 'title': 'Pen "', 'year': None, 'genres': ['Office'],
    'tags': [], 'keywords': [], 'plot': 'Writes.',
  }  # fmt: skip
  ratings = tables.read_table(tmp_path / 'data', 'ratings')
  assert manifest['split_hash'] == splits.split_hash(ratings)
  held = {
    (row['item_id'], row['split'])
    for row in ratings.to_pylist()
    if row['split'] != 'train'
  }
  assert held == {('P5', 'test'), ('P4', 'validation')}
  printed = capsys.readouterr().out
  assert 'dropped 30: review of an item without a title' in printed
  _make(release, tmp_path / 'data', split_rule='leave_one_out')
  assert 'already made' in capsys.readouterr().out


def test_items_without_titles_are_kept_on_request(release, tmp_path):
  manifest = _make(release, tmp_path / 'data', keep_unknown_items=True)
  assert manifest['counts']['ratings'] == 180
  assert manifest['parameters']['keep_unknown_items'] is True
  items = tables.read_table(tmp_path / 'data', 'items').to_pydict()
  titles = dict(zip(items['item_id'], items['title']))
  assert titles['P0'] == '' and titles['P1'] == 'Pen "'
  with pytest.raises(UserError, match='keep_unknown_items: True there, None n'):
    _make(release, tmp_path / 'data')


def test_changed_reviews_are_another_data_set(release, tmp_path):
  _make(release, tmp_path / 'data')
  with open(release / 'Pens.jsonl', 'a') as file:
    file.write('\n')
  with pytest.raises(UserError, match='inputs.Pens.jsonl'):
    _make(release, tmp_path / 'data')


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'write_texts': True}, 'is not of films, .*write_texts = False'),
    ({'plots_file': 'x.jsonl'}, 'is not of films, .*no PLOTS_FILE'),
    ({'data_dir': None}, "dataset 'amazon-2023' needs DATA_DIR"),
    ({'dataset': 'amazon-2018'}, "Pens.jsonl, line 1: key 'reviewerID'"),
    ({'dataset': 'amazon'}, "no dataset 'amazon'; .*'amazon-2018'"),
    ({'dataset': 'movielens'}, 'holds no MovieLens ratings'),
    (
      {'dataset': 'movielens', 'keep_unknown_items': True},
      'keep_unknown_items is for Amazon reviews',
    ),
    ({'dataset': 'world', 'data_dir': None, 'keep_unknown_items': True},
     'keep_unknown_items is for Amazon reviews'),
    (
      {'keep_unknown_items': True, 'drop_unknown_items': True},
      'are both True; set one',
    ),
  ],
)  # fmt: skip
def test_bad_arguments_leave_nothing(release, tmp_path, arguments, message):
  with pytest.raises(UserError, match=message):
    _make(release, tmp_path / 'new' / 'data', **arguments)
  assert sorted(os.listdir(tmp_path)) == ['in']


def test_the_command_line_takes_amazon(release, tmp_path, capsys):
  target = tmp_path / 'data'
  arguments = [
    'make_data', '--gin.DATASET=amazon-2023', f'--gin.DATA_DIR={release}',
    f'--gin.OUTPUT_DIR={target}', '--gin.SPLIT_RULE=user_disjoint',
    '--gin.make_data.write_texts=False',
  ]  # fmt: skip
  assert main.main(arguments) == 0
  assert tables.read_manifest(target)['dataset'] == 'amazon-2023'
  with open(release / 'Pens.jsonl', 'a') as file:
    file.write('{"user_id": ')
  bad = [*arguments[:3], f'--gin.OUTPUT_DIR={tmp_path / "bad"}', *arguments[4:]]
  assert main.main(bad) == 1
  assert 'Pens.jsonl, line 183 is no JSON' in capsys.readouterr().err
  assert not (tmp_path / 'bad' / 'ratings.parquet').exists()


def test_users_without_ratings_are_not_counted(tmp_path):
  """A film list that lacks an item takes its only user away as well."""
  folder = tmp_path / 'ml'
  folder.mkdir()
  (folder / 'movies.csv').write_text('movieId,title,genres\n1,Heat,Crime\n')
  (folder / 'ratings.csv').write_text(
    'userId,movieId,rating,timestamp\n1,1,4.0,5\n2,9,3.0,6\n'
  )
  manifest = make_data(
    dataset='movielens', data_dir=str(folder), write_texts=False,
    output_dir=str(tmp_path / 'data'), drop_unknown_items=True,
  )  # fmt: skip
  assert manifest['counts']['rating_users'] == 1
  assert manifest['counts']['rated_items'] == 1
