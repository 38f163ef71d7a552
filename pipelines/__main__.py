"""`python -m pipelines run|submit|compile|stop`."""

from __future__ import annotations

import filecmp
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from llm_detox.cli import run_app
from llm_detox.cli.common import AsJson, Overrides, RecipeFile, read_recipe, show_outcome

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False,
                  help="Run the pipelines on this machine, or compile them for a cluster.")
Runs = Annotated[Path, typer.Option(help="Where runs are kept.")]


@app.command()
def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    keep_serving: Annotated[bool, typer.Option(help="Leave the store and the model running.")] = False,
    fresh: Annotated[bool, typer.Option(help="Run every step again, also those that an earlier run finished.")] = False,
    tiny: Annotated[bool, typer.Option(help="The recipe's own settings on tiny models and data.")] = False,
) -> None:
    """Run detox-and-serve whole on this machine. Exit code 3: the model did not pass the gate."""
    settings = read_recipe(recipe, overrides)
    if tiny:
        from llm_detox.rehearsal.run import rehearsal_of

        settings = rehearsal_of(settings)
    from pipelines.local import run_locally
    from pipelines.run_summary import show_summary

    outcome = run_locally(settings, runs=runs, keep_serving=keep_serving, fresh=fresh)
    show_summary(outcome, keep_serving=keep_serving)


@app.command("submit")
def submit_run(
    recipe: RecipeFile,
    host: Annotated[str, typer.Option(envvar="LLM_DETOX_PIPELINE_HOST", help="The pipeline server's URL.")],
    overrides: Overrides = None,
    pipeline: Annotated[str, typer.Option(help="detox-and-serve, evaluate-only, train-judge or promote.")
                        ] = "detox-and-serve",
    parameter: Annotated[list[str] | None, typer.Option(
        help="name=value, of the pipeline's other parameters: shards=4, overrides=seed=7 (repeat the option for more), "
             "address=s3://... for promote.")] = None,
    token_file: Annotated[Path | None, typer.Option(
        help="A file with the token; else $LLM_DETOX_PIPELINE_TOKEN, else the pod's own.")] = None,
    ca: Annotated[Path | None, typer.Option(help="PEM file of the authority that signed the certificate.")] = None,
    namespace: Annotated[str | None, typer.Option(help="For multi-user servers.")] = None,
    experiment: Annotated[str, typer.Option(help="What the run is filed under.")] = "llm-detox",
    placement: Annotated[Path | None, typer.Option(help="Used instead of pipelines/placement.yaml.")] = None,
    fresh: Annotated[bool, typer.Option(help="Run every step again, also those that an earlier run finished.")] = False,
    wait: Annotated[bool, typer.Option(help="Show the steps until the run has ended.")] = True,
    timeout: Annotated[float, typer.Option(help="Seconds to wait.")] = 86400.0,
    as_json: AsJson = False,
) -> None:
    """Run a pipeline in a cluster. Exit code 3: the model did not pass the gate."""
    settings = read_recipe(recipe, overrides)
    from pipelines.placement import DEFAULT, Placement
    from pipelines.submit import PipelineServer, submit

    result = submit(settings, PipelineServer(host, token_file, ca, namespace), experiment=experiment, wait=wait,
                    pipeline=pipeline, parameters=parameter or (), placement=Placement.load(placement or DEFAULT),
                    fresh=fresh, timeout_seconds=timeout)
    show_outcome(result, None, as_json)


@app.command()
def stop(recipe: RecipeFile, overrides: Overrides = None, runs: Runs = Path("runs")) -> None:
    """End what `run --keep-serving` left running."""
    settings = read_recipe(recipe, overrides)
    from pipelines.local import stop_run

    stop_run(runs, settings.name)


@app.command("compile")
def compile_pipelines(
    check: Annotated[bool, typer.Option(help="Write nothing; fail if the committed YAML is not current.")] = False,
) -> None:
    """Write pipelines/compiled/*.yaml."""
    from llm_detox.errors import DetoxError
    from pipelines.compile import COMPILED, compile_all

    if not check:
        for path in compile_all():
            print(f"written {path}")
        return
    with tempfile.TemporaryDirectory() as folder:
        for path in compile_all(Path(folder)):
            committed = COMPILED / path.name
            if not committed.exists() or not filecmp.cmp(path, committed, shallow=False):
                raise DetoxError("the compiled pipeline is not current", place=str(committed),
                                 remedy="python -m pipelines compile")
    print("the compiled pipelines are current")


if __name__ == "__main__":
    run_app(app)
