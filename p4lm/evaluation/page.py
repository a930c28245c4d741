"""Small pieces of HTML: the page, its style, tables, figures, cards.

Every text that comes from data goes through `escape`.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence

from p4lm.evaluation.statistics import Interval

STYLE = """
:root { --ink: #1f2328; --grey: #6b7280; --rule: #e3e6ea; --up: #17784a;
  --down: #b23a24; --wash: #f7f8fa; --accent: #2b5f8f; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff; font: 16px/1.55
  Inter, -apple-system, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 3rem 1.5rem 6rem; }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -.02em;
  margin: 0 0 .4rem; }
h2 { font-size: 1.25rem; letter-spacing: -.01em; margin: 3.2rem 0 .6rem;
  padding-top: 1.2rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p { max-width: 46rem; margin: .5rem 0; }
.lead, .note { color: var(--grey); } .note { font-size: .875rem; }
nav { margin: 1.2rem 0 0; font-size: .9rem; }
nav a { margin-right: 1.1rem; } a { color: var(--accent); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: .8rem 0;
  font-size: .9rem; font-variant-numeric: tabular-nums; }
th { text-align: right; font-weight: 600; color: var(--grey);
  border-bottom: 1px solid var(--ink); padding: .35rem .6rem;
  white-space: nowrap; }
td { text-align: right; padding: .35rem .6rem; vertical-align: top;
  border-bottom: 1px solid var(--rule); white-space: nowrap; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
tr.group td { font-weight: 650; padding-top: 1.1rem; background: none; }
tr.baseline td { color: var(--grey); }
.range { display: block; color: var(--grey); font-size: .78rem; }
.up { color: var(--up); font-weight: 600; }
.down { color: var(--down); font-weight: 600; }
dl.facts { display: grid; grid-template-columns: max-content 1fr;
  gap: .25rem 1.4rem; margin: .8rem 0; font-size: .95rem; }
dl.facts dt { color: var(--grey); } dl.facts dd { margin: 0;
  overflow-wrap: anywhere; }
ul.findings { padding-left: 1.1rem; max-width: 52rem; }
ul.findings li { margin: .25rem 0; }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; }
figcaption { color: var(--grey); font-size: .875rem; }
article { border: 1px solid var(--rule); border-radius: .6rem;
  padding: 1.1rem 1.3rem; margin: 1.2rem 0; }
article h3 { margin-top: 0; }
article .about { display: grid; grid-template-columns: 1fr 1fr; gap: 1.6rem;
  font-size: .875rem; color: #3b424b; }
article .about ul { margin: .2rem 0; padding-left: 1.1rem; }
.label { color: var(--grey); font-size: .75rem; text-transform: uppercase;
  letter-spacing: .05em; }
.texts .label { text-transform: none; letter-spacing: 0; font-weight: 600;
  font-size: .82rem; }
.texts { display: grid; gap: .7rem; margin-top: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); }
.texts > div { background: var(--wash); border-radius: .45rem;
  padding: .7rem .9rem; }
.texts p { margin: .25rem 0 .5rem; overflow-wrap: anywhere; }
.chip { display: inline-block; font-size: .74rem; color: var(--grey);
  background: #fff; border: 1px solid var(--rule); border-radius: 1rem;
  padding: 0 .5rem; margin: 0 .25rem .25rem 0; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
@media (max-width: 44rem) { article .about { grid-template-columns: 1fr; } }
@media print { main { max-width: none; padding: 0; }
  article { break-inside: avoid; } nav { display: none; } }
"""


def escape(text: object) -> str:
  """Text for HTML, quotes too."""
  return html.escape(str(text), quote=True)


def page(
  title: str, lead: str, sections: Sequence[tuple[str, str, str]]
) -> str:
  """A whole page.

  Args:
    title: the heading.
    lead: one sentence below it.
    sections: (anchor, heading, inner HTML); those without HTML are left out.
  Returns:
    HTML that needs no other file.
  """
  shown = [section for section in sections if section[2]]
  links = ''.join(
    f'<a href="#{anchor}">{escape(heading)}</a>' for anchor, heading, _ in shown
  )
  body = ''.join(
    f'<section><h2 id="{anchor}">{escape(heading)}</h2>{inner}</section>\n'
    for anchor, heading, inner in shown
  )
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f'<title>{escape(title)}</title><style>{STYLE}</style></head>\n'
    f'<body><main><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>'
    f'<nav>{links}</nav>\n{body}</main></body></html>\n'
  )


def paragraph(text: str, kind: str = '') -> str:
  """A paragraph of plain text."""
  attribute = f' class="{kind}"' if kind else ''
  return f'<p{attribute}>{escape(text)}</p>'


def facts(values: Mapping[str, object]) -> str:
  """Names and values as a definition list."""
  rows = ''.join(
    f'<dt>{escape(name)}</dt><dd>{escape(value)}</dd>'
    for name, value in values.items()
  )
  return f'<dl class="facts">{rows}</dl>' if rows else ''


def table(
  header: Sequence[str], rows: Sequence[str], *, text_columns=()
) -> str:
  """A table of ready-made rows; `text_columns` are aligned to the left."""
  cells = ''.join(
    f'<th class="text">{escape(name)}</th>'
    if place in text_columns
    else f'<th>{escape(name)}</th>'
    for place, name in enumerate(header)
  )
  return (
    f'<div class="scroll"><table><thead><tr>{cells}</tr></thead>'
    f'<tbody>{"".join(rows)}</tbody></table></div>'
  )


def row(cells: Sequence[str], kind: str = '', *, text_columns=()) -> str:
  """A table row of cells that are HTML already."""
  inner = ''.join(
    f'<td class="text">{cell}</td>'
    if place in text_columns
    else f'<td>{cell}</td>'
    for place, cell in enumerate(cells)
  )
  return f'<tr class="{kind}">{inner}</tr>' if kind else f'<tr>{inner}</tr>'


def interval(
  value: Interval, spec: str = '+.3f', *, neutral: float | None = 0.0
) -> str:
  """An estimate over its bounds, coloured where `neutral` is outside them."""
  if not math.isfinite(value.estimate):
    return '–'
  # A hyphen is too short for a minus between figures.
  estimate, low, high = (
    f'{number:{spec}}'.replace('-', '−')
    for number in (value.estimate, value.low, value.high)
  )
  if not math.isfinite(value.low):
    return estimate
  kind = ''
  if neutral is not None and value.lies_apart_from(neutral):
    kind = 'up' if value.low > neutral else 'down'
  return (
    f'<span class="{kind}">{estimate}</span>'
    f'<span class="range">{low} … {high}</span>'
  )


def figure(svg: str, description: str, caption: str = '') -> str:
  """An SVG as an image inside the page; '' without one."""
  if not svg:
    return ''
  data = base64.b64encode(svg.encode()).decode()
  shown = f'<figcaption>{escape(caption)}</figcaption>' if caption else ''
  return (
    f'<figure><img alt="{escape(description)}" '
    f'src="data:image/svg+xml;base64,{data}">{shown}</figure>'
  )
