"""The step `paraphrase-pairs`: a paraphraser's own rewrites, the best to learn from and pairs to prefer them.

Among many draws of a model that was tuned on people's rewrites there is one as good as theirs, and most are not. Taught
to write its best draws (`train-paraphraser`, as in Dong et al. 2023), then to prefer them to worse ones (`dpo`,
Rafailov et al. 2023, on-policy), it needs fewer of them. People's own rewrites compete. What is good is what the
recipe's acceptance says, which knows neither the scorer nor the language model that judge the outcome.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from llm_detox.data.records import JsonlAppender, Record, read_jsonl, text_of, write_jsonl
from llm_detox.errors import DetoxError
from llm_detox.progress import task
from llm_detox.recipe import Recipe
from llm_detox.rephrase.build import MethodFactory
from llm_detox.rephrase.detoxify import outcomes, shard_chunks
from llm_detox.rephrase.paraphrase import asked
from llm_detox.rephrase.seq2seq import is_seq2seq
from llm_detox.rephrase.words import as_printed
from llm_detox.runs.artifacts import ParaphrasesFolder
from llm_detox.runs.folders import step_folder

_BEST = 2  # rewrites of a text to learn from
_FEWEST = 3  # candidates, for a best and two worse ones
_MANY = 8  # candidates, of which the one at the end of the first quarter is surely worse than the best


@dataclass
class ParaphrasePairsResult:
    """How many texts, candidates, accepted ones of these, rewrites to learn from, and pairs there are."""

    texts: int = 0
    candidates: int = 0
    accepted: int = 0
    best: int = 0
    pairs: int = 0


def paraphrase_pairs(recipe: Recipe, *, pairs: Path, output: Path) -> ParaphrasePairsResult:
    """Draw rewrites of each rude text, judge them as `detoxify` does, and pair the best with worse ones.

    A run that was interrupted continues after its last whole record.

    Args:
        pairs: what `train-paraphraser` reads.
        output: the folder to write, with `ranked.jsonl` (`{"text", "candidates"}`, the best candidate first, each with
            what was measured of it) and `pairs.jsonl` (`{"prompt", "chosen", "rejected"}`).

    Raises:
        DetoxError: there is no text, the paraphraser is no causal model, or no pair could be made.
    """
    paraphraser = recipe.detoxify.paraphrase
    if paraphraser.url or is_seq2seq(paraphraser.model or recipe.model.source):
        raise DetoxError("preference pairs are for a causal paraphraser", place="detoxify.paraphrase",
                         remedy="name the folder of one in detoxify.paraphrase.model")
    polite: dict[str, list[str]] = {}
    for rude, rewrite in read_pairs(pairs):
        polite.setdefault(rude, []).append(as_printed(rewrite) if recipe.detoxify.tidy else rewrite)
    records = [{"text": text, "polite": rewrites} for text, rewrites in polite.items()]
    settings = recipe.settings("detoxify", "scoring", "model")
    with step_folder(output, "preferences", settings=settings, inputs={"pairs": pairs}, resumable=True) as folder:
        workshop, files = MethodFactory(recipe), ParaphrasesFolder(folder.path)
        folder.expect(ParaphrasesFolder.ranked, len(records))
        with JsonlAppender(files.ranked) as out, task("ranking rewrites", len(records), "texts") as work:
            work.skip(len(out.existing))
            chunks = shard_chunks(len(records))
            for part in outcomes(lambda part: _ranked(workshop, part), workshop, records, chunks, out):
                work.advance(len(part))
        result = _counts(read_jsonl(files.ranked))
        result.best = write_jsonl(files.best, best(read_jsonl(files.ranked)))
        result.pairs = write_jsonl(files.pairs, preferences(read_jsonl(files.ranked)))
        if not result.pairs:
            raise DetoxError("no preference pair could be made", place=str(pairs), remedy="raise "
                             "detoxify.paraphrase.candidates or its temperature, or loosen detoxify.accept_...")
        folder.counts = asdict(result)
        folder.finish(result)
        return result


def best(ranked: Iterable[Record]) -> Iterator[Record]:
    """A text and its two best candidates, where they were accepted."""
    for record in ranked:
        for candidate in record["candidates"][:_BEST]:
            if not candidate["refused"]:
                yield {"toxic": record["text"], "neutral": candidate["text"]}


def preferences(ranked: Iterable[Record]) -> Iterator[Record]:
    """A text's best candidate against its worst, the one in the middle, and, of many, the one that ends a quarter.

    The worst was mostly refused, the others mostly not: one pair teaches the bounds, the others what is better
    within them. A candidate that was refused is never chosen.
    """
    for record in ranked:
        candidates = record["candidates"]
        count = len(candidates)
        if count >= _FEWEST and not candidates[0]["refused"]:
            for worse in (count - 1, count // 2, count // 4)[: 3 if count >= _MANY else 2]:
                yield {"prompt": asked(record["text"]), "chosen": " " + candidates[0]["text"],
                       "rejected": " " + candidates[worse]["text"]}


def _ranked(workshop: MethodFactory, records: Sequence[Record]) -> list[Record]:
    texts = [str(record["text"]) for record in records]
    candidates = workshop.link("paraphrase").candidates(texts)
    judged = workshop.acceptance.judge(
        texts, [[*group, *record["polite"]] for group, record in zip(candidates, records, strict=True)])
    return [{"text": text, "candidates": [asdict(one) for one in group]}
            for text, group in zip(texts, judged, strict=True)]


def _counts(ranked: Iterable[Record]) -> ParaphrasePairsResult:
    result = ParaphrasePairsResult()
    for record in ranked:
        result.texts += 1
        result.candidates += len(record["candidates"])
        result.accepted += sum(not one["refused"] for one in record["candidates"])
    return result


TextPair = tuple[str, str]


def read_pairs(path: Path) -> list[TextPair]:
    """(rude, polite) pairs; a rude text with several rewrites gives as many pairs.

    Raises:
        DetoxError: the file cannot be read, holds no pair, or something else than text.
    """
    if path.suffix in (".jsonl", ".json"):
        numbered = ((f"{path}, record {number}", row) for number, row in enumerate(read_jsonl(path), start=1))
        pairs = [(text_of(row, "toxic", place), text_of(row, "neutral", place)) for place, row in numbered]
    else:
        rows = [line.split("\t") for line in _text(path).split("\n")[1:]]
        pairs = [(row[0].strip(), neutral.strip()) for row in rows for neutral in row[1:]
                 if row[0].strip() and neutral.strip()]
    if not pairs:
        raise DetoxError("no pairs", place=str(path), remedy="lines of: rude text, tab, polite text; after a header")
    return pairs


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise DetoxError(f"not UTF-8 (byte {error.start + 1})", place=str(path),
                         remedy="save the file as UTF-8, for example with `iconv -t UTF-8`") from None
