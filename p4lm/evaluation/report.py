"""The report of an evaluation: index.html, results.md, results.json, a screen.

All four are views of one `Report`. The page needs no other file and no
network.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from p4lm.evaluation import charts, page, text_tables
from p4lm.evaluation.report_samples import Sample, sample_html
from p4lm.evaluation.sections import Section
from p4lm.evaluation.table_one import (
  Contrast,
  TableOne,
  contrast_cells,
  format_interval,
  label,
)
from p4lm.evaluation.text import TextStatistics
from p4lm.evaluation.user_match import UserMatch

METHOD = (
  'Mean ± standard error over the held-out pairs. Win rate: share of pairs '
  'scored above the baseline, ties half. Increase: mean difference. Increase '
  '%: mean over pairs of 100 (s − b) / |b|; of means %: 100 (mean s − mean b) '
  '/ |mean b|. Ranges are 95% paired bootstrap intervals; coloured where they '
  'are apart from no difference.'
)
MATCH = (
  'Judged by held-out ratings that no model saw. Against other users: how '
  'often a text scores higher for its own user than for a random other one. '
  "Against another user's text: how often it fits its user better than the "
  'text that the same system wrote for another user about the same film. 0.5 '
  'is chance.'
)


@dataclasses.dataclass(frozen=True)
class Report:
  """All that a report shows; what is empty is left out.

  Attributes:
    title: heading.
    lead: one sentence: what was evaluated.
    facts: {name: value} of what was run (data, models, seeds, time).
    table: Table 1 under the judging reward models.
    gold: the same table under the world's gold scores, or None.
    contrasts: paired differences, of both judges.
    user_matches: {system: UserMatch}.
    texts: {system: TextStatistics}.
    runs: {run: path of its metrics.jsonl}, for the learning curves.
    samples: pairs with every system's text.
    sections: further parts, after the contrasts.
    notes: findings and warnings, one sentence each.
  """

  title: str
  lead: str
  facts: Mapping[str, object]
  table: TableOne
  gold: TableOne | None = None
  contrasts: Sequence[Contrast] = ()
  user_matches: Mapping[str, UserMatch] = dataclasses.field(
    default_factory=dict
  )
  texts: Mapping[str, TextStatistics] = dataclasses.field(default_factory=dict)
  runs: Mapping[str, object] = dataclasses.field(default_factory=dict)
  samples: Sequence[Sample] = ()
  sections: Sequence[Section] = ()
  notes: Sequence[str] = ()

  def as_dict(self) -> dict:
    """JSON values of all figures (not of curves and samples)."""
    return {
      'title': self.title,
      'facts': {name: str(value) for name, value in self.facts.items()},
      'table_one': self.table.as_dict(),
      'gold': None if self.gold is None else self.gold.as_dict(),
      'contrasts': [contrast.as_dict() for contrast in self.contrasts],
      'user_match': {s: m.as_dict() for s, m in self.user_matches.items()},
      'texts': {s: t.as_dict() for s, t in self.texts.items()},
      **{section.name: dict(section.figures) for section in self.sections},
      'notes': list(self.notes),
    }

  def to_markdown(self) -> str:
    """results.md."""
    parts = [f'# {self.title}', self.lead]
    parts += [f'- {name}: {value}' for name, value in self.facts.items()]
    parts += ['## Table 1', self.table.to_markdown(), METHOD]
    if self.gold is not None:
      parts += ['## Gold scores', self.gold.to_markdown()]
    if self.contrasts:
      cells = contrast_cells(self.contrasts)
      parts += ['## Contrasts', text_tables.markdown(*cells)]
    for section in self.sections:
      parts += section.to_markdown()
    if self.user_matches:
      cells = match_cells(self.user_matches)
      parts += ['## Matched versus shuffled user']
      parts += [text_tables.markdown(*cells), MATCH]
    if self.texts:
      parts += ['## Texts', text_tables.markdown(*text_cells(self.texts))]
    if self.notes:
      parts += ['## Notes', *(f'- {note}' for note in self.notes)]
    text = '\n\n'.join(parts)
    # Items of one list stand together.
    return text.replace('\n\n- ', '\n- ') + '\n'

  def to_text(self) -> str:
    """What ends a run on the screen: the tables and the verdicts."""
    parts = [self.title, self.table.to_text()]
    if self.gold is not None:
      parts += ['Gold scores', self.gold.to_text()]
    if self.contrasts:
      parts += ['Contrasts', text_tables.plain(*contrast_cells(self.contrasts))]
    parts += [section.to_text() for section in self.sections]
    if self.user_matches:
      cells = match_cells(self.user_matches)
      parts += ['Matched versus shuffled user', text_tables.plain(*cells)]
    parts += ['\n'.join(f'* {note}' for note in self.notes)] * bool(self.notes)
    return '\n\n'.join(parts)


def write_report(report: Report, output_dir) -> Path:
  """Writes `results.json`, `results.md` and `report/index.html`.

  Args:
    report: what to show.
    output_dir: directory, made if missing; each file is replaced whole.
  Returns:
    Path of the page.
  """
  return write_files(
    output_dir, report.as_dict(), report.to_markdown(), to_html(report)
  )


def write_files(output_dir, figures: dict, markdown: str, html: str) -> Path:
  """Writes the files of any evaluation, each replaced whole; the page's path.

  Args:
    output_dir: directory, made if missing.
    figures: results.json, without NaN or infinities.
    markdown: results.md.
    html: report/index.html.
  """
  output_dir = Path(output_dir)
  index = output_dir / 'report' / 'index.html'
  index.parent.mkdir(parents=True, exist_ok=True)
  text = json.dumps(figures, indent=2, allow_nan=False)
  _replace(output_dir / 'results.json', text + '\n')
  _replace(output_dir / 'results.md', markdown)
  _replace(index, html)
  return index


def to_html(report: Report) -> str:
  """The page."""
  notes = ''.join(f'<li>{page.escape(note)}</li>' for note in report.notes)
  overview = page.facts(report.facts)
  overview += f'<ul class="findings">{notes}</ul>' if notes else ''
  table = page.figure(
    charts.means_chart(report.table), 'Mean score of every system by criterion'
  )
  table += _table_html(report.table) + page.paragraph(METHOD, 'note')
  gold = ''
  if report.gold is not None:
    gold = page.figure(
      charts.means_chart(report.gold), 'Mean gold score of every system'
    ) + _table_html(report.gold)
  return page.page(
    report.title,
    report.lead,
    [
      ('run', 'What was run', overview),
      ('table', 'Table 1', table),
      ('gold', 'Gold scores', gold),
      ('contrasts', 'Contrasts', _contrasts_html(report.contrasts)),
      *((s.name, s.title, s.to_html()) for s in report.sections),
      ('match', 'Matched versus shuffled user', _match_html(report)),
      ('texts', 'Texts', _texts_html(report.texts)),
      ('curves', 'Learning curves', _curves_html(report.runs)),
      ('samples', 'Samples', ''.join(map(sample_html, report.samples))),
    ],
  )


def match_cells(found: Mapping[str, UserMatch]):
  """Header and rows of the matched-versus-shuffled-user test as text."""
  header = [
    'System', 'AUC, other users', "AUC, other user's text", 'Pairs', 'Users',
  ]  # fmt: skip
  body = [
    [
      system,
      format_interval(match.matched_auc, sign=False),
      format_interval(match.controlled_auc, sign=False)
      if match.controlled_auc
      else '',
      str(match.pairs),
      str(match.users),
    ]
    for system, match in found.items()
  ]
  return header, body


def text_cells(found: Mapping[str, TextStatistics]):
  """Header and rows of the texts' statistics."""
  header = [
    'System', 'Words', 'Distinct-1', 'Distinct-2', 'Repetition', 'Empty',
    'Most common',
  ]  # fmt: skip
  body = [
    [
      system,
      f'{texts.mean_words:.1f}',
      f'{texts.distinct_1:.3f}',
      f'{texts.distinct_2:.3f}',
      f'{texts.repetition:.3f}',
      f'{texts.empty:.3f}',
      f'{texts.most_common:.3f}',
    ]
    for system, texts in found.items()
  ]
  return header, body


def _table_html(table: TableOne) -> str:
  header = [
    'System', 'Mean ± SE', 'Win rate', 'Increase', 'Increase %', 'of means %',
    'Pairs',
  ]  # fmt: skip
  rows, previous = [], None
  for row in table.rows:
    if row.criterion != previous:
      name = page.escape(label(row.criterion, table.judge))
      rows.append(page.row([name, *[''] * 6], 'group'))
      previous = row.criterion
    mean = f'{row.mean.mean:.3f} ± {row.mean.standard_error:.3f}'
    name, found = page.escape(row.system), row.comparison
    if found is None:
      blank = ['–'] * 4
      rows.append(
        page.row([name, mean, *blank, str(row.mean.count)], 'baseline')
      )
      continue
    rows.append(
      page.row(
        [
          name,
          mean,
          page.interval(found.win_rate, '.2f', neutral=0.5),
          page.interval(found.absolute_increase),
          page.interval(found.percentage_increase, '+.0f'),
          page.interval(found.percentage_of_means, '+.0f'),
          str(found.pairs),
        ]
      )
    )
  return page.table(header, rows)


def _contrasts_html(contrasts: Sequence[Contrast]) -> str:
  """A forest plot and, for each judge, contrasts by criteria."""
  if not contrasts:
    return ''
  parts = [
    page.figure(
      charts.forest_chart(contrasts), 'Differences with 95% intervals'
    )
  ]
  criteria = list(dict.fromkeys(c.criterion for c in contrasts))
  for judge in dict.fromkeys(c.judge for c in contrasts):
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for c in contrasts:
      if c.judge == judge:
        lines.setdefault((c.first, c.second), {})[c.criterion] = _difference(c)
    rows = [
      page.row(
        [
          page.escape(f'{first} − {second}'),
          *(cells.get(criterion, '–') for criterion in criteria),
        ]
      )
      for (first, second), cells in lines.items()
    ]
    header = [f'Judge: {judge}', *(label(c, judge) for c in criteria)]
    parts.append(page.table(header, rows))
  note = 'Paired mean differences; a word where the interval excludes zero.'
  return ''.join(parts) + page.paragraph(note, 'note')


def _difference(contrast: Contrast) -> str:
  verdict = {'higher': ' higher', 'lower': ' lower'}.get(contrast.verdict, '')
  return page.interval(contrast.difference) + (
    f'<span class="range">{verdict.strip()}</span>' if verdict else ''
  )


def _match_html(report: Report) -> str:
  found = report.user_matches
  if not found:
    return ''
  header, _ = match_cells(found)
  rows = [
    page.row(
      [
        page.escape(system),
        page.interval(match.matched_auc, '.3f', neutral=0.5),
        page.interval(match.controlled_auc, '.3f', neutral=0.5)
        if match.controlled_auc
        else '–',
        str(match.pairs),
        str(match.users),
      ]
    )
    for system, match in found.items()
  ]
  chart = page.figure(charts.user_match_chart(found), 'AUC of every system')
  return page.paragraph(MATCH, 'note') + chart + page.table(header, rows)


def _texts_html(found: Mapping[str, TextStatistics]) -> str:
  if not found:
    return ''
  header, body = text_cells(found)
  rows = [page.row([page.escape(cell) for cell in line]) for line in body]
  return page.table(header, rows)


def _curves_html(runs: Mapping[str, object]) -> str:
  parts = []
  for name, path in runs.items():
    chart = charts.learning_chart(charts.read_metrics(path))
    if chart:
      parts.append(f'<h3>{page.escape(name)}</h3>')
      parts.append(page.figure(chart, f'Learning curves of {name}'))
  return ''.join(parts)


def _replace(path: Path, text: str) -> None:
  partial = path.with_name(f'.{path.name}.partial')
  partial.write_text(text, encoding='utf-8')
  os.replace(partial, path)
