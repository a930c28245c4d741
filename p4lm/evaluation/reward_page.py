"""The page that goes with a reward checkpoint: can it be trusted?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from p4lm.evaluation import charts, page, text_tables

# Figures of a row of the table: name in the report, heading, digits.
BINARY = (
  ('accuracy', 'Accuracy', 3),
  ('nll', 'NLL', 3),
  ('brier', 'Brier', 3),
  ('ece', 'ECE', 3),
  ('nll_scaled', 'NLL, scaled', 3),
  ('brier_scaled', 'Brier, scaled', 3),
  ('ece_scaled', 'ECE, scaled', 3),
  ('length_correlation', 'Correlation with length', 2),
)
REGRESSION = (
  ('squared_error', 'Squared error', 4),
  ('absolute_error', 'Absolute error', 4),
  ('explained', 'Explained', 3),
  ('correlation', 'Correlation', 3),
  ('rank_correlation', 'Rank correlation', 3),
  ('length_correlation', 'Correlation with length', 2),
)
METHOD = (
  'NLL in nats. Brier: mean squared distance of probability and label. ECE: '
  'mean distance of stated probability and frequency over 15 bins. Scaled: '
  'after division of the log-odds by a temperature that other examples gave. '
  'The baselines read no order and no meaning, or nothing at all: what they '
  'get right needs no understanding.'
)
WORTH = {
  'nli': 'share entailed',
  'relevance': 'mean target',
}


def figure_cells(
  content: Mapping,
) -> tuple[list[str], list[list[str]]]:
  """Header and rows of the table: the model, then what it must beat.

  Args:
    content: of `report.json`.
  """
  figures = content[content['judged_by']]
  names = BINARY if 'accuracy' in figures else REGRESSION
  rows = {content['kind']: figures, **content.get('baselines', {})}
  header = ['Reward', *(heading for _, heading, _ in names)]
  body = [
    [name, *(_number(row.get(key), digits) for key, _, digits in names)]
    for name, row in rows.items()
  ]
  return header, body


def to_text(content: Mapping) -> str:
  """What ends a training on the screen."""
  figures = content[content['judged_by']]
  return (
    f'{content["kind"]} reward on {figures["count"]:,} held-out examples '
    f'({content["judged_by"]}):\n' + text_tables.plain(*figure_cells(content))
  )


def to_html(content: Mapping) -> str:
  """The page of a `report.json`."""
  kind, split = content['kind'], content['judged_by']
  figures = content[split]
  facts = {
    'examples': f'{figures["count"]:,} of split {split}',
    'trained on': f'split {content["split"]}',
    **content.get('facts', {}),
  }
  if 'temperature' in figures:
    facts['temperature'] = f'{figures["temperature"]:.3f}'
  table = _table(*figure_cells(content)) + page.paragraph(METHOD, 'note')
  return page.page(
    f'The {kind} reward',
    f'How far it can be trusted, judged by {figures["count"]:,} examples that '
    'it was not trained on.',
    [
      ('figures', 'Figures', page.facts(facts) + table),
      ('reliability', 'Reliability', _reliability(content)),
      ('choices', 'Best of n', _choices(content)),
      ('agreement', 'Agreement with other rewards', _agreement(content)),
    ],
  )


def _reliability(content: Mapping) -> str:
  bins = content.get('reliability')
  if not bins:
    return ''
  headings = {'before': 'As trained', 'after': 'Scaled by the temperature'}
  svg = charts.reliability_chart(
    {heading: bins[name] for name, heading in headings.items()}
  )
  return page.figure(
    svg,
    'Stated probability and frequency',
    'On the dashed line a stated probability comes true as often as it says.',
  )


def _choices(content: Mapping) -> str:
  curves = content.get('best_of_n', {})
  if len(curves.get('n', ())) < 2:
    return ''
  worth = WORTH.get(content['kind'], 'share of comparisons won')
  return page.figure(
    charts.choices_chart(curves, worth),
    'Worth of the best of n texts',
    'Of n random held-out texts one is kept: the one that the reward likes '
    'most, or the longest one. A curve that falls shows a reward that errs '
    'where it is surest.',
  )


def _agreement(content: Mapping) -> str:
  found = content.get('agreement', {})
  names = (
    ('correlation', 'Correlation', 3),
    ('rank_correlation', 'Rank correlation', 3),
    ('same_choice', 'Same choice', 3),
    ('count', 'Texts', 0),
  )
  if not found:
    return ''
  header = ['Reward', *(heading for _, heading, _ in names)]
  body = [
    [name, *(_number(row.get(key), digits) for key, _, digits in names)]
    for name, row in found.items()
  ]
  notes = [
    page.paragraph(f'{name}: {row["problem"]}', 'note')
    for name, row in found.items()
    if 'problem' in row
  ]
  return _table(header, body) + ''.join(notes)


def _number(value, digits: int) -> str:
  if value is None:
    return '–'
  return f'{value:.{digits}f}'.replace('-', '−')


def _table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
  rows = [page.row([page.escape(cell) for cell in line]) for line in body]
  return page.table(header, rows)
