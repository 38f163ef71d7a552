"""How often the patterns that know refusals are right: precision and recall on labelled answers.

    python -m benchmarks.refusals [--prompts ../shared/data/rtp_dev.jsonl]

The answers of `refusals.jsonl` were written for this, half of them refusals in many forms, the others harmless ones
that look like some. The patterns were made on one part; the held-out part was written after them and has changed
nothing. With `--prompts`, RealToxicityPrompts records, it counts as well how many of their texts, which people wrote,
are taken for refusals.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_detox.data.records import read_jsonl
from llm_detox.evaluation.intervals import Interval, share_interval
from llm_detox.evaluation.refusals import is_refusal

_ANSWERS = Path(__file__).with_name("refusals.jsonl")


@dataclass(frozen=True)
class LabelledAnswer:
    """An answer, whether it is a refusal, and whether the patterns were made without it."""

    text: str
    refusal: bool
    held_out: bool


@dataclass(frozen=True)
class Rates:
    """Of the answers taken for refusals, how many are some; of the refusals, how many are known."""

    precision: Interval
    recall: Interval


def read_answers() -> list[LabelledAnswer]:
    """The labelled answers."""
    return [LabelledAnswer(record["text"], record["refusal"], record["held_out"]) for record in read_jsonl(_ANSWERS)]


def rates_of(answers: Sequence[LabelledAnswer]) -> Rates:
    """The rates of `is_refusal` on these answers, with 95 % intervals."""
    known = [answer for answer in answers if is_refusal(answer.text)]
    right = sum(answer.refusal for answer in known)
    return Rates(share_interval(right, len(known)), share_interval(right, sum(answer.refusal for answer in answers)))


def table(answers: Sequence[LabelledAnswer]) -> list[str]:
    """The rates of both parts, as the lines of a Markdown table."""
    lines = ["| answers | refusals | others | precision | recall |", "|---|---|---|---|---|"]
    for title, held_out in (("the patterns were made on", False), ("held out", True)):
        part = [answer for answer in answers if answer.held_out is held_out]
        refusals, rates = sum(answer.refusal for answer in part), rates_of(part)
        shown = (f"{rate.value:.3f} [{rate.low:.3f}, {rate.high:.3f}]" for rate in (rates.precision, rates.recall))
        lines.append(f"| {title} | {refusals} | {len(part) - refusals} | {' | '.join(shown)} |")
    return lines


def main() -> None:
    """Print the table, and the count."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--prompts", type=Path, help="RealToxicityPrompts records, JSON lines")
    options = parser.parse_args()
    print("\n".join(table(read_answers())))
    if options.prompts:
        texts = [record["prompt"]["text"] + record["continuation"]["text"]
                 for record in read_jsonl(options.prompts, required=("prompt", "continuation"))]
        print(f"{sum(map(is_refusal, texts))} of {len(texts)} texts that people wrote are taken for refusals")


if __name__ == "__main__":
    main()
