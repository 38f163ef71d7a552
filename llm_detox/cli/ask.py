"""`llm-detox ask`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_detox.cli import served as of
from llm_detox.cli.common import AsJson
from llm_detox.errors import GateNotPassed
from llm_detox.progress import say

if TYPE_CHECKING:
    from llm_detox.guard.filter import GuardedClient


def command(
    text: Annotated[str, typer.Argument(help="The text to continue.", show_default=False)],
    url: of.Url = None,
    grpc: of.Grpc = None,
    fmaas: of.Fmaas = None,
    openai: of.OpenAi = None,
    model: of.Model = "llm-detox",
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer as it comes.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 40,
    sample: of.Sample = False,
    temperature: of.Temperature = None,
    top_p: of.TopP = None,
    top_k: of.TopK = None,
    seed: of.Seed = None,
    stop: Annotated[list[str] | None, typer.Option(help="End behind this text. Repeatable.")] = None,
    guard: of.GuardKind = None,
    guard_threshold: of.Threshold = 0.5,
    timeout: Annotated[float, typer.Option(help="Seconds for the whole answer.")] = 120.0,
    ca: of.Ca = None,
    cert: of.Cert = None,
    key: of.Key = None,
    tls: of.Tls = False,
    as_json: AsJson = False,
) -> None:
    """Ask a served model. A bearer token is read from LLM_DETOX_TOKEN. With --guard the exit code of a withheld
    answer is 3."""
    from llm_detox.client import TextGenerationClient

    target = of.served(url, grpc, fmaas, openai, model, ca, cert, key, tls=tls)
    given = of.parameters(max_new_tokens=max_new_tokens, sample=sample, temperature=temperature, top_p=top_p,
                          top_k=top_k, seed=seed, stop_sequences=stop)
    judge = of.opened_guard(guard, guard_threshold)
    with TextGenerationClient(**target.options(timeout=timeout)) as client:
        if judge is not None:
            from llm_detox.guard.filter import GuardedClient

            _guarded(GuardedClient(client, judge), text, given, stream=stream and not as_json, as_json=as_json)
            return
        if stream and not as_json:
            for chunk in client.stream(text, **given):
                print(chunk.text, end="", flush=True)
            print()
            return
        answer = client.generate(text, **given)
    print(json.dumps(asdict(answer), ensure_ascii=False) if as_json else answer.text)


def _guarded(client: GuardedClient, text: str, given: dict[str, Any], *, stream: bool, as_json: bool) -> None:
    from llm_detox.guard.filter import WITHHELD

    if stream:
        for piece in client.stream(text, **given):
            print(piece.text, end="", flush=True)
        print()
    else:
        piece = client.generate(text, **given)
        if as_json:
            print(json.dumps(asdict(piece), ensure_ascii=False))
        elif piece.finish_reason != WITHHELD:
            print(piece.text)
    if piece.finish_reason == WITHHELD:
        say(f"withheld by {client.guard.name}: {piece.verdict.reason}")
        raise typer.Exit(GateNotPassed.exit_code)
