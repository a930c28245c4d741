"""The ranking table: its views agree, names are escaped, files are whole."""

from __future__ import annotations

import html.parser
import json

import numpy as np
import pytest

from p4lm.evaluation import ranking
from p4lm.evaluation.item_lists import ItemLists
from p4lm.evaluation.ranking_table import RankingReport

EVIL = '<b>|"'
USERS = 40


class Tags(html.parser.HTMLParser):
  """Fails on tags that do not close; counts the cells of tables."""

  def __init__(self):
    super().__init__()
    self.open, self.cells, self.words = [], 0, []

  def handle_starttag(self, tag, attrs):
    if tag not in ('meta', 'img', 'br'):
      self.open.append(tag)
    self.cells += tag == 'td'

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.words.append(data)


@pytest.fixture(scope='module')
def report():
  generator = np.random.default_rng(0)
  truth = ItemLists.from_pairs(
    range(USERS), [u % 7 for u in range(USERS)], USERS
  )
  good = np.stack([(np.arange(5) + u) % 7 for u in range(USERS)])
  other = np.stack([generator.permutation(7)[:5] for _ in range(USERS)])
  results = {
    name: ranking.evaluate_lists(top, truth, (2, 5), num_items=7)
    for name, top in ((EVIL, good), ('Popularity', other))
  }
  return RankingReport(
    title='Ranking', lead='Forty users.', facts={'data': EVIL, 'users': USERS},
    results=results, unknown_users={EVIL: 3}, cutoffs=(2, 5),
    contrasts=ranking.contrasts(
      results, [(EVIL, 'Popularity')], ['ndcg@2', 'hr@5'], samples=200
    ),
    notes=['Few users.'], samples=200, seed=0,
  )  # fmt: skip


def test_the_files_agree_with_the_values(report, tmp_path):
  index = report.write(tmp_path)
  found = json.loads((tmp_path / 'results.json').read_text())
  assert found['rankers'][EVIL]['ndcg@2']['estimate'] == 1.0
  assert found['rankers'][EVIL]['unknown_users'] == 3
  assert found['rankers'][EVIL]['coverage@2'] == 1.0
  other = report.results['Popularity'].means()['hr@5']
  assert found['rankers']['Popularity']['hr@5']['estimate'] == other < 1
  (first, _) = found['contrasts']
  assert first['verdict'] == 'higher' and first['absolute_increase']['low'] > 0
  assert found['conventions'] == ranking.CONVENTIONS
  assert report.metrics()['Popularity/hr_at_5'] == other
  assert report.metrics()['_b___/ndcg_at_2'] == 1.0
  assert index == tmp_path / 'report' / 'index.html'


def test_every_view_names_the_conventions_and_both_tables(report):
  tags = Tags()
  tags.feed(report.to_html())
  tags.close()
  assert tags.open == []
  # Two tables of two rankers, eight columns; two contrasts, five columns.
  assert tags.cells == 2 * 2 * 8 + 2 * 5
  page = ' '.join(tags.words)
  for text in (page, report.to_markdown(), report.to_text()):
    assert ranking.CONVENTIONS in text and 'Few users.' in text
    for name in ('NDCG@2', 'Recall@5', 'Coverage@2', 'NDCG@2', 'HR@5'):
      assert name in text
  assert EVIL in page and EVIL not in report.to_html()
  rows = [
    line for line in report.to_markdown().splitlines() if line.startswith('|')
  ]
  assert len({line.replace('\\|', '').count('|') for line in rows[:4]}) == 1
