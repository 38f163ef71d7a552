"""What `bench serve` shows: a table in the terminal, and one HTML page with plots."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from html import escape
from importlib import resources

from llm_detox.bench.load import BenchReport, Distribution, LevelFigures

_TIMES = {"first_token_ms": "first token, ms", "inter_token_ms": "between tokens, ms",
          "end_to_end_ms": "whole answer, ms", "guard_ms": "judging an answer, ms"}
_QUANTILES = ("p50", "p95", "p99")
_BUSY = 0.9  # from this share of a core on, the one loop that asks may be what is measured


def lines(result: BenchReport) -> Iterator[str]:
    """The table for the terminal."""
    guarded = any(row.guard_ms for row in result.levels)
    times = [name for name in _TIMES if any(getattr(row, name) for row in result.levels)]
    yield "  ".join([f"{'in flight':>9}", *([f"{'way':<7}"] if guarded else []), f"{'tokens/s':>9}",
                     *(f"{_TIMES[name] + ' p50/95/99':>32}" for name in times), "errors"])
    for row in result.levels:
        yield "  ".join([f"{row.in_flight:>9}", *([f"{row.way:<7}"] if guarded else []),
                         f"{row.tokens_per_second:>9.1f}", *(f"{_shown(getattr(row, name)):>32}" for name in times),
                         ", ".join(f"{code} {count}" for code, count in row.errors.items()) or "none"])
    yield from warnings(result)


def warnings(result: BenchReport) -> Iterator[str]:
    """What a reader must know before believing the figures."""
    if result.interrupted:
        yield "interrupted: the levels above are whole, others are missing"
    busy = [str(row.in_flight) for row in result.levels if row.client_busy > _BUSY]
    if busy:
        yield (f"with {', '.join(busy)} in flight this client was busy all the time (with the guard, if it runs here): "
               "what was measured is rather the client")
    for row in result.levels:
        if row.requests < 100:
            yield "fewer than 100 requests a level: p99 is hardly more than the slowest of them"
            return


def page(result: BenchReport) -> str:
    """The page: it needs no network, and no other file."""
    from llm_detox.evaluation.charts import curves

    rows = result.levels
    ways = list(dict.fromkeys(row.way for row in rows))
    columns = list(dict.fromkeys(str(row.in_flight) for row in rows))

    def values(way: str, figure: Callable[[LevelFigures], float | None]) -> list[float | None]:
        of_way = {str(row.in_flight): figure(row) for row in rows if row.way == way}
        return [of_way.get(column) for column in columns]

    rates = {way: values(way, lambda row: row.tokens_per_second) for way in ways}
    figures = [_figure("tokens a second", curves(columns, rates, below="requests in flight"), ways)]
    for name, title in _TIMES.items():
        series = {_named(way, share, ways): values(way, partial(_quantile, name=name, share=share))
                  for way in ways for share in _QUANTILES}
        series = {label: column for label, column in series.items() if any(value is not None for value in column)}
        if series:
            figures.append(_figure(title, curves(columns, series, below="requests in flight"), list(series)))
    notes = "".join(f"<p class='note'>{escape(text)}</p>" for text in warnings(result))
    about = escape(f"{result.model} at {result.address}, {result.about}")
    return _PAGE.format(css=_asset("report.css"), js=_asset("report.js"), about=about, figures="".join(figures),
                        table=_table(rows), notes=notes)


def _named(way: str, share: str, ways: Sequence[str]) -> str:
    return share if len(ways) == 1 else f"{way} {share}"


def _quantile(row: LevelFigures, name: str, share: str) -> float | None:
    times: Distribution | None = getattr(row, name)
    return float(getattr(times, share)) if times else None


def _figure(title: str, plot: str, names: Sequence[str]) -> str:
    from llm_detox.evaluation.charts import colour

    legend = "".join(f"<span><i class='dot {colour(name, names)}'></i>{escape(name)}</span> " for name in names)
    return (f"<figure><figcaption>{escape(title)}</figcaption>{plot}"
            f"<p class='note'>{legend if len(names) > 1 else ''}</p></figure>")


def _table(rows: Sequence[LevelFigures]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in (
        "in flight", "way", "requests", "tokens/s", "requests/s", *(f"{title}, p50 / p95 / p99" for title in
                                                                    _TIMES.values()), "withheld", "errors"))
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in (
        row.in_flight, row.way, row.requests, f"{row.tokens_per_second:.1f}",
        f"{row.requests_per_second:.2f}", *(_shown(getattr(row, name)) for name in _TIMES), row.withheld,
        ", ".join(f"{code} {count}" for code, count in row.errors.items()) or "none")) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _shown(times: Distribution | None) -> str:
    return " / ".join(f"{getattr(times, share):.1f}" for share in _QUANTILES) if times else "-"


def _asset(name: str) -> str:
    return (resources.files("llm_detox.evaluation") / "templates" / name).read_text("utf-8")


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>serving under load</title>
<style>
{css}
</style>
</head>
<body>
<header><div><p class="kicker">llm-detox bench serve</p><h1>Serving under load</h1><p class="sub">{about}</p></div>
<button id="theme" type="button" aria-label="light or dark">◐</button></header>
<main>
<section><div class="panels">{figures}</div>{notes}</section>
<section><div class="wide">{table}</div></section>
</main>
<div id="tip" hidden></div>
<script>
{js}
</script>
</body>
</html>
"""
