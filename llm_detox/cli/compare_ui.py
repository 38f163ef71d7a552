"""`llm-detox compare-ui`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm_detox.cli import served as of
from llm_detox.cli.common import AsJson, read_recipe

if TYPE_CHECKING:
    from llm_detox.compare_ui.session import Settings
    from llm_detox.recipe.scorers import ScorerSection

_NAMES = ("base", "detoxified")
_SCORERS = ("bilstm", "ngram")  # those of the demo's packages


def command(
    base: Annotated[str, typer.Argument(
        help="Model source, or the address of a served one: http://127.0.0.1:8080/NAME, grpc://, fmaas:// or "
             "openai+http:// with its name as the path.", show_default=False)],
    other: Annotated[str, typer.Argument(help="The one to compare with, likewise.", show_default=False)],
    name: Annotated[list[str] | None, typer.Option(
        "--name", help="What the page calls a side; give it twice.", show_default="base, detoxified")] = None,
    scorer: Annotated[list[str] | None, typer.Option(
        metavar="KIND[=SOURCE]", help="Scores of the answers. Repeatable.", show_default="bilstm and ngram")] = None,
    recipe: Annotated[Path | None, typer.Option(
        help="Take the scorers, the threshold and the sampling of this recipe.")] = None,
    host: Annotated[str, typer.Option(help="Where to listen; there is no login.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8090,
    timeout: Annotated[float, typer.Option(help="Seconds for an answer of a served model.")] = 120.0,
    ca: of.Ca = None,
    cert: of.Cert = None,
    key: of.Key = None,
    as_json: AsJson = False,
) -> None:
    """A page on which two models answer side by side. It stays until Ctrl-C.

    Bearer tokens are read from LLM_DETOX_BASE_TOKEN and LLM_DETOX_TOKEN, for the first and the second model.
    """
    names = _two_names(name)
    specs, settings = _reading(recipe, scorer)
    from llm_detox.compare_ui.reading import open_reader
    from llm_detox.compare_ui.sides import open_side

    try:
        from llm_detox.compare_ui.page import Comparison
        from llm_detox.compare_ui.server import serve
    except ModuleNotFoundError as error:
        from llm_detox.errors import DetoxError

        raise DetoxError(f"{error.name} is not installed", remedy="pip install 'llm-detox[ui]'") from None

    tokens = (os.environ.get("LLM_DETOX_BASE_TOKEN"), os.environ.get("LLM_DETOX_TOKEN"))
    sides = [open_side(called, source, timeout=timeout, token=token, ca_file=ca, cert_file=cert, key_file=key)
             for called, source, token in zip(names, (base, other), tokens, strict=True)]
    serve(Comparison(sides, open_reader(specs), settings), host=host, port=port,
          on_ready=lambda address: print(json.dumps({"url": address}) if as_json else address, flush=True))


def _two_names(given: list[str] | None) -> tuple[str, str]:
    from llm_detox.errors import UsageError

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
