"""The real latest-small: TFDS' own builders against GroupLens' files."""

import pytest
from tfds_preparation import prepare

from p4lm.data import tables, tfds_movielens
from p4lm.jobs.make_data import make_data

FROM_TAGS = ['tags']


def test_the_tables_are_those_of_grouplens(data_dir, tmp_path):
  source = data_dir / 'movielens'
  if not (source / 'ml-latest-small').is_dir():
    pytest.skip(
      f'no {source / "ml-latest-small"}: unpack GroupLens ml-latest-small there'
    )
  line = tfds_movielens.prepare_line('latest-small', tmp_path / 'prepared')
  prepare([(source, line)])
  made = {}
  for name, dataset, directory in (
    ('files', 'ml-latest-small', source),
    ('tfds', 'tfds:movielens/latest-small', tmp_path / 'prepared'),
  ):
    made[name] = make_data(
      dataset=dataset,
      data_dir=str(directory),
      plots_file=str(source / 'overviews.jsonl'),
      output_dir=str(tmp_path / name),
      write_texts=False,
    )
  assert made['tfds']['split_hash'] == made['files']['split_hash']
  assert made['tfds']['counts'] == made['files']['counts']
  assert made['tfds']['counts']['ratings'] == 100_836
  assert made['tfds']['dropped'] == {} == made['files']['dropped']
  ratings, items = (
    [tables.read_table(tmp_path / name, table) for name in ('tfds', 'files')]
    for table in ('ratings', 'items')
  )
  assert ratings[0].equals(ratings[1])
  assert (
    items[0].drop_columns(FROM_TAGS).equals(items[1].drop_columns(FROM_TAGS))
  )
  assert set(map(len, items[0]['tags'].to_pylist())) == {0}
