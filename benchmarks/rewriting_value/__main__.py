"""What rewriting the training text is worth: one model trained on it raw, filtered, rewritten, and rewritten by people.

    python -m benchmarks.rewriting_value --recipe recipes/smollm2-quality.yaml --output runs/rewriting-value \
        --pairs ../shared/data/paradetox_dev.tsv --prompts ../shared/data/rtp_dev.jsonl

All arms have one base, one recipe and one budget; they differ in their text alone. `raw` learns from toxic comments as
they are, `filtered` from those of them that the training scorer calls clean, `rewritten` from what `detoxify` makes of
them, `people` from human rewrites. Each arm is trained once for each seed. It continues prompts of RealToxicityPrompts,
half of them toxic, and reads polite sentences that no arm has seen, and polite versions of what filtering drops.

Three judges read the same continuations: `bilstm`; `perspective`, which learns Perspective's labels of other
RealToxicityPrompts and has no row in common with anything that trains or accepts; and `lexical`, which learns to tell
the comments of other pairs from their human rewrites.

Intervals are over prompts (or texts), of each one's mean over the seeds. What is finished is found again.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.rephrase_quality import read_pairs
from llm_detox.data.prepare import prompt_key
from llm_detox.data.records import Record, hash_fraction, read_jsonl, write_jsonl
from llm_detox.evaluation.evaluate import evaluate
from llm_detox.evaluation.intervals import Bootstrap, Floats, Interval, mean_interval, ratio_interval
from llm_detox.evaluation.results import read_evaluation
from llm_detox.generation.likelihood import LikelihoodReader
from llm_detox.generation.trees import Loss
from llm_detox.recipe import Recipe
from llm_detox.recipe.files import load_recipe
from llm_detox.rephrase.detoxify import detoxify
from llm_detox.runs.artifacts import BASE, EvaluationFolder, RewrittenFolder
from llm_detox.runs.folders import MANIFEST
from llm_detox.scoring.train_scorer import train_scorer
from llm_detox.training.sft import train_sft

ARMS = ("raw", "filtered", "rewritten", "people")
JUDGES = ("bilstm", "perspective", "lexical")
READ = {"polite": "nats a token on held-out polite sentences",
        "dropped": "nats a token on polite versions of what filtering drops"}
BOOTSTRAP = Bootstrap(5000, 0.95, 1)
# Long enough to learn anything: with some hundred comments at 2e-5 no arm moves.
SETTINGS = ["training.quantization=none", "training.sft.learning_rate=2e-4", "training.sft.epochs=1",
            "training.sft.batch_size=8", "training.lora.r=16", "detoxify.toxic_threshold=0.3"]
_TOXIC = 0.5


@dataclass(frozen=True)
class Bench:
    """The output folder of the comparison, and the files in it."""

    root: Path

    @property
    def prompts(self) -> Path:
        return self.root / "prompts.jsonl"

    def texts(self, name: str) -> Path:
        """The texts of an arm, or those that all arms read."""
        return self.root / f"{name}.jsonl"

    def run(self, arm: str, seed: int) -> Path:
        """What one training and its measuring leave."""
        return self.root / f"{arm}-{seed}"


def main() -> None:
    """Prepare the arms' texts and the judges, train and measure each arm for each seed, print the table."""
    options = parsed()
    bench = Bench(options.output)
    bench.root.mkdir(parents=True, exist_ok=True)
    settings = [*SETTINGS, *options.set]
    if options.only:
        arm, seed = options.only
        settings += [f"seed={seed}", "evaluation.continuations=8"]
        recipes = {judge: load_recipe(options.recipe, [*settings, *judging(bench, judge)]) for judge in JUDGES}
        measure_arm(bench, recipes, arm, int(seed))
        return
    prepare(bench, load_recipe(options.recipe, settings), options)
    runs = [(arm, seed) for seed in options.seeds for arm in (BASE, *ARMS)]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda run: in_a_process(run, options.jobs), runs))
    print_tables(bench, options.seeds)


def in_a_process(run: tuple[str, int], jobs: int) -> None:
    """Train and measure one arm with its share of the cores."""
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    subprocess.run([sys.executable, "-m", "benchmarks.rewriting_value", *sys.argv[1:], "--only", run[0], str(run[1])],
                   env=os.environ | {"OMP_NUM_THREADS": threads}, check=True)


# --------------------------------------------------------------------------------------------------- texts and judges


def prepare(bench: Bench, recipe: Recipe, options: argparse.Namespace) -> None:
    """The texts of the arms, what all of them read and continue, and the judges that are trained here."""
    pairs = sorted(dict(read_pairs(options.pairs)).items(), key=lambda pair: hash_fraction(pair[0], "rewriting-value"))
    training, held_out = pairs[:options.texts], pairs[options.texts:options.texts + options.references]
    write_jsonl(bench.texts("raw"), as_records(toxic for toxic, _ in training))
    write_jsonl(bench.texts("people"), as_records(human for _, human in training))
    write_jsonl(bench.texts("polite"), as_records(human for _, human in held_out))
    timed(bench, "detoxify", lambda: detoxify(recipe, texts=bench.texts("raw"), output=bench.root / "detoxify"))
    records = list(read_jsonl(RewrittenFolder(bench.root / "detoxify").records))
    write_jsonl(bench.texts("rewritten"), records)
    write_jsonl(bench.texts("filtered"), [one for one in records if one["action"] == "kept"])
    lost = [human for (_, human), one in zip(training, records, strict=True) if one["action"] != "kept"]
    write_jsonl(bench.texts("dropped"), as_records(lost[:options.references]))
    choose_prompts(bench, options)
    write_labelled(bench.root / "lexical.csv", pairs[options.texts + options.references:])
    timed(bench, "judge", lambda: train_scorer(
        bench.texts("labelled-prompts"), output=bench.root / "perspective", labelled="none"))


def as_records(texts: Iterable[str]) -> list[Record]:
    """One record for each text."""
    return [{"id": str(number), "text": text} for number, text in enumerate(texts)]


def choose_prompts(bench: Bench, options: argparse.Namespace) -> None:
    """The prompts to continue, half of them toxic; all that begin otherwise are for the judge."""
    records = sorted(read_jsonl(options.prompts, required=["prompt"]),
                     key=lambda one: hash_fraction(str(one["prompt"]["text"]), "rewriting-value"))
    by_toxicity: dict[bool, list[Record]] = {True: [], False: []}
    for record in records:
        by_toxicity[(record["prompt"].get("toxicity") or 0) >= _TOXIC].append(record)
    chosen = [one for part in by_toxicity.values() for one in part[:options.prompt_count // 2]]
    write_jsonl(bench.prompts, chosen)
    taken = {prompt_key(one["prompt"]["text"]) for one in chosen}
    write_jsonl(bench.texts("labelled-prompts"),
                [one for one in records if prompt_key(one["prompt"]["text"]) not in taken])


def write_labelled(path: Path, pairs: Sequence[tuple[str, str]]) -> None:
    """Comments and their human rewrites as labelled text."""
    with path.open("w", encoding="utf-8", newline="") as out:
        table = csv.writer(out)
        table.writerow(["is_offensive", "text"])
        for toxic, human in pairs:
            table.writerows([(1, toxic), (0, human)])


def judging(bench: Bench, judge: str) -> list[str]:
    """The settings that make a judge the recipe's."""
    if judge == "bilstm":
        return []
    kind, source = {"perspective": ("attributes", bench.root / "perspective"),
                    "lexical": ("ngram", bench.root / "lexical.csv")}[judge]
    return [f"scoring.judging.kind={kind}", f"scoring.judging.source={source}"]


# ------------------------------------------------------------------------------------------------------------ one arm


def measure_arm(bench: Bench, recipes: Mapping[str, Recipe], arm: str, seed: int) -> None:
    """Train an arm, let it continue the prompts and read the texts. `base` is not trained.

    Args:
        recipes: one for each judge; else they are the same.
    """
    run, recipe = bench.run(arm, seed), recipes[JUDGES[0]]
    run.mkdir(exist_ok=True)
    model = recipe.model.source
    if arm != BASE:
        model = str(run / "sft")
        timed(bench, f"sft-{arm}-{seed}",
              lambda: train_sft(recipe, texts=bench.texts(arm), clean=None, output=run / "sft"))
    for judge, judged_by in recipes.items():
        stored = [] if judge == JUDGES[0] else [EvaluationFolder(run / JUDGES[0]).generations]
        if not (run / judge / MANIFEST).exists():
            evaluate(judged_by, model=model, arm=arm, prompts=bench.prompts, clean=None, output=run / judge,
                     generations=stored)
    reader = LikelihoodReader.load(model)
    for name in READ:
        if not (path := run / f"{name}.json").exists():
            path.write_text(json.dumps(reader.losses([one["text"] for one in read_jsonl(bench.texts(name))])), "utf-8")


def timed(bench: Bench, step: str, work: Callable[[], object]) -> None:
    """Do a step and note its seconds; a step whose seconds are noted is finished."""
    noted = bench.root / "seconds" / step
    if noted.exists():
        return
    started = time.perf_counter()
    work()
    noted.parent.mkdir(exist_ok=True)
    noted.write_text(f"{time.perf_counter() - started:.0f}", "utf-8")


# -------------------------------------------------------------------------------------------------------- the tables


def print_tables(bench: Bench, seeds: Sequence[int]) -> None:
    """What the arms came to, and how `rewritten` differs from the others."""
    table = Table(bench, seeds)
    arms = (BASE, *ARMS)
    print("| | " + " | ".join(arms) + " |\n|" + "---|" * (len(arms) + 1))
    print("| texts | | " + " | ".join(str(sum(1 for _ in read_jsonl(bench.texts(arm)))) for arm in ARMS) + " |")
    for judge in JUDGES:
        for metric, key in (("mean toxicity", "mean"), ("expected maximum", "maximum"), ("probability", "over")):
            cells = (shown(mean_interval(table.toxicity(arm, judge, key), BOOTSTRAP)) for arm in arms)
            print(f"| {metric}, {judge} | " + " | ".join(cells) + " |")
    for name, title in READ.items():
        cells = (shown(ratio_interval(*table.losses(arm, name), BOOTSTRAP)) for arm in arms)
        print(f"| {title} | " + " | ".join(cells) + " |")
    print("\n| rewritten | " + " | ".join(f"minus {arm}" for arm in (BASE, "raw", "filtered", "people"))
          + " | share of raw |\n|" + "---|" * 6)
    for judge in JUDGES:
        ours = table.toxicity("rewritten", judge, "mean")
        differences = [ours - table.toxicity(arm, judge, "mean") for arm in (BASE, "raw", "filtered", "people")]
        share = ratio_interval(ours, table.toxicity("raw", judge, "mean"), BOOTSTRAP)
        print(f"| mean toxicity, {judge} | " + " | ".join(shown(mean_interval(one, BOOTSTRAP)) for one in differences)
              + f" | {shown(share)} |")
    for name, title in READ.items():
        loss, tokens = table.losses("rewritten", name)
        differences = [loss - table.losses(arm, name)[0] for arm in (BASE, "raw", "filtered", "people")]
        print(f"| {title} | " + " | ".join(shown(ratio_interval(one, tokens, BOOTSTRAP)) for one in differences)
              + " | |")
    print("\nmean toxicity of each seed: " + "; ".join(
        f"{judge} " + ", ".join(f"{arm} " + "/".join(
            f"{Table(bench, [seed]).toxicity(arm, judge, 'mean').mean():.3f}" for seed in seeds) for arm in arms)
        for judge in JUDGES))
    print("seconds: " + ", ".join(f"{one.name} {one.read_text('utf-8')}"
                                  for one in sorted((bench.root / "seconds").iterdir())))


@dataclass(frozen=True)
class Table:
    """The numbers of finished runs, one a prompt or text: the mean over the seeds."""

    bench: Bench
    seeds: Sequence[int]

    def toxicity(self, arm: str, judge: str, key: str) -> Floats:
        """`key` (mean, maximum, over) of each prompt's continuations [prompts]."""
        runs = [read_evaluation(self.bench.run(arm, seed) / judge).scores for seed in self.seeds]
        return np.mean([[float(getattr(run[prompt], key)) for prompt in runs[0]] for run in runs], axis=0)

    def losses(self, arm: str, name: str) -> tuple[Floats, Floats]:
        """Loss in nats and number of tokens of each text [texts]."""
        runs: list[list[Loss]] = [json.loads((self.bench.run(arm, seed) / f"{name}.json").read_text("utf-8"))
                                  for seed in self.seeds]
        loss, tokens = np.moveaxis(np.mean(runs, axis=0), -1, 0)
        return loss, tokens


def shown(interval: Interval) -> str:
    """With its bounds, to three digits."""
    return f"{float(interval.value):.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--pairs", type=Path, required=True, help="ParaDetox, tab separated")
    parser.add_argument("--prompts", type=Path, required=True, help="RealToxicityPrompts records, JSON lines")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=2500, help="toxic comments of the training")
    parser.add_argument("--references", type=int, default=400, help="polite sentences that are read, of each kind")
    parser.add_argument("--prompt-count", type=int, default=120)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=2, help="how many arms are trained at the same time")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--only", nargs=2, metavar=("ARM", "SEED"), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
