"""`llm-detox bench`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from llm_detox.cli import served as of
from llm_detox.cli.common import AsJson
from llm_detox.errors import DetoxError, UsageError

app = typer.Typer(no_args_is_help=True, help="Measure what is served.", rich_markup_mode=None)


@app.callback()
def _bench() -> None:
    """A group, so that `bench serve` keeps its name with one command in it."""


@app.command("serve")
def serve(
    url: of.Url = None,
    grpc: of.Grpc = None,
    fmaas: of.Fmaas = None,
    openai: of.OpenAi = None,
    model: of.Model = "llm-detox",
    levels: Annotated[str, typer.Option(help="Numbers of requests in flight.")] = "1,2,4,8,16",
    requests: Annotated[int, typer.Option(min=1, help="Of a level, at least; never under 4 rounds.")] = 64,
    tokens: Annotated[int, typer.Option(min=1, help="Of each answer.")] = 64,
    natural: Annotated[bool, typer.Option("--natural", help="Answers may end before --tokens.")] = False,
    prompts: Annotated[Path | None, typer.Option(
        help='JSON lines {"prompt": "..."}, asked in turn; None takes texts of 4 to 40 words.')] = None,
    unary: Annotated[bool, typer.Option("--unary", help="Ask for whole answers, not for streams.")] = False,
    guard: of.GuardKind = None,
    guard_threshold: of.Threshold = 0.5,
    timeout: Annotated[float, typer.Option(help="Seconds for an answer.")] = 300.0,
    output: Annotated[Path | None, typer.Option(
        help="Folder for bench.json and bench.html; it must not exist.")] = None,
    ca: of.Ca = None,
    cert: of.Cert = None,
    key: of.Key = None,
    tls: of.Tls = False,
    as_json: AsJson = False,
) -> None:
    """Measure a served model under load.

    Tokens a second, times to the first token, between tokens and to the end. With --guard each level is measured
    twice, without and with the guard. Ctrl-C ends; levels that are done are kept.
    """
    from llm_detox.bench.load import Load, bench, mixed_prompts

    if output and output.exists():
        raise DetoxError("the output exists already", place=str(output), remedy="choose another --output")
    target = of.served(url, grpc, fmaas, openai, model, ca, cert, key, tls=tls)
    given = {"max_new_tokens": tokens, "decoding_method": "GREEDY", **({} if natural else {"min_new_tokens": tokens})}
    load = Load(_levels(levels), requests, given, _prompts(prompts) if prompts else mixed_prompts(), not unary)
    judge = of.opened_guard(guard, guard_threshold)
    about = f"{'at most ' if natural else ''}{tokens} tokens an answer, {'whole' if unary else 'streamed'}"
    result = {"address": target.address, "model": model, "about": about, "guard": judge.name if judge else None,
              **bench(target.options(timeout=timeout), load, judge)}
    _show(result, output if result["levels"] else None, as_json)
    if result["interrupted"]:
        raise typer.Exit(130)


def _show(result: dict[str, Any], output: Path | None, as_json: bool) -> None:
    from llm_detox.bench.page import lines, page

    told = sys.stderr if as_json else sys.stdout
    if output:
        output.mkdir(parents=True)
        (output / "bench.json").write_text(json.dumps(result, indent=1), "utf-8")
        (output / "bench.html").write_text(page(result), "utf-8")
    if as_json:
        print(json.dumps(result))
    for line in lines(result):
        print(line, file=told)
    if output:
        print(f"written to {output / 'bench.html'}", file=told)


def _levels(text: str) -> list[int]:
    try:
        levels = [int(part) for part in text.split(",")]
    except ValueError:
        levels = []
    if not levels or min(levels) < 1:
        raise UsageError(f"{text!r} are no numbers of requests in flight", place="--levels", remedy="such as 1,4,16")
    return levels


def _prompts(path: Path) -> list[str]:
    from llm_detox.evaluation.prompts import Prompts

    return [record["prompt"]["text"] for record in Prompts(path)]
