"""The statistics as a page: what became of the corpus in a sentence, in numbers, by file; examples folded away."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from llm_detox.corpus.statistics import Example, Figures, Statistics
from llm_detox.recipe import Recipe

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; margin: .5rem 0 1.5rem; }
th, td { padding: .25rem .75rem .25rem 0; text-align: right; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; }
blockquote { margin: .25rem 0; padding-left: .75rem; border-left: 3px solid #8888; overflow-wrap: anywhere; }
"""
_COLUMNS = ("lines", "toxic", "kept", "rewritten", "dropped", "foreign", "unscored", "repeated", "unreadable")


def page(statistics: Statistics, recipe: Recipe) -> str:
    """The page, a file of its own without scripts."""
    total = statistics.total
    name = f"Corpus cleaned with the recipe {recipe.name}"
    rows = [(name, figures) for name, figures in statistics.files.items()]
    sections = [
        f"<h1>{escape(name)}</h1><p>{escape(_sentence(statistics, total))}</p>",
        "<h2>By attribute</h2>", _table(("attribute", f"lines at {statistics.threshold:g} or more", "share"), [
            (attribute, f"{count:,}", _percent(count, total.scored)) for attribute, count in
            sorted(total.attributes.items())]) if total.attributes else "<p>The scorer has no attributes.</p>",
        "<h2>By method</h2>", _table(("method", "lines rewritten"), [
            (method, f"{count:,}") for method, count in total.methods.most_common()]) if total.methods
        else "<p>Nothing was rewritten.</p>",
        _foreign(total), "<h2>By file</h2>", _table(("file", *_COLUMNS, "share toxic"), [
            (name, *(f"{getattr(figures, column):,}" for column in _COLUMNS), _percent(figures.toxic, figures.scored))
            for name, figures in [*rows, *([("all", total)] if len(rows) > 1 else [])]]),
        _not_read(statistics.not_read), _examples(statistics.examples)]
    return (f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
            f'content="width=device-width, initial-scale=1"><title>{escape(name)}</title><style>{_STYLE}</style></head>'
            f"<body><main>{''.join(sections)}</main></body></html>\n")


def _sentence(statistics: Statistics, total: Figures) -> str:
    return (f"Of {total.lines:,} lines in {len(statistics.files):,} files, {total.written:,} were written: "
            f"{total.kept + total.foreign:,} as they were, {total.foreign:,} of them because the scorer was not made "
            f"for their language, and {total.rewritten:,} rewritten. {total.toxic:,} "
            f"({_percent(total.toxic, total.scored)}) scored {statistics.threshold:g} or more with the scorer "
            f"{statistics.scorer}; {total.dropped:,} of them could not be made acceptable and were left out. Left out, "
            f"too: {total.unscored:,} lines without a score, {total.repeated:,} repeated ones and "
            f"{total.unreadable:,} that could not be read.")


def _foreign(total: Figures) -> str:
    rows = [(language, f"{count:,}") for language, count in total.languages.most_common()]
    return "<h2>In other languages</h2>" + _table(("language", "lines left as they were"), rows) if rows else ""


def _percent(count: int, whole: int) -> str:
    return f"{100 * count / whole:.2f} %" if whole else "-"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (f'<div class="wide" tabindex="0"><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>')


def _not_read(names: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(name)}</li>" for name in names)
    return f"<h2>Not read</h2><p>Their formats are not known.</p><ul>{items}</ul>" if names else ""


def _examples(examples: Sequence[Example]) -> str:
    if not examples:
        return ""
    shown = "".join(
        f"<p>{escape(one.file)}: {one.toxicity_before:.2f} before, {one.toxicity_after:.2f} after</p>"
        f"<blockquote>{escape(one.before)}</blockquote><blockquote>{escape(one.after)}</blockquote>"
        for one in examples)
    return f"<details><summary>Examples of rewritten lines (offensive language)</summary>{shown}</details>"
