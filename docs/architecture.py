"""The picture in docs/architecture.md, drawn from what is: `python docs/architecture.py > docs/architecture.svg`.

Above, who imports whom (the packages' own import statements); below, the steps of the compiled pipeline. Where one
arrow follows from others it is left out. A test draws it anew and compares.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
PIPELINE = ROOT / "pipelines/compiled/detox-and-serve.yaml"
TOPS = ("llm_detox", "serving", "components", "pipelines")
WIDTH, ROW, BOX, GAP, LETTER = 860, 58, 26, 16, 6.6
FONT = "font-family: system-ui, sans-serif; font-size: 12px"
LIBRARY, KUBEFLOW, SERVING = "#dbe7ff", "#fde7d6", "#d9f2ec"
COLOURS = {"serving": SERVING, "components": KUBEFLOW, "pipelines": KUBEFLOW}

Edges = dict[str, set[str]]
Places = dict[str, tuple[float, float]]


def imports() -> Edges:
    """Package -> packages that it imports; the library's plain modules that import nothing else are one node."""
    edges: Edges = {}
    for top in TOPS:
        for path in sorted((ROOT / top).rglob("*.py")):
            here = _package(path.relative_to(ROOT).with_suffix("").parts)
            edges.setdefault(here, set()).update(_package(tuple(name.split("."))) for name in _imported(path))
    del edges["serving"]  # a folder of the three below it
    plain = {name for name in edges if (ROOT / f"{name.replace('.', '/')}.py").exists()} | {"llm_detox"}
    while beyond := {name for name in plain if edges[name] - plain}:
        plain -= beyond
    ground = ", ".join(sorted(name.removeprefix("llm_detox.") for name in plain - {"llm_detox"}))
    return _merge(edges, lambda name: ground if name in plain else name.removeprefix("llm_detox."))


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module.split(".")[0] in TOPS)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in TOPS)


def _package(parts: tuple[str, ...]) -> str:
    """The folder (or plain module) below the library or the serving part; the other parts are one each."""
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    inside = ROOT.joinpath(*parts[:2])
    deeper = parts[0] in ("llm_detox", "serving") and (inside.is_dir() or inside.with_suffix(".py").exists())
    return ".".join(parts[:2] if deeper else parts[:1])


def steps() -> tuple[Edges, set[str]]:
    """Step -> steps that it waits for, from the compiled pipeline; and those behind the gate."""
    spec = next(yaml.safe_load_all(PIPELINE.read_text("utf-8")))
    edges, gated = _steps(spec, spec["root"]["dag"]["tasks"], set())
    return edges, gated


def _steps(spec: dict[str, Any], tasks: dict[str, Any], before: set[str]) -> tuple[Edges, set[str]]:
    edges: Edges = {}
    gated: set[str] = set()
    shown = {name: _shown(task) for name, task in tasks.items()}
    for name in sorted(tasks, key=lambda name: len(tasks[name].get("dependentTasks", []))):
        task, inner = tasks[name], spec["components"][tasks[name]["componentRef"]["name"]].get("dag")
        waits = {shown[other] for other in task.get("dependentTasks", [])} or before
        if inner and "parameterIterator" not in task:
            below, behind = _steps(spec, inner["tasks"], waits)
            edges |= below
            gated |= behind | (set(below) if "triggerPolicy" in task else set())
            shown[name] = " ".join(sorted(set(below) - set().union(*below.values())))
        else:
            edges[shown[name]] = waits
    return edges, gated


def _shown(task: dict[str, Any]) -> str:
    """A step's name in the dashboard."""
    if "parameterIterator" in task:
        return f"{task['taskInfo']['name'].removesuffix('-shards')} (shards)"
    return str(task["taskInfo"]["name"])


def _merge(edges: Edges, name_of: Any) -> Edges:
    merged: Edges = {}
    for name, others in edges.items():
        merged.setdefault(name_of(name), set()).update(name_of(other) for other in others)
    return {name: others - {name} for name, others in merged.items()}


def _beyond(edges: Edges) -> Edges:
    """Everything that each node reaches."""
    reach = {name: set(others) for name, others in edges.items()}
    while any(reach[name] != (more := reach[name].union(*(reach.get(other, set()) for other in reach[name])))
              and not reach.update({name: more}) for name in reach):
        pass
    return reach


def reduced(edges: Edges) -> Edges:
    """Nodes that need each other made one, and no arrow that follows from others."""
    reach = _beyond(edges)
    circle = {name: sorted({name} | {other for other in reach[name] if name in reach.get(other, set())})
              for name in edges}
    joined = _merge(edges, lambda name: " + ".join(circle[name]))
    reach = _beyond(joined)
    return {name: {other for other in others if not any(other in reach[third] for third in others)}
            for name, others in joined.items()}


def _layers(edges: Edges) -> dict[str, int]:
    """How far each node is from the first ones, by the longest way."""
    layer = dict.fromkeys(edges, 0)
    for _ in edges:
        for name, others in edges.items():
            for other in others:
                layer[other] = max(layer[other], layer[name] + 1)
    return layer


def placed(edges: Edges) -> tuple[Places, list[list[str]]]:
    """The middle of each node, and the ways of the arrows; on long ways they have places of their own."""
    layer = _layers(edges)
    rows: list[list[str]] = [sorted(name for name in edges if layer[name] == row)
                             for row in range(max(layer.values()) + 1)]
    ways: list[list[str]] = []
    above: dict[str, list[str]] = {name: [] for name in edges}
    for name in sorted(edges):
        for other in sorted(edges[name]):
            bends = [f"\0{name}\0{other}\0{row}" for row in range(layer[name] + 1, layer[other])]
            for row, bend in enumerate(bends, layer[name] + 1):
                rows[row].append(bend)
            ways.append([name, *bends, other])
            for first, second in pairwise(ways[-1]):
                above.setdefault(second, []).append(first)
    places: Places = {}
    for number, row in enumerate(rows):
        row.sort(key=lambda name: (sum(places[one][0] for one in above[name]) / (len(above[name]) or 1), name))
        left = (WIDTH - sum(_wide(name) + GAP for name in row) + GAP) / 2
        for name in row:
            places[name] = (left + _wide(name) / 2, number * ROW + BOX / 2)
            left += _wide(name) + GAP
    return places, ways


def _lines(name: str) -> list[str]:
    """A long name in two lines."""
    if len(name) < 64:
        return [name]
    middle = name.find(" ", len(name) // 2)
    return [name[:middle], name[middle + 1:]]


def _wide(name: str) -> float:
    return 8 if name.startswith("\0") else 18 + LETTER * max(map(len, _lines(name)))


def _panel(title: str, edges: Edges, top: float, colour: Any) -> tuple[str, float]:
    places, ways = placed(edges)
    parts = [f'<text x="14" y="{top + 4:.0f}" style="{FONT}; font-size: 15px; fill: #1f2937">{escape(title)}</text>']
    down = top + 24
    for way in ways:
        points = [places[name] for name in way]
        line = f"M{points[0][0]:.1f} {points[0][1] + down + BOX / 2:.1f}"
        for number, ((x, y), (to_x, to_y)) in enumerate(pairwise(points)):
            start = y + down + (BOX / 2 if number == 0 else 0)
            end = to_y + down - (BOX / 2 + 2 if number == len(points) - 2 else 0)
            half = (start + end) / 2
            line += f"C{x:.1f} {half:.1f} {to_x:.1f} {half:.1f} {to_x:.1f} {end:.1f}"
        parts.append(f'<path d="{line}" fill="none" stroke="#6b7280" marker-end="url(#arrow)"/>')
    parts += [_box(name, x, y + down, colour(name)) for name, (x, y) in sorted(places.items()) if name[0] != "\0"]
    return "".join(parts), down + max(y for _, y in places.values()) + ROW


def _box(name: str, x: float, y: float, colour: str) -> str:
    wide, lines = _wide(name), _lines(name)
    high = BOX + 14 * (len(lines) - 1)
    texts = "".join(f'<text x="{x:.1f}" y="{y + 4 + 14 * row:.1f}" text-anchor="middle" style="{FONT}; fill: #111827">'
                    f'{escape(line)}</text>' for row, line in enumerate(lines))
    return (f'<rect x="{x - wide / 2:.1f}" y="{y - BOX / 2:.1f}" width="{wide:.1f}" height="{high}" rx="5" '
            f'fill="{colour}" stroke="#9ca3af"/>{texts}')


def draw() -> str:
    """The whole picture as SVG."""
    waits, gated = steps()
    then: Edges = {name: set() for name in waits}
    for name, others in waits.items():
        for other in others:
            then[other].add(name)
    above, end = _panel("Who imports whom; blue: the library", reduced(imports()), 24,
                        lambda name: COLOURS.get(name.partition(".")[0], LIBRARY))
    below, end = _panel("The steps of detox-and-serve; green: only for a model that passes the gate", reduced(then),
                        end + 10, lambda name: SERVING if name in gated else KUBEFLOW)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {end:.0f}" width="{WIDTH}" role="img" '
            'aria-label="who imports whom, and the steps of the pipeline"><defs><marker id="arrow" markerWidth="8" '
            'markerHeight="8" refX="6" refY="3" orient="auto"><path d="M0 0L6 3L0 6z" fill="#6b7280"/></marker></defs>'
            f'<rect width="{WIDTH}" height="{end:.0f}" rx="8" fill="#ffffff"/>{above}{below}</svg>\n')


if __name__ == "__main__":
    print(draw(), end="")
