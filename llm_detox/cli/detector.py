"""Detectors for a guardrails orchestrator: `detector serve`."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm_detox.cli.common import OptionalRecipe, Overrides, read_optional_recipe
from llm_detox.errors import UsageError
from llm_detox.progress import say

if TYPE_CHECKING:
    from llm_detox.detector.rewriting import Rewriting
    from llm_detox.recipe import Recipe

app = typer.Typer(no_args_is_help=True, help="Scorers and judges behind the detector API.", rich_markup_mode=None)
_INSIDE = "KUBERNETES_SERVICE_HOST" in os.environ


@app.callback()
def _detector() -> None:
    """A group, so that `detector serve` keeps its name with one command in it."""


@app.command("serve")
def serve(
    detectors: Annotated[list[str], typer.Argument(
        metavar="ID=KIND[=SOURCE]...", show_default=False,
        help="The header's detector-id, and a scorer (toxicity=bilstm) or a judge (safety=judge=MODEL|ADDRESS).")],
    threshold: Annotated[float, typer.Option(help="Toxicity of a detection, where a request names none.")] = 0.5,
    rewrite: Annotated[bool, typer.Option(
        "--rewrite", help="Offer acceptable versions to requests that ask for them, by the recipe's methods.")] = False,
    recipe: OptionalRecipe = None,
    overrides: Overrides = None,
    host: Annotated[str, typer.Option(help="Where to listen; all addresses in a cluster.", show_default=False)] = (
        "0.0.0.0" if _INSIDE else "127.0.0.1"),  # noqa: S104
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8080,
    sample_file: Annotated[Path | None, typer.Option(
        help="Keep some of the texts here, as records that `evaluate` can judge.")] = None,
    sample_rate: Annotated[float | None, typer.Option(help="The share that is kept.  [default: 0.01]")] = None,
    sample_text: Annotated[bool, typer.Option(
        "--sample-text", help="Keep the texts themselves, too, not only what was found.")] = False,
    tls_cert_path: Annotated[Path | None, typer.Option(help="PEM file of the server's certificate.")] = None,
    tls_key_path: Annotated[Path | None, typer.Option(help="Its key.")] = None,
    tls_client_ca_cert_path: Annotated[Path | None, typer.Option(
        help="PEM file of the authority of clients; others are refused.")] = None,
) -> None:
    """Serve detectors at /api/v1/text/contents until Ctrl-C."""
    specs = _specs(detectors)
    if recipe and not rewrite:
        raise UsageError("a recipe says how text is rewritten", place="--recipe", remedy="add --rewrite")
    settings = read_optional_recipe(recipe, overrides)
    from llm_detox.detector.samples import live_samples
    from llm_detox.detector.server import AppServer, tls_of

    tls = tls_of(tls_cert_path, tls_key_path, tls_client_ca_cert_path)
    samples = live_samples(sample_file, sample_rate, sample_text)
    from llm_detox.detector.build import open_detector
    from llm_detox.detector.service import detector_app

    opened = {name: open_detector(spec, threshold) for name, spec in specs.items()}
    rewriting = _rewriting(settings) if rewrite else None
    server = AppServer(detector_app(opened, rewriting, samples), host, port, tls)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.close())
    say(f"{', '.join(opened)} at http{'s' if tls else ''}://{host}:{server.port}/api/v1/text/contents")
    server.serve()


def _rewriting(settings: Recipe | None) -> Rewriting:
    from llm_detox.api import packaged_recipe
    from llm_detox.detector.rewriting import Rewriting

    return Rewriting(settings or packaged_recipe())


def _specs(detectors: list[str]) -> dict[str, str]:
    """Id -> kind and source.

    Raises:
        UsageError: one has no id, or two have the same.
    """
    specs: dict[str, str] = {}
    for one in detectors:
        name, _, spec = one.partition("=")
        if not name or not spec or not name.isascii() or not name.isprintable():
            raise UsageError(f"{one!r} is not ID=KIND", place="DETECTORS", remedy="such as toxicity=bilstm")
        if name in specs:
            raise UsageError(f"two detectors are called {name!r}", place="DETECTORS", remedy="give each its own id")
        specs[name] = spec
    return specs
