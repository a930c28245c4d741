"""Texts of all systems for some pairs, side by side on the page."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from p4lm.evaluation import page


@dataclasses.dataclass(frozen=True)
class SampleText:
  """What one system wrote for a pair, and its scores by name."""

  text: str
  scores: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Sample:
  """One pair with the texts of all systems.

  Attributes:
    user_id, item_id, title: the pair.
    preferences: the user's bullets.
    plot: the item's plot.
    texts: {system: SampleText}.
  """

  user_id: str
  item_id: str
  title: str
  preferences: Sequence[str]
  plot: str
  texts: Mapping[str, SampleText]


def sample_html(sample: Sample) -> str:
  """One pair: its item, the user's preferences, what each system wrote."""
  bullets = ''.join(f'<li>{page.escape(b)}</li>' for b in sample.preferences)
  texts = ''.join(
    f'<div><span class="label">{page.escape(system)}</span>'
    f'{page.paragraph(written.text or "(empty)")}{_chips(written.scores)}</div>'
    for system, written in sample.texts.items()
  )
  return (
    f'<article><h3>{page.escape(sample.title)}</h3>'
    '<div class="about"><div><span class="label">User '
    f'{page.escape(sample.user_id)}</span><ul>{bullets}</ul></div>'
    '<div><span class="label">Plot</span>'
    f'{page.paragraph(sample.plot)}</div></div>'
    f'<div class="texts">{texts}</div></article>'
  )


def _chips(scores: Mapping[str, float]) -> str:
  return ''.join(
    f'<span class="chip">{page.escape(name)} '
    f'{f"{value:.2f}" if math.isfinite(value) else "–"}</span>'
    for name, value in scores.items()
  )
