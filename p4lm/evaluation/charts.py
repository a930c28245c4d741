"""Plots of the report, drawn by matplotlib as standalone SVG text."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from p4lm.evaluation.statistics import Interval
from p4lm.evaluation.table_one import Contrast, TableOne, label
from p4lm.evaluation.user_match import UserMatch

INK, GREY, RULE = '#1f2328', '#6b7280', '#d8dce2'
UP, DOWN, NEUTRAL = '#17784a', '#b23a24', '#6b7280'
PALETTE = (
  '#2b5f8f', '#c8762b', '#17784a', '#8a4f9e', '#b23a24', '#3f8c8c', '#7a6a2f',
)  # fmt: skip
_STYLE = {
  'svg.fonttype': 'none',
  # Or equal plots would differ in their random ids.
  'svg.hashsalt': 'p4lm',
  'font.family': 'sans-serif',
  'font.sans-serif': ['Inter', 'Helvetica Neue', 'Arial', 'DejaVu Sans'],
  'font.size': 10,
  'axes.edgecolor': RULE,
  'axes.labelcolor': GREY,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'text.color': INK,
  'xtick.color': GREY,
  'ytick.color': GREY,
}
# Panels of a run's learning curves: title and the metrics they show.
PANELS: Sequence[tuple[str, str]] = (
  ('Loss', r'loss|.*/loss'),
  ('Reward', r'reward|reward/[^/]+/mean'),
  ('KL to the anchor', r'kl(_k[123])?'),
  ('Accuracy', r'accuracy|.*/accuracy'),
  ('Objective', r'objective'),
)
_MAX_POINTS = 150


def means_chart(table: TableOne) -> str:
  """Mean ± standard error of every system, one panel a criterion."""
  criteria = list(dict.fromkeys(row.criterion for row in table.rows))
  systems = list(dict.fromkeys(row.system for row in table.rows))
  height = 0.9 + 0.3 * len(systems)
  figure, axes = _figure(9.6, height, columns=len(criteria), sharey=True)
  for axis, criterion in zip(axes, criteria):
    for place, system in enumerate(systems):
      mean = table.row(system, criterion).mean
      color = GREY if system == table.baseline else _color(place - 1)
      error = mean.standard_error if math.isfinite(mean.standard_error) else 0
      axis.errorbar(
        mean.mean, place, xerr=error, fmt='o', color=color, markersize=6,
        elinewidth=2,
      )  # fmt: skip
    _title(axis, label(criterion, table.judge))
    _interval_axis(axis)
  axes[0].set_yticks(range(len(systems)), systems)
  axes[0].set_ylim(len(systems) - 0.5, -0.5)
  return _svg(figure)


def forest_chart(contrasts: Sequence[Contrast]) -> str:
  """Differences with their intervals, one line a contrast, zero marked.

  Each judge and criterion has its own unit, so each has its own panel.
  """
  groups: dict[tuple[str, str], list[Contrast]] = {}
  for contrast in contrasts:
    groups.setdefault((contrast.judge, contrast.criterion), []).append(contrast)
  columns = min(4, len(groups))
  rows = -(-len(groups) // columns)
  most = max(len(group) for group in groups.values())
  names = list(dict.fromkeys(f'{c.first} − {c.second}' for c in contrasts))
  figure, axes = _figure(
    9.6, rows * (1.0 + 0.32 * most), columns=columns, rows=rows, sharey=True
  )
  for axis, ((judge, criterion), group) in zip(axes, groups.items()):
    for contrast in group:
      place = names.index(f'{contrast.first} − {contrast.second}')
      color = {'higher': UP, 'lower': DOWN}.get(contrast.verdict, NEUTRAL)
      _draw_interval(axis, contrast.difference, place, color)
    axis.axvline(0, color=INK, linewidth=0.8)
    _title(axis, f'{label(criterion, judge)} · {judge}')
    _interval_axis(axis)
  for axis in axes[len(groups) :]:
    axis.set_visible(False)
  axes[0].set_yticks(range(len(names)), names)
  axes[0].set_ylim(len(names) - 0.5, -0.5)
  return _svg(figure)


def user_match_chart(found: Mapping[str, UserMatch]) -> str:
  """AUC of both versions of the test for every system, 0.5 marked."""
  figure, (axis,) = _figure(8.2, 0.9 + 0.42 * len(found))
  for place, match in enumerate(found.values()):
    for shift, auc, marker in (
      (-0.12, match.matched_auc, 'o'),
      (0.12, match.controlled_auc, 'D'),
    ):
      if auc is not None:
        color = UP if auc.low > 0.5 else DOWN if auc.high < 0.5 else NEUTRAL
        _draw_interval(axis, auc, place + shift, color, marker)
  axis.axvline(0.5, color=INK, linewidth=0.8)
  axis.plot([], [], 'o', color=GREY, label='against other users')
  axis.plot([], [], 'D', color=GREY, label="against another user's text")
  axis.legend(
    loc='center left', bbox_to_anchor=(1, 0.5), frameon=False, fontsize=9
  )
  axis.set_yticks(range(len(found)), list(found))
  axis.set_ylim(len(found) - 0.5, -0.5)
  _interval_axis(axis, ticks=7)
  axis.set_xlabel('AUC (0.5: no better than chance)')
  return _svg(figure)


def learning_chart(metrics: Mapping[str, Sequence[tuple[int, float]]]) -> str:
  """Curves of one run, one panel a kind of metric; '' without any to show."""
  panels = choose_panels(metrics)
  if not panels:
    return ''
  figure, axes = _figure(min(9.6, 3.2 * len(panels)), 2.8, columns=len(panels))
  for axis, (title, names) in zip(axes, panels):
    for place, name in enumerate(names):
      points = _thin(metrics[name])
      axis.plot(
        [step for step, _ in points],
        [value for _, value in points],
        color=_color(place),
        linewidth=1.4,
        marker='o' if len(points) == 1 else None,
        label=name.removeprefix('reward/').removesuffix('/mean'),
      )
    _title(axis, title)
    axis.set_xlabel('step')
    axis.grid(color=RULE, linewidth=0.6)
    axis.locator_params(axis='x', nbins=5)
    if len(names) > 1:
      axis.legend(
        loc='upper left',
        bbox_to_anchor=(-0.02, -0.24),
        ncols=2,
        frameon=False,
        fontsize=7.5,
        handlelength=1.0,
        columnspacing=1.0,
      )
  return _svg(figure)


def distance_chart(windows: Sequence) -> str:
  """The learned reward and each unseen score along sqrt(KL), a panel each.

  Args:
    windows: of `over_optimisation.windows`.
  """
  series = {'learned reward': [window.reward for window in windows]}
  for score in windows[0].unseen:
    series[score] = [window.unseen[score] for window in windows]
  figure, axes = _figure(min(12.0, 2.9 * len(series)), 2.6, columns=len(series))
  distances = [window.distance for window in windows]
  for place, (axis, (name, values)) in enumerate(zip(axes, series.items())):
    axis.errorbar(
      distances, [mean for mean, _ in values],
      yerr=[error for _, error in values], fmt='o-', markersize=4,
      linewidth=1.2, color=PALETTE[0] if place == 0 else PALETTE[1],
    )  # fmt: skip
    _title(axis, name)
    axis.set_xlabel('sqrt(KL)')
    axis.grid(color=RULE, linewidth=0.6)
  return _svg(figure)


def front_chart(systems: Sequence[str], points, on_front, names) -> str:
  """Systems in the plane of two scores, the Pareto front drawn through.

  Args:
    systems: N names.
    points: float [N, 2].
    on_front: bool [N].
    names: of the two scores.
  """
  figure, (axis,) = _figure(6.4, 4.2)
  best = sorted(tuple(point) for point, on in zip(points, on_front) if on)
  axis.plot(*zip(*best), color=RULE, linewidth=1.4, zorder=0)
  for system, point, on in zip(systems, points, on_front):
    axis.plot(*point, 'o', color=UP if on else GREY, markersize=6)
    axis.annotate(
      system, point, xytext=(6, 4), textcoords='offset points', fontsize=8.5
    )
  axis.set(xlabel=names[0], ylabel=names[1])
  axis.grid(color=RULE, linewidth=0.6)
  axis.set_axisbelow(True)
  axis.margins(0.15)
  return _svg(figure)


def reliability_chart(curves: Mapping[str, Mapping[str, Sequence]]) -> str:
  """Reliability diagrams, and below each how many examples a bin has.

  Args:
    curves: {heading: {'probabilities', 'frequencies', 'counts'}} of the bins.
  """
  columns = len(curves)
  figure, axes = _figure(
    3.6 * columns, 4.2, columns=columns, rows=2, height_ratios=(3, 1)
  )
  for place, (heading, bins) in enumerate(curves.items()):
    above, below = axes[place], axes[columns + place]
    above.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle='--')
    above.plot(
      bins['probabilities'], bins['frequencies'], 'o-', color=PALETTE[0],
      markersize=4, linewidth=1.2,
    )  # fmt: skip
    above.set(xlim=(0, 1), ylim=(0, 1), ylabel='frequency')
    _title(above, heading)
    below.bar(bins['probabilities'], bins['counts'], width=0.03, color=GREY)
    below.set(xlim=(0, 1), xlabel='stated probability', ylabel='examples')
    for axis in (above, below):
      axis.grid(color=RULE, linewidth=0.6)
      axis.set_axisbelow(True)
  return _svg(figure)


def choices_chart(curves: Mapping[str, Sequence[float]], worth: str) -> str:
  """What the best of n texts is worth, by who chooses.

  Args:
    curves: 'n', and the worth for each chooser by name.
    worth: what is on the vertical axis.
  """
  figure, (axis,) = _figure(5.2, 3.2)
  for place, (name, values) in enumerate(curves.items()):
    if name != 'n':
      axis.plot(
        curves['n'], values, 'o-', color=_color(place - 1), markersize=4,
        linewidth=1.4, label=name,
      )  # fmt: skip
  axis.set_xscale('log', base=2)
  axis.set_xticks(curves['n'], [str(n) for n in curves['n']])
  axis.minorticks_off()
  axis.set(xlabel='texts to choose from', ylabel=worth)
  axis.grid(color=RULE, linewidth=0.6)
  axis.legend(frameon=False, fontsize=9)
  return _svg(figure)


def choose_panels(names: Iterable[str]) -> list[tuple[str, list[str]]]:
  """Title and metrics of each panel that has any.

  >>> choose_panels(['reward/nli/mean', 'reward/nli/std', 'secs', 'kl'])
  [('Reward', ['reward/nli/mean']), ('KL to the anchor', ['kl'])]
  """
  names = list(names)
  found = [
    (title, [name for name in names if re.fullmatch(pattern, name)])
    for title, pattern in PANELS
  ]
  return [(title, chosen) for title, chosen in found if chosen]


def read_metrics(path) -> dict[str, list[tuple[int, float]]]:
  """Series by name from a metrics.jsonl; other lines and values are skipped.

  Returns:
    {name: [(step, value), ...]} in the order of the file; empty without one.
  """
  path = Path(path)
  series: dict[str, list[tuple[int, float]]] = {}
  if not path.exists():
    return series
  for line in path.read_text(encoding='utf-8', errors='replace').splitlines():
    try:
      entry = json.loads(line)
      step = int(entry.pop('step'))
    except (ValueError, KeyError, TypeError, AttributeError):
      # A killed run may leave half a line.
      continue
    for name, value in entry.items():
      number = isinstance(value, (int, float)) and not isinstance(value, bool)
      if number and math.isfinite(value):
        series.setdefault(name, []).append((step, float(value)))
  return series


def _color(place: int) -> str:
  """Colours repeat once all are used."""
  return PALETTE[place % len(PALETTE)]


def _title(axis, text: str) -> None:
  axis.set_title(text, loc='left', fontsize=10, fontweight='bold')


def _interval_axis(axis, ticks: int = 4) -> None:
  axis.grid(axis='x', color=RULE, linewidth=0.6)
  axis.set_axisbelow(True)
  axis.tick_params(axis='y', length=0, labelcolor=INK)
  axis.margins(x=0.12)
  axis.locator_params(axis='x', nbins=ticks)


def _draw_interval(
  axis, interval: Interval, place: float, color: str, marker: str = 'o'
) -> None:
  if math.isfinite(interval.low):
    axis.plot(
      [interval.low, interval.high], [place, place], color=color, linewidth=2
    )
  axis.plot([interval.estimate], [place], marker, color=color, markersize=5.5)


def _thin(points):
  """At most about `_MAX_POINTS` points, means over equal runs of points."""
  size = -(-len(points) // _MAX_POINTS)
  if size <= 1:
    return points
  chunks = (points[i : i + size] for i in range(0, len(points), size))
  return [
    (chunk[-1][0], sum(value for _, value in chunk) / len(chunk))
    for chunk in chunks
  ]


def _figure(
  width, height, *, columns=1, rows=1, sharey=False, height_ratios=None
):
  # Figure rather than pyplot: no global state and no display.
  from matplotlib import rc_context
  from matplotlib.figure import Figure

  with rc_context(_STYLE):
    figure = Figure(figsize=(width, height), layout='constrained')
    axes = figure.subplots(
      rows, columns, sharey=sharey, squeeze=False, height_ratios=height_ratios
    )
  return figure, list(axes.ravel())


def _svg(figure) -> str:
  from matplotlib import rc_context

  buffer = io.StringIO()
  with rc_context(_STYLE):
    figure.savefig(
      buffer, format='svg', transparent=True, metadata={'Date': None}
    )
  text = buffer.getvalue()
  return text[text.index('<svg') :]
