"""All cases by the door that they apply to, and their page in the docs.

    python -m tests.public_inputs.page > docs/public-inputs.md
"""

from __future__ import annotations

from itertools import chain

from llm_detox.progress import visible
from tests.public_inputs import addresses, data_files, model_folders, recipes, requests, scored_texts
from tests.public_inputs.case import Case, Refused

DOORS: dict[str, tuple[Case, ...]] = {
    "data files": data_files.CASES, "recipes": recipes.CASES, "addresses": addresses.CASES,
    "model folders": model_folders.CASES, "requests": requests.CASES, "scored texts": scored_texts.CASES}
_LONGEST = 60
_HEAD = """# Inputs of other people's making

{count} inputs from public bug reports of libraries that this project builds on, and of tools that do its job, each
rebuilt small and in our own words, and given to the door where the same could come in here. It is read rightly, or
refused with its place and a remedy; what stands behind *refused* is a pattern of the message.

    .venv/bin/python -m pytest -n 0 tests/public_inputs

tries them all; a row's test is the one of `tests/public_inputs/test_public_inputs.py` that has the source in its name.
`python -m tests.public_inputs.page` makes this page.

Scored texts are looked through for one word, as every scorer reads them: `True` where it is read in all of them, `[]`
where it is read in none. Two ways from the same reports are not read: bars around a part of a word (`id||iot||`), and
the small Roman numeral ⅰ for the letter i.
"""


def page() -> str:
    """The page, in Markdown."""
    count = len(list(chain.from_iterable(DOORS.values())))
    return "\n".join([_HEAD.format(count=count), *(_section(door, cases) for door, cases in DOORS.items())])


def _section(door: str, cases: tuple[Case, ...]) -> str:
    rows = [f"| {_link(case.source)} | {case.what} | {_outcome(case.outcome)} |" for case in cases]
    return "\n".join([f"## {door.capitalize()}", "", "| source | input | outcome |", "|---|---|---|", *rows, ""])


def _link(source: str) -> str:
    repository, _, number = source.partition("#")
    return f"[{source}](https://github.com/{repository}/issues/{number})"


def _outcome(outcome: object) -> str:
    refused = isinstance(outcome, Refused)
    text = outcome.message if isinstance(outcome, Refused) else "whole" if outcome is None else repr(outcome)
    short = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    code = visible(short).replace("|", "\\|").replace("`", "'")
    return f"refused: `{code}`" if refused else f"`{code}`"


if __name__ == "__main__":
    print(page(), end="")
