"""A served model under load and beside another: `bench serve`, compare-ui."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm_detox.cli import common
from llm_detox.cli.common import AsJson, read_recipe
from llm_detox.errors import DetoxError, UsageError, clear_disk_errors
from llm_detox.progress import visible_json

if TYPE_CHECKING:
    from llm_detox.bench.load import BenchReport
    from llm_detox.compare_ui.session import Settings
    from llm_detox.recipe.scorers import ScorerSection

_NAMES = ("base", "detoxified")  # of the models on the page
_SCORERS = ("bilstm", "ngram")  # of the demo's packages
app = typer.Typer(no_args_is_help=True, help="Measure a served model.", rich_markup_mode=None)


@app.callback()
def _bench() -> None:
    """A group, so that `bench serve` keeps its name with one command in it."""


@app.command("serve")
def serve(
    url: common.Url = None,
    grpc: common.Grpc = None,
    fmaas: common.Fmaas = None,
    openai: common.OpenAi = None,
    model: common.Model = "llm-detox",
    levels: Annotated[str, typer.Option(help="Numbers of requests in flight.")] = "1,2,4,8,16",
    requests: Annotated[int, typer.Option(
        min=1, help="Requests of each level; at least four times as many as are in flight.")] = 64,
    tokens: Annotated[int, typer.Option(min=1, help="Length of each answer, in tokens.")] = 64,
    natural: Annotated[bool, typer.Option("--natural", help="Answers may end before --tokens.")] = False,
    prompts: Annotated[Path | None, typer.Option(
        help='JSON lines {"prompt": "..."}, used in turn; without it, texts of 4 to 40 words.')] = None,
    unary: Annotated[bool, typer.Option("--unary", help="Ask for whole answers, not for streams.")] = False,
    guard: common.GuardKind = None,
    guard_threshold: common.Threshold = 0.5,
    timeout: Annotated[float, typer.Option(help="Seconds for an answer.")] = 300.0,
    output: Annotated[Path | None, typer.Option(
        help="Folder for bench.json and bench.html; it must not exist.")] = None,
    ca: common.Ca = None,
    cert: common.Cert = None,
    key: common.Key = None,
    tls: common.Tls = False,
    as_json: AsJson = False,
) -> None:
    """Measure a served model under load.

    Tokens a second, times to the first token, between tokens and to the end. With --guard each level is measured
    twice, without and with the guard. Ctrl-C ends; levels that are done are kept.
    """
    from llm_detox.bench.load import BenchReport, Load, bench, mixed_prompts

    if output and output.exists():
        raise DetoxError("the output exists already", place=str(output), remedy="choose another --output")
    target = common.served(url, grpc, fmaas, openai, model, ca, cert, key, tls=tls)
    given = {"max_new_tokens": tokens, "decoding_method": "GREEDY", **({} if natural else {"min_new_tokens": tokens})}
    load = Load(_levels(levels), requests, given, _prompts(prompts) if prompts else mixed_prompts(), not unary)
    judge = common.opened_guard(guard, guard_threshold)
    about = f"{'at most ' if natural else ''}{tokens} tokens an answer, {'whole' if unary else 'streamed'}"
    with _reserved(output):
        figures = bench(target.options(timeout=timeout), load, judge)
        report = BenchReport(target.address, model, about, judge.name if judge else None, **vars(figures))
        _show(report, output if report.levels else None, as_json)
    if report.interrupted:
        raise typer.Exit(130)


@contextmanager
def _reserved(output: Path | None) -> Iterator[None]:
    """The output is this process's own and can be written, known before the load."""
    from llm_detox.runs.locks import locked

    if output is None:
        yield
    else:
        with clear_disk_errors(output, "choose another --output"), locked(output):
            yield


def _show(report: BenchReport, output: Path | None, as_json: bool) -> None:
    from llm_detox.bench.page import lines, page
    from llm_detox.runs.artifacts import plain

    stream = sys.stderr if as_json else sys.stdout
    if output:
        output.mkdir(parents=True)
        (output / "bench.json").write_text(json.dumps(plain(report), indent=1), "utf-8")
        (output / "bench.html").write_text(page(report), "utf-8")
    if as_json:
        print(visible_json(plain(report)))
    for line in lines(report):
        print(line, file=stream)
    if output:
        print(f"written to {output / 'bench.html'}", file=stream)


def _levels(text: str) -> list[int]:
    try:
        levels = [int(part) for part in text.split(",")]
    except ValueError:
        levels = []
    if not levels or min(levels) < 1:
        raise UsageError(f"{text!r} is not a list of numbers of requests in flight", place="--levels",
                         remedy="such as 1,4,16")
    return levels


def _prompts(path: Path) -> list[str]:
    from llm_detox.evaluation.continuations import Prompts

    return [record["prompt"]["text"] for record in Prompts(path)]


def compare_ui(
    base: Annotated[str, typer.Argument(
        help="Model source, or the address of a served one: http://127.0.0.1:8080/NAME, grpc://, fmaas:// or "
             "openai+http:// with its name as the path.", show_default=False)],
    other: Annotated[str, typer.Argument(help="The model to compare with, in the same form.", show_default=False)],
    name: Annotated[list[str] | None, typer.Option(
        "--name", help="The name of a model on the page; give it twice.", show_default="base, detoxified")] = None,
    scorer: Annotated[list[str] | None, typer.Option(
        metavar="KIND[=SOURCE]", help="A scorer of the answers. Repeatable.", show_default="bilstm and ngram")] = None,
    recipe: Annotated[Path | None, typer.Option(
        help="Take the scorers, the threshold and the sampling of this recipe.")] = None,
    host: Annotated[str, typer.Option(help="Where to listen; there is no login.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free port.", min=0, max=65535)] = 8090,
    timeout: Annotated[float, typer.Option(help="Seconds for an answer of a served model.")] = 120.0,
    ca: common.Ca = None,
    cert: common.Cert = None,
    key: common.Key = None,
    as_json: AsJson = False,
) -> None:
    """A page on which two models answer side by side. It stays until Ctrl-C.

    Bearer tokens are read from LLM_DETOX_BASE_TOKEN and LLM_DETOX_TOKEN, for the first and the second model.
    """
    names = _two_names(name)
    specs, settings = _reading(recipe, scorer)
    from llm_detox.compare_ui.page import Comparison, serve
    from llm_detox.compare_ui.reading import open_reader
    from llm_detox.compare_ui.session import open_side

    tokens = (os.environ.get("LLM_DETOX_BASE_TOKEN"), os.environ.get("LLM_DETOX_TOKEN"))
    sides = [open_side(called, source, timeout=timeout, token=token, ca_file=ca, cert_file=cert, key_file=key)
             for called, source, token in zip(names, (base, other), tokens, strict=True)]
    serve(Comparison(sides, open_reader(specs), settings), host=host, port=port,
          on_ready=lambda address: print(visible_json({"url": address}) if as_json else address, flush=True))


def _two_names(given: list[str] | None) -> tuple[str, str]:
    names = given or list(_NAMES)
    if len(names) != 2 or names[0] == names[1]:
        raise UsageError("two different names are needed", place="--name", remedy="--name base --name detoxified")
    return names[0], names[1]


def _reading(recipe: Path | None, scorers: list[str] | None) -> tuple[list[ScorerSection], Settings]:
    """The scorers, and the settings to begin with."""
    from llm_detox.compare_ui.reading import scorer_of
    from llm_detox.compare_ui.session import Settings

    if recipe is None:
        return [scorer_of(spec) for spec in scorers or _SCORERS], Settings()
    read = read_recipe(recipe, None)
    evaluation = read.evaluation
    settings = Settings(max_new_tokens=evaluation.sampling.max_new_tokens, sampling=True,
                        temperature=evaluation.sampling.temperature, top_p=evaluation.sampling.top_p,
                        seed=read.seed, threshold=evaluation.toxic_threshold)
    specs = [scorer_of(spec) for spec in scorers or ()] or [read.scoring.judging, read.scoring.training]
    return specs, settings
