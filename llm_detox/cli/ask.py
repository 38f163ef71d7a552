"""Asking a served model: ask, chat."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_detox.cli import common
from llm_detox.cli.common import AsJson
from llm_detox.errors import GateNotPassed
from llm_detox.progress import say, visible, visible_json

if TYPE_CHECKING:
    from llm_detox.guard.filter import GuardedClient


def ask(
    text: Annotated[str, typer.Argument(help="The text to continue.", show_default=False)],
    url: common.Url = None,
    grpc: common.Grpc = None,
    fmaas: common.Fmaas = None,
    openai: common.OpenAi = None,
    model: common.Model = "llm-detox",
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer as it arrives.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 40,
    sample: common.Sample = False,
    temperature: common.Temperature = None,
    top_p: common.TopP = None,
    top_k: common.TopK = None,
    seed: common.Seed = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop after this text. Repeatable.")] = None,
    guard: common.GuardKind = None,
    guard_threshold: common.Threshold = 0.5,
    timeout: Annotated[float, typer.Option(help="Seconds for the whole answer.")] = 120.0,
    ca: common.Ca = None,
    cert: common.Cert = None,
    key: common.Key = None,
    tls: common.Tls = False,
    as_json: AsJson = False,
) -> None:
    """Ask a served model. A bearer token is read from LLM_DETOX_TOKEN. With --guard the exit code of a withheld
    answer is 3."""
    from llm_detox.client import TextGenerationClient

    target = common.served(url, grpc, fmaas, openai, model, ca, cert, key, tls=tls)
    given = common.parameters(max_new_tokens=max_new_tokens, sample=sample, temperature=temperature, top_p=top_p,
                          top_k=top_k, seed=seed, stop_sequences=stop)
    judge = common.opened_guard(guard, guard_threshold)
    with TextGenerationClient(**target.options(timeout=timeout)) as client:
        if judge is not None:
            from llm_detox.guard.filter import GuardedClient

            _guarded(GuardedClient(client, judge), text, given, stream=stream and not as_json, as_json=as_json)
            return
        if stream and not as_json:
            for chunk in client.stream(text, **given):
                print(visible(chunk.text), end="", flush=True)
            print()
            return
        answer = client.generate(text, **given)
    print(visible_json(asdict(answer)) if as_json else visible(answer.text))


def _guarded(client: GuardedClient, text: str, given: dict[str, Any], *, stream: bool, as_json: bool) -> None:
    from llm_detox.guard.filter import WITHHELD

    if stream:
        for piece in client.stream(text, **given):
            print(visible(piece.text), end="", flush=True)
        print()
    else:
        piece = client.generate(text, **given)
        if as_json:
            print(visible_json(asdict(piece)))
        elif piece.finish_reason != WITHHELD:
            print(visible(piece.text))
    if piece.finish_reason == WITHHELD:
        say(f"withheld by {client.guard.name}: {piece.verdict.reason}")
        raise typer.Exit(GateNotPassed.exit_code)


def chat(
    url: common.Url = None,
    grpc: common.Grpc = None,
    fmaas: common.Fmaas = None,
    openai: common.OpenAi = None,
    model: common.Model = "llm-detox",
    template: Annotated[str | None, typer.Option(
        help="Model whose chat template is used; without one an OpenAI-compatible server uses its own, and others get "
             "`User: ...` lines.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of an answer, in tokens, at most.")] = 256,
    sample: common.Sample = False,
    temperature: common.Temperature = None,
    top_p: common.TopP = None,
    top_k: common.TopK = None,
    seed: common.Seed = None,
    guard: common.GuardKind = None,
    guard_threshold: common.Threshold = 0.5,
    timeout: Annotated[float, typer.Option(help="Seconds for an answer.")] = 300.0,
    ca: common.Ca = None,
    cert: common.Cert = None,
    key: common.Key = None,
    tls: common.Tls = False,
) -> None:
    """Talk with a served model. Ctrl-C ends an answer, Ctrl-D the conversation."""
    from llm_detox.client import TextGenerationClient
    from llm_detox.guard.filter import GuardedClient
    from llm_detox.guard.terminal_chat import chat as run

    target = common.served(url, grpc, fmaas, openai, model, ca, cert, key, tls=tls)
    given = common.parameters(max_new_tokens=max_new_tokens, sample=sample, temperature=temperature, top_p=top_p,
                          top_k=top_k, seed=seed)
    judge = common.opened_guard(guard, guard_threshold)
    with TextGenerationClient(**target.options(timeout=timeout)) as client:
        run(GuardedClient(client, judge) if judge else client, given, template=template, system=system)
