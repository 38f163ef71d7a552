"""Write the words that disguised ones are recognised by: the most frequent ones of texts of people, insults included.

    python -m benchmarks.word_list TEXTS.csv TEXTS.jsonl ... > llm_detox/scoring/words.txt

The list in the package is of the comments that the scorer `ngram` learns from (their share that is kept from scorers
left out) and of two samples in `../shared/data`, `hh_harmless_dev.jsonl` and `rtp_dev.jsonl`.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

_WORD = re.compile(r"(?<![\w'])[a-z]+(?:'[a-z]+)?(?![\w'])")
_WORDS, _FEWEST = 20_000, 10  # times that a word occurs
# Of two letters only words, of one letter two: what runs together would else fall into pieces.
_SHORT = frozenset(re.findall(r"\w+", """
    a i ad ah am an as at be by do eh go ha he hi if in is it me my no of oh ok on or ow ox so to uh up us we ye yo
"""))


def main() -> None:
    csv.field_size_limit(10**7)
    counts = Counter(word for name in sys.argv[1:] for text in _texts(Path(name)) for word in set(_words(text)))
    frequent = [word for word, count in counts.most_common() if count >= _FEWEST]
    print("\n".join(sorted(frequent[:_WORDS], key=lambda word: (-counts[word], word))))


def _words(text: str) -> list[str]:
    words: list[str] = _WORD.findall(text.lower().replace("’", "'"))
    return [word for word in words if len(word) > 2 or word in _SHORT]


def _texts(path: Path) -> Iterator[str]:
    """The texts of a CSV or JSON lines file; each counts a word once, so that nobody's cries count for many."""
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        if path.suffix == ".csv":
            yield from (row["text"] for row in csv.DictReader(file))
            return
        for line in file:
            record = json.loads(line)
            yield from (value for value in record.values() if isinstance(value, str))


if __name__ == "__main__":
    main()
