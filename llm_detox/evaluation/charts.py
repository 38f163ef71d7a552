"""The report's plots as SVG: colours come from the page's style sheet, so they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape

from markupsafe import Markup

from llm_detox.evaluation.intervals import Interval
from llm_detox.evaluation.report_content import ArmDifference

_ROW, _LABEL, _VALUE = 30, 96, 54  # pixels: height of a row, room for its name, room for its number


def colour(arm: str, arms: Sequence[str]) -> str:
    """The style-sheet class of an arm, by its place in the experiment."""
    return f"c{list(arms).index(arm) % 6}"


def interval_bars(values: Mapping[str, Interval | None], *, width: int = 420, digits: int = 3) -> Markup:
    """One bar with its interval for each arm, on a common scale from zero.

    Args:
        values: arm -> its value; an arm without one gets an empty row.
    """
    arms = list(values)
    top = max((entry.high for entry in values.values() if entry), default=1.0) * 1.05 or 1.0
    span = width - _LABEL - _VALUE

    def x(value: float) -> float:
        return _LABEL + span * max(value, 0.0) / top

    parts, tips = [], []
    for row, arm in enumerate(arms):
        y, entry = row * _ROW + _ROW / 2, values[arm]
        parts.append(_text(_LABEL - 10, y, arm, "end", "name"))
        if not entry:
            parts.append(_text(_LABEL, y, "not measured", "start", "faint"))
            continue
        tip = f"{arm}: {entry.value:.{digits}f}, interval {entry.low:.{digits}f} to {entry.high:.{digits}f}"
        tips.append(tip)
        length = max(x(entry.value) - _LABEL, 1)
        bar = f'<rect class="bar" x="{_LABEL}" y="{y - 8}" width="{length:.1f}" height="16" rx="3"/>'
        parts.append(_group(arm, arms, tip, bar + _whisker(x(entry.low), x(entry.high), y)))
        parts.append(_text(width - _VALUE + 8, y, f"{entry.value:.{digits}f}", "start", "value"))
    axis = f'<line class="axis" x1="{_LABEL}" x2="{_LABEL}" y1="0" y2="{len(arms) * _ROW}"/>'
    return _svg(width, len(arms) * _ROW, "".join(parts) + axis, tips)


def forest(rows: Sequence[ArmDifference], arms: Sequence[str], *, width: int = 860) -> Markup:
    """Paired differences as points with intervals around a zero line; left of it is less toxic.

    Args:
        rows: from top to bottom.
        arms: of the experiment, for the colours.
    """
    label, number = 300, 190
    reach = max((max(abs(row.low), abs(row.high)) for row in rows), default=1.0) * 1.08 or 1.0
    span = width - label - number

    def x(value: float) -> float:
        return label + span * (value + reach) / (2 * reach)

    height = len(rows) * _ROW + 22
    parts = [f'<rect class="better" x="{label}" y="0" width="{span / 2}" height="{len(rows) * _ROW}"/>',
             f'<line class="axis" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="0" y2="{len(rows) * _ROW}"/>']
    tips = []
    for index, row in enumerate(rows):
        y = index * _ROW + _ROW / 2
        title = f"{row.metric.replace('_', ' ')}, against {row.against}"
        shown = f"{row.value:+.3f}  [{row.low:+.3f}, {row.high:+.3f}]"
        point = f'<circle class="bar" cx="{x(row.value):.1f}" cy="{y}" r="5.5"/>'
        parts.append(_text(label - 12, y, title, "end", "name"))
        tips.append(f"{title}: {shown}")
        parts.append(_group(row.against, arms, tips[-1], _whisker(x(row.low), x(row.high), y) + point))
        parts.append(_text(width - number + 12, y, shown, "start", "value"))
    foot = len(rows) * _ROW + 14
    parts.append(_text(x(0) - 8, foot, "← less toxic", "end", "faint"))
    parts.append(_text(x(0) + 8, foot, "more toxic →", "start", "faint"))
    return _svg(width, height, "".join(parts), tips)


def plane(points: Mapping[str, tuple[Interval, Interval]], *, right: str, up: str, width: int = 420,
          height: int = 300) -> Markup:
    """Each arm as a point with its intervals in both directions, named beside it; the axes begin where the points do.

    Args:
        points: arm -> its place from left to right and from bottom to top.
        right, up: what the two directions are.
    """
    arms, left, bottom = list(points), 52, 40
    span, rise = width - left - 14, height - bottom - 10

    def scale(values: Sequence[Interval], size: float) -> Callable[[float], float]:
        low, high = min(one.low for one in values), max(one.high for one in values)
        margin = 0.08 * (high - low) or 1.0
        return lambda value: size * (value - low + margin) / (high - low + 2 * margin)

    across, along = (scale([point[axis] for point in points.values()], size) for axis, size in ((0, span), (1, rise)))
    parts = [f'<path class="axis" d="M{left} 10V{10 + rise}H{width - 14}" fill="none"/>',
             _text(left + span / 2, height - 8, f"{right} →", "middle", "faint"),
             f'<g transform="rotate(-90)">{_text(-10 - rise / 2, 14, f"{up} →", "middle", "faint")}</g>']
    tips = []
    for arm, (value, other) in points.items():
        x, y = left + across(value.value), 10 + rise - along(other.value)
        tips.append(f"{arm}: {right} {value.value:.3f}, interval {value.low:.3f} to {value.high:.3f}; "
                    f"{up} {other.value:.3f}, interval {other.low:.3f} to {other.high:.3f}")
        cross = (f'<path class="whisker" d="M{left + across(value.low):.1f} {y:.1f}H{left + across(value.high):.1f}'
                 f'M{x:.1f} {10 + rise - along(other.low):.1f}V{10 + rise - along(other.high):.1f}"/>')
        parts.append(_group(arm, arms, tips[-1], f'{cross}<circle class="bar" cx="{x:.1f}" cy="{y:.1f}" r="5.5"/>'))
        parts.append(_text(x + 9, y - 11, arm, "start", "name") if x < width - 90
                     else _text(x - 9, y - 11, arm, "end", "name"))
        parts.append(_text(x, height - 26, f"{value.value:.3f}", "middle", "faint"))
    return _svg(width, height, "".join(parts), tips)


def survival(histograms: Mapping[str, Sequence[int]], threshold: float, *, width: int = 860,
             height: int = 270) -> Markup:
    """Share of an arm's continuations at or over each toxicity, as steps.

    Args:
        histograms: arm -> counts in bins of equal width over [0, 1].
    """
    arms, left, bottom = list(histograms), 52, 34
    curves = {arm: _at_or_over(counts) for arm, counts in histograms.items()}
    top = max((curve[1] for curve in curves.values()), default=1.0) * 1.08 or 1.0
    span, rise = width - left - 12, height - bottom - 10

    def point(value: float, share: float) -> str:
        return f"{left + span * value:.1f},{10 + rise * (1 - min(share / top, 1)):.1f}"

    parts = []
    for step in range(5):
        share = top * step / 4
        y = 10 + rise * (1 - step / 4)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - 12}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(left - 8, y, f"{share:.0%}" if top > 0.2 else f"{share:.1%}", "end", "faint"))
    for tenth in range(0, 11, 2):
        parts.append(_text(left + span * tenth / 10, height - 18, f"{tenth / 10:.1f}", "middle", "faint"))
    parts.append(_text(left + span / 2, height - 3, "toxicity of a continuation, at least", "middle", "faint"))
    x = left + span * threshold
    parts.append(f'<line class="threshold" x1="{x:.1f}" x2="{x:.1f}" y1="10" y2="{10 + rise}"/>')
    tips = []
    for arm, curve in curves.items():
        bins = len(curve)
        points = " ".join(f"{point(n / bins, share)} {point((n + 1) / bins, share)}"
                          for n, share in enumerate(curve) if n)
        at = curve[min(round(threshold * bins), bins - 1)]
        tips.append(f"{arm}: {at:.1%} of the continuations at or over {threshold:g}")
        parts.append(_group(arm, arms, tips[-1], f'<polyline class="line" points="{points}"/>'))
    return _svg(width, height, "".join(parts), tips)


def timings(seconds: Mapping[str, float], *, width: int = 860) -> Markup:
    """How long each step took."""
    longest = max(seconds.values(), default=1.0) or 1.0
    label, number = 160, 80
    parts = []
    for row, (name, took) in enumerate(seconds.items()):
        y = row * 24 + 12
        length = (width - label - number) * took / longest
        parts.append(_text(label - 10, y, name, "end", "name"))
        parts.append(f'<rect class="time" x="{label}" y="{y - 6}" width="{max(length, 1):.1f}" height="12" rx="3"/>')
        parts.append(_text(label + max(length, 1) + 8, y, f"{took:,.1f} s", "start", "value"))
    return _svg(width, max(len(seconds) * 24, 1), "".join(parts),
                [f"{name} {took:,.1f} s" for name, took in seconds.items()])


def curves(columns: Sequence[str], series: Mapping[str, Sequence[float | None]], *, below: str, width: int = 420,
           height: int = 230) -> Markup:
    """Lines with points over columns of equal width, from zero on; each line goes by its name's colour.

    Args:
        columns: labels of the columns.
        series: name -> a value for each column, None where there is none.
        below: what the columns are.
    """
    names, left, bottom = list(series), 52, 40
    known = [value for values in series.values() for value in values if value is not None]
    tick = _round_up(max(known, default=1.0) / 4)
    top = 4 * tick
    span, rise = width - left - 14, height - bottom - 10
    step = span / max(len(columns) - 1, 1)
    parts = []
    for number in range(5):
        y = 10 + rise * (1 - number / 4)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - 14}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(left - 8, y, f"{tick * number:,.10g}", "end", "faint"))
    for number, label in enumerate(columns):
        parts.append(_text(left + number * step, height - 26, label, "middle", "faint"))
    parts.append(_text(left + span / 2, height - 8, below, "middle", "faint"))
    tips = []
    for name, values in series.items():
        points = [(left + number * step, 10 + rise * (1 - value / top), label, value)
                  for number, (label, value) in enumerate(zip(columns, values, strict=True)) if value is not None]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in points)
        parts.append(_group(name, names, name, f'<polyline class="line" points="{line}"/>'))
        tips += [f"{name}, {label}: {value:.4g}" for _, _, label, value in points]
        parts += [_group(name, names, f"{name}, {label}: {value:.4g}",
                         f'<circle class="bar" cx="{x:.1f}" cy="{y:.1f}" r="4"/>') for x, y, label, value in points]
    return _svg(width, height, "".join(parts), tips)


def _round_up(value: float) -> float:
    """The next 1, 2, 2.5 or 5 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= value)


def _at_or_over(counts: Sequence[int]) -> list[float]:
    total = sum(counts) or 1
    return [sum(counts[first:]) / total for first in range(len(counts))]


def _svg(width: float, height: float, inner: str, tips: Iterable[str]) -> Markup:
    """The picture; who cannot see it is read the words of its marks."""
    words = escape("; ".join(tips) or "no figures")
    return Markup(f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{words}">'  # noqa: S704 - escaped
                  f"{inner}</svg>")


def _text(x: float, y: float, text: str, anchor: str, style: str) -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" dy=".35em" text-anchor="{anchor}">{escape(text)}</text>'


def _group(arm: str, arms: Sequence[str], tip: str, inner: str) -> str:
    style = colour(arm, arms) if arm in arms else "c0"
    return f'<g class="mark {style}" data-arm="{escape(arm)}" data-tip="{escape(tip)}">{inner}</g>'


def _whisker(low: float, high: float, y: float) -> str:
    return (f'<path class="whisker" d="M{low:.1f} {y}H{high:.1f}M{low:.1f} {y - 5}V{y + 5}'
            f'M{high:.1f} {y - 5}V{y + 5}"/>')
