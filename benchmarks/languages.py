"""Which texts of other languages are told apart, and which English ones are taken for another language.

    python -m benchmarks.languages en=comments.txt de=saetze.txt ...

Each file has a text a line, or fortunes (texts with a line `%` between them). Texts without a letter are left out.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from llm_detox.data.records import clean_text
from llm_detox.scoring.languages import LanguageCheck

_SHORT = 40


def texts_of(path: Path) -> list[str]:
    """The texts of a file, each once."""
    content = path.read_text("utf-8", errors="replace")
    parts = content.split("\n%\n") if "\n%\n" in content else content.splitlines()
    cleaned = (clean_text(part) for part in parts)
    return [text for text in dict.fromkeys(cleaned) if any(map(str.isalpha, text))]


def share(found: list[str | None]) -> str:
    """How many were told apart, in per cent."""
    return f"{100 * sum(one is not None for one in found) / len(found):.2f} %" if found else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="LANGUAGE=FILE")
    options = parser.parse_args()
    check = LanguageCheck(["en"])
    check.foreign("einmal, damit das Modell geladen ist")
    print(f"| language | texts | told apart from English | of those under {_SHORT} characters | texts a second |")
    print("|---|---|---|---|---|")
    files: dict[str, list[Path]] = {}
    for one in options.files:
        language, _, path = one.partition("=")
        files.setdefault(language, []).append(Path(path))
    for language, paths in files.items():
        texts = [text for path in paths for text in texts_of(path)]
        started = time.perf_counter()
        found = [check.foreign(text) for text in texts]
        seconds = time.perf_counter() - started
        short = [one for one, text in zip(found, texts, strict=True) if len(text) < _SHORT]
        print(f"| {language} | {len(texts)} | {share(found)} | {share(short)} ({len(short)}) | "
              f"{len(texts) / seconds:.0f} |")


if __name__ == "__main__":
    main()
