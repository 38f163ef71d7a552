"""This machine and the served model: serve, stop, doctor."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm_detox.cli.common import AsJson, Overrides, RecipeFile, read_recipe
from llm_detox.errors import UsageError

if TYPE_CHECKING:
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

    def ready(state: DeploymentState) -> None:
        if as_json:
            print(json.dumps({"model_id": name, **state.urls}), flush=True)
            return
        address = state.urls["grpc"].removeprefix("grpc://")
        print(f'llm-detox ask --url {state.urls["rest"]} --model {name} "The best thing about my neighbours is"')
        print(f'llm-detox ask --grpc {address} --model {name} "The best thing about my neighbours is"', flush=True)

    run(model or _last_deployed(), name=name, rest_port=rest_port, grpc_port=grpc_port, on_ready=ready)


def _last_deployed() -> str:
    found = sorted(Path("runs").glob("*/artifacts/*/deploy/deployment/model"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UsageError("no model is given, and no local run has deployed one", place="runs/",
                         remedy="llm-detox serve MODEL, or `make demo` first")
    return str(found[-1])


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
    print(json.dumps(asdict(result), ensure_ascii=False) if as_json
          else "\n".join(one.line() for one in result.findings))
    if not result.ready:
        raise typer.Exit(1)
