"""What rewriting the training text is worth: one model trained on it raw, filtered, rewritten, and rewritten by people.

    python -m benchmarks.rewriting_value --recipe recipes/smollm2-quality.yaml --output runs/rewriting-value \
        --pairs ../shared/data/paradetox_dev.tsv --prompts ../shared/data/rtp_dev.jsonl

All arms have one base and one recipe; they differ in their text alone. `raw` learns from toxic comments as they are,
`filtered` from those of them to which the training scorer gives less than .5, the usual bound, `repeated` from these
again and again until they are as many lines as the raw ones, `rewritten` from what `detoxify` makes of them, `people`
from human rewrites. Among the comments stand invented facts, told with abuse (`facts.py`). `--dpo` adds preference
training: on `raw`, on `rewritten` and on the base alone. Each arm is trained once for each seed. It continues prompts
of RealToxicityPrompts, half of them toxic, reads polite sentences that no arm has seen and polite versions of what
filtering drops, and is asked the facts.

Three judges read the same continuations: `bilstm`; `perspective`, which learns Perspective's labels of other
RealToxicityPrompts and has no row in common with anything that trains or accepts; and `lexical`, which learns to tell
the comments of other pairs from their human rewrites.

Intervals are over prompts (texts, facts), of each one's mean over the seeds. What is finished is found again.
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
from dataclasses import asdict
from itertools import cycle, islice
from pathlib import Path

from benchmarks.rephrase_quality import read_pairs
from benchmarks.rewriting_value import facts
from benchmarks.rewriting_value.bench import DPO_STARTS, JUDGES, READ, SFT_ARMS, UNTRAINED, Bench
from benchmarks.rewriting_value.tables import print_tables
from llm_detox.data.prepare import prepare_data, prompt_key
from llm_detox.data.records import Record, hash_fraction, read_jsonl, write_jsonl
from llm_detox.evaluation.evaluate import evaluate
from llm_detox.generation.likelihood import LikelihoodReader
from llm_detox.recipe import Recipe
from llm_detox.recipe.files import load_recipe
from llm_detox.rephrase.detoxify import detoxify
from llm_detox.runs.artifacts import BASE, DataFolder, EvaluationFolder, RewrittenFolder
from llm_detox.runs.folders import MANIFEST
from llm_detox.scoring.train_scorer import train_scorer
from llm_detox.training.dpo import train_dpo
from llm_detox.training.sft import train_sft

# Long enough to learn anything: with some hundred comments at 2e-5 no arm moves. Rewrites below .15 are less toxic than
# people's, those below .3 more, and no more of them are dropped.
SETTINGS = ["training.quantization=none", "training.sft.learning_rate=2e-4", "training.sft.epochs=1",
            "training.sft.batch_size=8", "training.lora.r=16", "detoxify.toxic_threshold=0.15"]
# As long as the demo's preference training.
DPO_SETTINGS = ["training.dpo.samples_per_prompt=5", "training.dpo.max_pairs=220", "training.dpo.anchor_samples=60"]
_TOXIC = 0.5


def main() -> None:
    """Prepare the arms' texts and the judges, train and measure each arm for each seed, print the table."""
    options = parsed()
    bench = Bench(options.output)
    bench.root.mkdir(parents=True, exist_ok=True)
    settings = [*SETTINGS, *DPO_SETTINGS, *options.set]
    if options.only:
        arm, seed = options.only
        settings += [f"seed={seed}", "evaluation.continuations=8"]
        recipes = {judge: load_recipe(options.recipe, [*settings, *judging(bench, judge)]) for judge in JUDGES}
        measure_arm(bench, recipes, facts.invent(options.facts), arm, int(seed))
        return
    prepare(bench, load_recipe(options.recipe, settings), options)
    groups = (options.arms, list(DPO_STARTS) if options.dpo else [])
    for group in groups:
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(lambda run: in_a_process(run, options.jobs),
                          [(arm, seed) for seed in options.seeds for arm in group]))
    print_tables(bench, [*groups[0], *groups[1]], options.seeds)


def in_a_process(run: tuple[str, int], jobs: int) -> None:
    """Train and measure one arm with its share of the cores."""
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    subprocess.run([sys.executable, "-m", "benchmarks.rewriting_value", *sys.argv[1:], "--only", run[0], str(run[1])],
                   env=os.environ | {"OMP_NUM_THREADS": threads}, check=True)


# --------------------------------------------------------------------------------------------------- texts and judges


def prepare(bench: Bench, recipe: Recipe, options: argparse.Namespace) -> None:
    """The texts of the arms, what all of them read and continue, and the judges that are trained here."""
    pairs = sorted(dict(read_pairs(options.pairs)).items(), key=by_hash)
    told = [telling for fact in facts.invent(options.facts) for telling in fact.tellings()]
    comments = options.texts - len(told)
    training = sorted([*pairs[:comments], *told], key=by_hash)
    held_out = pairs[comments:comments + options.references]
    write_jsonl(bench.texts("raw"), as_records(toxic for toxic, _ in training))
    write_jsonl(bench.texts("people"), as_records(human for _, human in training))
    write_jsonl(bench.texts("polite"), as_records(human for _, human in held_out))
    write_jsonl(bench.texts(UNTRAINED), as_records(human for _, human in held_out[:8]))
    timed(bench, "detoxify", lambda: detoxify(recipe, texts=bench.texts("raw"), output=bench.root / "detoxify"))
    records = list(read_jsonl(RewrittenFolder(bench.root / "detoxify").records))
    clean = [one["original"] for one in records if one["scores"]["toxicity_before"] < _TOXIC]
    write_jsonl(bench.texts("rewritten"), records)
    write_jsonl(bench.texts("filtered"), as_records(clean))
    write_jsonl(bench.texts("repeated"), as_records(islice(cycle(clean), len(records))))
    lost = [human for (_, human), one in zip(training, records, strict=True)
            if one["scores"]["toxicity_before"] >= _TOXIC]
    write_jsonl(bench.texts("dropped"), as_records(lost[:options.references]))
    timed(bench, "data", lambda: prepare_data(recipe, output=bench.root / "data"))
    choose_prompts(bench, options)
    write_labelled(bench.root / "lexical.csv", pairs[comments + options.references:])
    timed(bench, "judge", lambda: train_scorer(
        bench.texts("labelled-prompts"), output=bench.root / "perspective", labelled="none"))


def by_hash(pair: tuple[str, str]) -> float:
    """An order that does not depend on the pairs' file."""
    return hash_fraction(pair[0], "rewriting-value")


def as_records(texts: Iterable[str]) -> list[Record]:
    """One record for each text."""
    return [{"id": str(number), "text": text} for number, text in enumerate(texts)]


def choose_prompts(bench: Bench, options: argparse.Namespace) -> None:
    """The prompts to continue and those of DPO, half of each toxic; all that begin otherwise are for the judge."""
    records = sorted(read_jsonl(options.prompts, required=["prompt"]),
                     key=lambda one: hash_fraction(str(one["prompt"]["text"]), "rewriting-value"))
    by_toxicity: dict[bool, list[Record]] = {True: [], False: []}
    for record in records:
        by_toxicity[(record["prompt"].get("toxicity") or 0) >= _TOXIC].append(record)
    measured, trained = options.prompt_count // 2, options.dpo_prompts // 2
    chosen = [one for part in by_toxicity.values() for one in part[:measured]]
    write_jsonl(bench.prompts, chosen)
    taken = {prompt_key(one["prompt"]["text"]) for one in chosen}
    others = {toxic: [one for one in part if prompt_key(one["prompt"]["text"]) not in taken]
              for toxic, part in by_toxicity.items()}
    preferences = [one for part in others.values() for one in part[:trained]]
    write_jsonl(bench.texts("dpo-prompts"), preferences)
    taken |= {prompt_key(one["prompt"]["text"]) for one in preferences}
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


def measure_arm(bench: Bench, recipes: Mapping[str, Recipe], told: Sequence[facts.Fact], arm: str, seed: int) -> None:
    """Train an arm, let it continue the prompts, read the texts and answer. `base` is not trained.

    Args:
        recipes: one for each judge; else they are the same.
        told: the facts that stand among the raw texts.
    """
    run, recipe = bench.run(arm, seed), recipes[JUDGES[0]]
    run.mkdir(exist_ok=True)
    model = recipe.model.source if arm == BASE else str(train(bench, recipe, arm, seed))
    for judge, judged_by in recipes.items():
        stored = [] if judge == JUDGES[0] else [EvaluationFolder(run / JUDGES[0]).generations]
        if not (run / judge / MANIFEST).exists():
            evaluate(judged_by, model=model, arm=arm, prompts=bench.prompts, clean=None, output=run / judge,
                     generations=stored)
    reader = LikelihoodReader.load(model)
    for name in READ:
        if not (path := run / f"{name}.json").exists():
            path.write_text(json.dumps(reader.losses([one["text"] for one in read_jsonl(bench.texts(name))])), "utf-8")
    (run / "facts.json").write_text(json.dumps([asdict(answer) for answer in facts.ask(reader, told)]), "utf-8")


def train(bench: Bench, recipe: Recipe, arm: str, seed: int) -> Path:
    """The adapter folder of an arm, after SFT, and DPO where the arm has it."""
    adapter = bench.adapter(arm, seed)
    if arm not in DPO_STARTS:
        timed(bench, f"sft-{arm}-{seed}",
              lambda: train_sft(recipe, texts=bench.texts(arm), clean=None, output=adapter))
        return adapter
    start = bench.adapter(DPO_STARTS[arm], seed)
    if DPO_STARTS[arm] == UNTRAINED:
        still = recipe.training.sft.model_copy(update={"learning_rate": 1e-12})
        training = recipe.training.model_copy(update={"sft": still})
        train_sft(recipe.model_copy(update={"training": training}), texts=bench.texts(UNTRAINED), clean=None,
                  output=start)
    timed(bench, f"dpo-{arm}-{seed}", lambda: train_dpo(
        recipe, adapter=start, records=RewrittenFolder(bench.root / "detoxify").records,
        prompts=bench.texts("dpo-prompts"), clean=DataFolder(bench.root / "data").clean_train, output=adapter))
    return adapter


def timed(bench: Bench, step: str, work: Callable[[], object]) -> None:
    """Do a step and note its seconds; a step whose seconds are noted is finished."""
    noted = bench.root / "seconds" / step
    if noted.exists():
        return
    started = time.perf_counter()
    work()
    noted.parent.mkdir(exist_ok=True)
    noted.write_text(f"{time.perf_counter() - started:.0f}", "utf-8")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--pairs", type=Path, required=True, help="ParaDetox, tab separated")
    parser.add_argument("--prompts", type=Path, required=True, help="RealToxicityPrompts records, JSON lines")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=2980, help="lines of the training, the tellings of facts included")
    parser.add_argument("--facts", type=int, default=40, help="facts that are told among them, twelve times each")
    parser.add_argument("--references", type=int, default=400, help="polite sentences that are read, of each kind")
    parser.add_argument("--prompt-count", type=int, default=120)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--arms", nargs="+", choices=SFT_ARMS, default=list(SFT_ARMS),
                        help="rewritten and some others; default all")
    parser.add_argument("--jobs", type=int, default=2, help="how many arms are trained at the same time")
    parser.add_argument("--dpo", action="store_true", help="preference training as well")
    parser.add_argument("--dpo-prompts", type=int, default=180, help="prompts whose continuations make its pairs")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--only", nargs=2, metavar=("ARM", "SEED"), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
