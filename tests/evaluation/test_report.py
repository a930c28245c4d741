"""The report is whole, self-contained, escaped, and agrees with its JSON."""

from __future__ import annotations

import doctest
import html.parser
import json

import numpy as np
import pytest

from p4lm.evaluation import charts
from p4lm.evaluation.report import Report, write_report
from p4lm.evaluation.report_samples import Sample, SampleText
from p4lm.evaluation.statistics import Interval
from p4lm.evaluation.table_one import CRITERIA, contrasts, table_one
from p4lm.evaluation.text import text_statistics
from p4lm.evaluation.user_match import UserMatch

EVIL = '<script>alert("x")</script> & \'co\''
_VOID = {'meta', 'img', 'br', 'hr', 'link', 'input'}


class Checker(html.parser.HTMLParser):
  """Collects tags and text, and fails on unbalanced tags."""

  def __init__(self):
    super().__init__()
    self.stack, self.tags, self.attributes, self.text = [], [], [], []

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes.append((tag, dict(attrs)))
    if tag not in _VOID:
      self.stack.append(tag)

  def handle_endtag(self, tag):
    assert self.stack and self.stack.pop() == tag, f'unbalanced {tag}'

  def handle_data(self, data):
    self.text.append(data)


def parse(text):
  checker = Checker()
  checker.feed(text)
  checker.close()
  assert checker.stack == []
  return checker


@pytest.fixture(scope='module')
def report(tmp_path_factory):
  generator = np.random.default_rng(0)
  systems = ['PaLM2-L', 'SFT', 'P4LM', EVIL]
  scores = {
    system: {c: generator.normal(size=40) + 0.8 * k for c in CRITERIA}
    for k, system in enumerate(systems)
  }
  scores['SFT']['appeal'][:] = np.nan
  metrics = tmp_path_factory.mktemp('runs') / 'metrics.jsonl'
  lines = [
    {'step': s, 'loss': 1 / s, 'reward': s, 'reward/nli/mean': s / 2, 'kl': 0.1}
    for s in range(1, 1001)
  ]
  text = '\n'.join(json.dumps(line) for line in lines)
  metrics.write_text(text + '\n{"step": 9, "loss": NaN}\nbroken\n{"st')
  matched = UserMatch(
    Interval(0.6, 0.55, 0.65), Interval(0.5, 0.45, 0.55), 40, 1, 30, 20
  )
  return Report(
    title=f'World {EVIL}',
    lead='Forty pairs.',
    facts={'Data': EVIL, 'Seed': 0},
    table=table_one(scores, baseline='PaLM2-L', samples=200),
    gold=table_one(scores, baseline='PaLM2-L', judge='gold', samples=200),
    contrasts=contrasts(scores, [('P4LM', 'SFT')], judge='gold', samples=200),
    user_matches={'SFT': matched, EVIL: matched},
    texts={system: text_statistics(['a b c']) for system in systems},
    runs={'sft': metrics, 'nothing': metrics.parent / 'absent.jsonl'},
    samples=[
      Sample('u1', 'i1', EVIL, [EVIL, 'Likes rain.'], EVIL,
             {'SFT': SampleText(EVIL, {'precision': 0.5, EVIL: float('nan')}),
              'P4LM': SampleText('')})
    ],
    notes=['RL raised the learned reward alone.'],
  )  # fmt: skip


@pytest.fixture(scope='module')
def written(report, tmp_path_factory):
  directory = tmp_path_factory.mktemp('out')
  index = write_report(report, directory)
  assert index == directory / 'report' / 'index.html'
  return directory


def test_page_is_balanced_escaped_and_self_contained(written):
  text = (written / 'report' / 'index.html').read_text()
  page = parse(text)
  assert 'script' not in page.tags
  assert EVIL in ''.join(page.text)
  for tag, attributes in page.attributes:
    for name in ('src', 'href'):
      if name in attributes:
        assert attributes[name].startswith(('data:', '#')), tag
  anchors = {a['href'][1:] for t, a in page.attributes if t == 'a'}
  targets = {a['id'] for t, a in page.attributes if t == 'h2'}
  assert anchors == targets
  assert len(targets) == 8
  images = [a for t, a in page.attributes if t == 'img']
  assert len(images) == 5
  assert all(image['alt'] for image in images)
  assert len(text) < 2_000_000


def test_page_shows_the_figures_of_the_json(report, written):
  text = ''.join(parse((written / 'report' / 'index.html').read_text()).text)
  results = json.loads((written / 'results.json').read_text())
  shown = [
    row for row in results['table_one']['rows']
    if row['system'] == 'P4LM' and row['criterion'] == 'precision'
  ]  # fmt: skip
  assert f'{shown[0]["mean"]:.3f} ± {shown[0]["standard_error"]:.3f}' in text
  assert f'{shown[0]["absolute_increase"]["estimate"]:+.3f}' in text
  assert results['contrasts'][0]['verdict'] == report.contrasts[0].verdict
  assert results['user_match']['SFT']['matched_auc']['low'] == 0.55
  invalid = report.table.row('SFT', 'appeal')
  assert invalid.mean.count == 0
  assert 'RL raised the learned reward alone.' in text


def test_markdown(written):
  text = (written / 'results.md').read_text()
  assert text.startswith('# World')
  for heading in ('## Table 1', '## Gold scores', '## Contrasts', '## Texts'):
    assert heading in text
  assert '- Data: ' in text and '- Seed: 0' in text
  assert '\n| Criterion | System |' in text


def test_terminal(report):
  text = report.to_text()
  assert 'P4LM − SFT' in text
  assert 'Gold scores' in text
  assert '0.600 [0.550, 0.650]' in text


def test_what_is_empty_is_left_out(report):
  import dataclasses

  from p4lm.evaluation.report import to_html

  bare = dataclasses.replace(
    report, gold=None, contrasts=(), user_matches={}, texts={}, runs={},
    samples=(), notes=(),
  )  # fmt: skip
  page = parse(to_html(bare))
  targets = [a['id'] for t, a in page.attributes if t == 'h2']
  assert targets == ['run', 'table']
  assert '## Gold' not in bare.to_markdown()


def test_metrics_are_read_past_broken_lines(report):
  series = charts.read_metrics(report.runs['sft'])
  assert len(series['loss']) == 1000
  assert series['loss'][1] == (2, 0.5)
  assert charts.read_metrics('/nowhere/metrics.jsonl') == {}
  assert charts.learning_chart({'speed': [(1, 2.0)]}) == ''


def test_panels():
  assert doctest.testmod(charts).failed == 0


def test_long_curves_are_thinned_by_means():
  points = charts._thin([(s, float(s)) for s in range(1000)])
  assert len(points) <= 150
  assert points[0] == (6, 3.0)


def test_charts_have_a_colour_for_any_number_of_systems():
  generator = np.random.default_rng(1)
  scores = {
    f'system {k}': {c: generator.normal(size=5) for c in CRITERIA}
    for k in range(3 * len(charts.PALETTE))
  }
  table = table_one(scores, baseline='system 0', samples=20)
  chart = charts.means_chart(table)
  assert all(f'>{system}</text>' in chart for system in scores)
