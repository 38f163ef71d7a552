"""The picture in the README, drawn from a run's report: `python docs/picture.py RUN/report.json > docs/report.svg`."""

from __future__ import annotations

import json
import sys
from html import escape
from pathlib import Path
from typing import Any

PANELS = {"mean_toxicity": "mean toxicity", "toxicity_probability": "toxicity probability"}
COLOURS = ("#8a94a6", "#e07b39", "#2a9d8f", "#4a5fd9")
WIDTH, BAR, ROW, LEFT, PANEL = 760, 16, 26, 96, 360
STYLE = "font-family: system-ui, sans-serif; font-size: 13px; fill: #6b7280"


def draw(report: dict[str, Any]) -> str:
    """Bars of the arms with their 95 % intervals, one panel a measure."""
    parts = [_text(0, 18, f"{report['name']}: verdict {report['verdict']['verdict']}", 16)]
    for number, (metric, title) in enumerate(PANELS.items()):
        parts.append(_panel(report["arms"], metric, title, number * (PANEL + 40)))
    height = 60 + ROW * len(report["arms"])
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" role="img" '
            f'aria-label="toxicity of the arms">{"".join(parts)}</svg>\n')


def _panel(arms: dict[str, Any], metric: str, title: str, x: float) -> str:
    longest = max(arm[metric]["high"] for arm in arms.values())
    scale = (PANEL - LEFT - 60) / longest
    parts = [_text(x, 44, title, 13)]
    for row, (name, arm) in enumerate(arms.items()):
        y, values = 54 + row * ROW, arm[metric]
        start, end = (x + LEFT + values[edge] * scale for edge in ("low", "high"))
        parts += [
            _text(x, y + 13, name, 13),
            f'<rect x="{x + LEFT}" y="{y}" width="{values["value"] * scale:.1f}" height="{BAR}" rx="3" '
            f'fill="{COLOURS[row % len(COLOURS)]}"/>',
            f'<path d="M{start:.1f} {y + BAR / 2}H{end:.1f}M{start:.1f} {y + 4}v8M{end:.1f} {y + 4}v8" '
            'stroke="#6b7280" fill="none"/>',
            _text(end + 6, y + 13, f"{values['value']:.3f}", 13),
        ]
    return "".join(parts)


def _text(x: float, y: float, text: str, size: int) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" style="{STYLE}; font-size: {size}px">{escape(text)}</text>'


if __name__ == "__main__":
    print(draw(json.loads(Path(sys.argv[1]).read_text("utf-8"))), end="")
