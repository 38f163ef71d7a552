"""What the subcommands share: the recipe and the server options, and how an outcome is printed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_detox.errors import UsageError
from llm_detox.progress import visible_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from llm_detox.guard.filter import Guard
    from llm_detox.recipe import Recipe

OptionalRecipe = Annotated[Path | None, typer.Option("--recipe", help="The experiment's YAML file.")]
RecipeFile = Annotated[Path, typer.Option("--recipe", help="The experiment's YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a recipe value: training.sft.learning_rate=1e-4. Repeatable."),
]
Output = Annotated[Path, typer.Option("--output", help="The folder to write; it must not exist.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print the outcome as one JSON object on stdout.")]

Url = Annotated[str | None, typer.Option(help="Caikit REST, such as http://127.0.0.1:8080")]
Grpc = Annotated[str | None, typer.Option(help="Caikit gRPC, host:port")]
Fmaas = Annotated[str | None, typer.Option(help="TGIS gRPC, host:port")]
OpenAi = Annotated[str | None, typer.Option(
    "--openai", help="OpenAI-compatible server, such as http://127.0.0.1:8000 (vLLM)")]
Model = Annotated[str, typer.Option("--model", help="The id under which the model is served.")]
Ca = Annotated[Path | None, typer.Option(help="PEM file of the authority to trust.")]
Cert = Annotated[Path | None, typer.Option(help="Client certificate.")]
Key = Annotated[Path | None, typer.Option(help="Its key.")]
Tls = Annotated[bool, typer.Option("--tls", help="TLS for --grpc and --fmaas (--ca implies it).")]
Sample = Annotated[bool, typer.Option("--sample", help="Sample tokens instead of taking the most likely one.")]
Temperature = Annotated[float | None, typer.Option(help="With --sample.")]
TopP = Annotated[float | None, typer.Option(help="With --sample.")]
TopK = Annotated[int | None, typer.Option(help="With --sample.")]
Seed = Annotated[int | None, typer.Option(help="With --sample.")]
GuardKind = Annotated[str | None, typer.Option(
    "--guard", metavar="KIND[=SOURCE]",
    help="Withhold what a scorer (ngram, bilstm, ...) finds toxic, or a judge (judge=MODEL|ADDRESS) unsafe.")]
Threshold = Annotated[float, typer.Option("--guard-threshold", help="Toxicity at which a scorer withholds an answer.")]


def read_recipe(path: Path, overrides: list[str] | None, given: Path | None = None) -> Recipe:
    """The recipe of a step; its --input, if it takes one, must be there before any work starts.

    Raises:
        UsageError: the recipe is wrong, or the input is missing.
    """
    from llm_detox.recipe.files import load_recipe

    recipe = load_recipe(path, overrides or ())
    if given is not None:
        existing(given, "the input")
    return recipe


def read_optional_recipe(path: Path | None, overrides: list[str] | None) -> Recipe | None:
    """The recipe of a command that also works without one.

    Raises:
        UsageError: there is something to override, and no recipe; or the recipe is wrong.
    """
    if path is None and overrides:
        raise UsageError("--set changes a recipe, and there is none", place=f"--set {overrides[0]}",
                         remedy="add --recipe FILE")
    return read_recipe(path, overrides) if path else None


def existing(path: Path, what: str) -> Path:
    """An input that must be there before any work starts."""
    if not path.exists():
        raise UsageError(f"{what} does not exist", place=str(path),
                         remedy="check the path, or run the step that writes it")
    return path


def show_outcome(result: DataclassInstance | Mapping[str, Any], output: Path | None, as_json: bool) -> None:
    """The step's result: one JSON object on stdout, or a few readable lines."""
    from llm_detox.runs.artifacts import plain

    values = plain(result)
    if as_json:
        print(visible_json({**values, **({"output": str(output)} if output else {})}))
        return
    for name, value in values.items():
        if isinstance(value, str | int | float | bool):
            print(f"{name}: {value}")
    if output:
        print(f"written to {output}")


@dataclass(frozen=True)
class Served:
    """A served model, as the options name it; for token and CA see `credentials_for`."""

    address: str
    model: str
    ca: Path | None
    cert: Path | None
    key: Path | None

    def options(self, **more: Any) -> dict[str, Any]:
        """For the clients."""
        from llm_detox.client.credentials import credentials_for

        return {"url": self.address, "model_id": self.model, "cert_file": self.cert, "key_file": self.key,
                **credentials_for(self.address, ca_file=self.ca).options(), **more}


def served(url: str | None, grpc: str | None, fmaas: str | None, openai: str | None, model: str, ca: Path | None,
           cert: Path | None, key: Path | None, *, tls: bool) -> Served:
    """The one address among the options.

    Raises:
        UsageError: there is none, or more than one.
    """
    given = [one for one in (url, grpc, fmaas, openai) if one]
    if len(given) != 1:
        raise UsageError("give exactly one address", remedy="--url http://host:port, --grpc host:port, "
                         "--fmaas host:port or --openai http://host:port")
    address, secure = given[0], tls or ca is not None
    if openai:
        address = f"openai+{openai if '://' in openai else f'http://{openai}'}"
    elif not url:
        address = f"{'grpc' if grpc else 'fmaas'}{'s' if secure else ''}://{address.partition('://')[2] or address}"
    return Served(address, model, ca, cert, key)


def parameters(*, max_new_tokens: int, sample: bool, **given: Any) -> dict[str, Any]:
    """Generation parameters of the options; the server decides about those that are None."""
    values = {"max_new_tokens": max_new_tokens, "decoding_method": "SAMPLING" if sample else "GREEDY", **given}
    return {name: value for name, value in values.items() if value is not None}


def opened_guard(kind: str | None, threshold: float) -> Guard | None:
    if kind is None:
        return None
    from llm_detox.guard.build import open_guard

    return open_guard(kind, threshold)
