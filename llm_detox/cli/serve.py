"""A model served on this machine, and asking a served one: serve, stop, doctor, ask, chat."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_detox.cli import common
from llm_detox.cli.common import AsJson, Overrides, RecipeFile, read_recipe
from llm_detox.errors import GateNotPassed
from llm_detox.progress import say, visible_json

if TYPE_CHECKING:
    from llm_detox.guard.filter import GuardedClient
    from llm_detox.serve.deployment import DeploymentState


def serve(
    model: Annotated[str | None, typer.Argument(
        help="s3:// address, converted folder, or any model; else the model that the last local run deployed.")] = None,
    name: Annotated[str, typer.Option("--name", "--model-id", help="The model id in requests.")] = "llm-detox",
    rest_port: Annotated[int, typer.Option(help="0 takes a free port.", min=0, max=65535)] = 8080,
    grpc_port: Annotated[int, typer.Option(help="0 takes a free port.", min=0, max=65535)] = 8085,
    as_json: AsJson = False,
) -> None:
    """Serve a model on this machine until Ctrl-C. It answers behind the Caikit API."""
    from llm_detox.serve.foreground import serve as run
    from llm_detox.serve.kept_runs import last_deployed

    def ready(state: DeploymentState) -> None:
        if as_json:
            print(visible_json({"model_id": name, **state.urls}), flush=True)
            return
        address = state.urls["grpc"].removeprefix("grpc://")
        print(f'llm-detox ask --url {state.urls["rest"]} --model {name} "The best thing about my neighbours is"')
        print(f'llm-detox ask --grpc {address} --model {name} "The best thing about my neighbours is"', flush=True)

    run(model or str(last_deployed(Path("runs"))), name=name, rest_port=rest_port, grpc_port=grpc_port, on_ready=ready)


def stop(
    deployment: Annotated[Path, typer.Argument(help="The folder that `deploy` wrote.", show_default=False)],
) -> None:
    """End a local deployment."""
    from llm_detox.serve.deployment import read_state
    from llm_detox.serve.local import stop_local

    read_state(deployment)
    ended = stop_local(deployment)
    print(f"ended: {', '.join(ended)}" if ended else "nothing was running")


def doctor(recipe: RecipeFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Check that a run has all it needs. Exit code 1 if something is missing."""
    settings = read_recipe(recipe, overrides)
    from llm_detox.doctor import examine

    result = examine(settings)
    print(visible_json(asdict(result)) if as_json
          else "\n".join(one.line() for one in result.findings))
    if not result.ready:
        raise typer.Exit(1)


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
                print(chunk.text, end="", flush=True)
            print()
            return
        answer = client.generate(text, **given)
    print(visible_json(asdict(answer)) if as_json else answer.text)


def _guarded(client: GuardedClient, text: str, given: dict[str, Any], *, stream: bool, as_json: bool) -> None:
    from llm_detox.guard.filter import WITHHELD

    if stream:
        for piece in client.stream(text, **given):
            print(piece.text, end="", flush=True)
        print()
    else:
        piece = client.generate(text, **given)
        if as_json:
            print(visible_json(asdict(piece)))
        elif piece.finish_reason != WITHHELD:
            print(piece.text)
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
