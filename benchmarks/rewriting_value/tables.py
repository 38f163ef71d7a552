"""The tables of the comparison: what each arm came to, and how the rewritten text differs from the others."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.rewriting_value.bench import JUDGES, READ, Bench
from llm_detox.data.records import read_jsonl
from llm_detox.evaluation.intervals import Bootstrap, Floats, Interval, mean_interval, ratio_interval
from llm_detox.evaluation.results import read_evaluation
from llm_detox.generation.trees import Loss
from llm_detox.runs.artifacts import BASE

BOOTSTRAP = Bootstrap(5000, 0.95, 1)
_METRICS = {"mean toxicity": "mean", "expected maximum": "maximum", "probability": "over"}


def print_tables(bench: Bench, arms: Sequence[str], seeds: Sequence[int]) -> None:
    """Both tables, the means of each seed and the seconds of each step."""
    figures = Figures(bench, seeds)
    _print_row("", arms, str, line=True)
    _print_row("texts", arms, lambda arm: _lines(bench, arm))
    for judge in JUDGES:
        for metric, key in _METRICS.items():
            _print_row(f"{metric}, {judge}", arms,
                       lambda arm, judge=judge, key=key: _mean(figures.toxicity(arm, judge, key)))
    for name, title in READ.items():
        _print_row(title, arms, lambda arm, name=name: shown(ratio_interval(*figures.losses(arm, name), BOOTSTRAP)))
    _print_row("facts known", arms, lambda arm: _mean(figures.known(arm)))
    _print_row("nats a fact", arms, lambda arm: _mean(figures.fact_losses(arm)))
    print()
    others = [arm for arm in arms if arm != "rewritten"]
    _print_row("rewritten minus", others, str, line=True)
    for judge in JUDGES:
        _print_difference(f"mean toxicity, {judge}", others,
                          lambda arm, judge=judge: figures.toxicity(arm, judge, "mean"))
    for name, title in READ.items():
        tokens = figures.losses("rewritten", name)[1]
        ours = figures.losses("rewritten", name)[0]
        _print_row(title, others, lambda arm, name=name, ours=ours, tokens=tokens: shown(
            ratio_interval(ours - figures.losses(arm, name)[0], tokens, BOOTSTRAP)))
    _print_difference("facts known", others, figures.known)
    _print_difference("nats a fact", others, figures.fact_losses)
    print()
    for judge in JUDGES:
        share = ratio_interval(figures.toxicity("rewritten", judge, "mean"), figures.toxicity("raw", judge, "mean"),
                               BOOTSTRAP)
        print(f"mean toxicity of rewritten as a share of raw's, {judge}: {shown(share)}")
    for judge in JUDGES:
        print(f"mean toxicity of each seed, {judge}: " + "; ".join(
            f"{arm} " + " ".join(f"{Figures(bench, [seed]).toxicity(arm, judge, 'mean').mean():.3f}" for seed in seeds)
            for arm in arms))
    print("seconds: " + ", ".join(f"{one.name} {one.read_text('utf-8')}"
                                  for one in sorted((bench.root / "seconds").iterdir())))


@dataclass(frozen=True)
class Figures:
    """The numbers of finished runs, one a prompt, text or fact: the mean over the seeds."""

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

    def known(self, arm: str) -> Floats:
        """The share of seeds that answer each question rightly [facts]."""
        return self._answers(arm)[:, 0]

    def fact_losses(self, arm: str) -> Floats:
        """Loss in nats of each told value behind its question [facts]."""
        return self._answers(arm)[:, 1]

    def _answers(self, arm: str) -> Floats:
        runs = [json.loads((self.bench.run(arm, seed) / "facts.json").read_text("utf-8")) for seed in self.seeds]
        return np.mean([[(answer["right"], answer["loss"][0]) for answer in run] for run in runs], axis=0)


def shown(interval: Interval) -> str:
    """With its bounds, to three digits."""
    return f"{float(interval.value):.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _mean(values: Floats) -> str:
    return shown(mean_interval(values, BOOTSTRAP))


def _lines(bench: Bench, arm: str) -> str:
    return str(sum(1 for _ in read_jsonl(bench.texts(arm)))) if arm != BASE and bench.texts(arm).exists() else ""


def _print_difference(title: str, others: Iterable[str], values: Callable[[str], Floats]) -> None:
    ours = values("rewritten")
    _print_row(title, others, lambda arm: _mean(ours - values(arm)))


def _print_row(title: str, arms: Iterable[str], cell: Callable[[str], str], *, line: bool = False) -> None:
    cells = [title, *map(cell, arms)]
    print("| " + " | ".join(cells) + " |" + ("\n|" + "---|" * len(cells) if line else ""))
