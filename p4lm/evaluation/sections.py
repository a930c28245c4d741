"""Further parts of a report: a table of text cells, a picture, a note."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from p4lm.evaluation import page, text_tables


@dataclasses.dataclass(frozen=True)
class Section:
  """One part, shown alike on the page, in results.md and on the screen.

  Attributes:
    name: of its anchor and of its figures in results.json.
    title: heading.
    header, rows: a table of texts.
    note: how to read it.
    charts: {caption: SVG}, on the page alone.
    figures: JSON values for results.json.
  """

  name: str
  title: str
  header: Sequence[str]
  rows: Sequence[Sequence[str]]
  note: str = ''
  charts: Mapping[str, str] = dataclasses.field(default_factory=dict)
  figures: Mapping[str, object] = dataclasses.field(default_factory=dict)

  def to_markdown(self) -> list[str]:
    """Paragraphs of results.md."""
    parts = [f'## {self.title}', text_tables.markdown(self.header, self.rows)]
    return parts + [self.note] * bool(self.note)

  def to_text(self) -> str:
    """For a terminal."""
    return f'{self.title}\n\n{text_tables.plain(self.header, self.rows)}'

  def to_html(self) -> str:
    """What stands below the heading."""
    shown = [page.figure(svg, caption) for caption, svg in self.charts.items()]
    rows = [page.row([page.escape(c) for c in row]) for row in self.rows]
    shown.append(page.table(self.header, rows))
    if self.note:
      shown.append(page.paragraph(self.note, 'note'))
    return ''.join(shown)
