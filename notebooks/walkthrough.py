"""What the notebooks share: a recipe at a size, the folder that a walk-through fills, and the store that it uses."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[1]
SIZES = ("tiny", "small", "full")
_LATEST, _RECIPE = "latest", "recipe.json"

# Of a size at most so much of what the recipe has.
_SMALL = {
    "data.texts.count": 80, "data.prompts.evaluation_count": 32, "data.prompts.training_count": 60,
    "data.clean.count": 40, "data.clean.training_count": 24, "training.sft.max_steps": 40,
    "training.dpo.samples_per_prompt": 4, "training.dpo.max_pairs": 80, "training.dpo.rewrite_pairs": 12,
    "training.dpo.anchor_samples": 20, "evaluation.continuations": 4, "evaluation.clean_prompts": 40,
    "evaluation.clean_continuations": 1, "stop_hate.count": 40,
}
_TINY = {
    "data.texts.count": 16, "data.prompts.evaluation_count": 6, "data.prompts.training_count": 6,
    "data.clean.count": 4, "data.clean.training_count": 4, "training.sft.epochs": 1, "training.sft.max_steps": 4,
    "training.dpo.epochs": 1, "training.dpo.samples_per_prompt": 3, "training.dpo.max_pairs": 8,
    "training.dpo.rewrite_pairs": 4, "training.dpo.anchor_samples": 4, "evaluation.continuations": 2,
    "evaluation.clean_prompts": 2, "evaluation.clean_continuations": 1, "evaluation.bootstrap_samples": 200,
    "stop_hate.count": 4, "deploy.max_new_tokens": 8,
}
# Figures of random weights mean nothing, so no model would pass, and the way to a served one could not be shown.
_TINY_GATE = {
    "training.dpo.margin": 0.0, "gate.metrics": [], "gate.max_perplexity_ratio": 1000.0, "gate.min_prompts": 1,
    "gate.max_continuation_perplexity_ratio": None, "gate.min_distinct_ratio": None, "gate.max_clean_refusals": None,
    "gate.max_unscored_share": 1.0, "scoring.others": [],
}


class Step(NamedTuple):
    """A finished step: its folder, what it found, and how long it took."""

    folder: Path
    result: dict[str, Any]
    seconds: float


def runs() -> Path:
    """Where the notebooks keep what they make: `runs/notebooks`, or $LLM_DETOX_NOTEBOOK_RUNS."""
    return Path(os.environ.get("LLM_DETOX_NOTEBOOK_RUNS", "runs/notebooks"))


def recipe_at(name: str, size: str, settings: Sequence[str] = ()) -> Any:
    """The recipe `recipes/NAME.yaml` at a size.

    Args:
        name: of the recipe.
        size: `full`, the recipe as it is; `small`, the same models on a part of the data; `tiny`, random models of the
            same kinds on a few made-up sentences, whose figures mean nothing.
        settings: `dotted.key=value` each, as `--set` of the command line; they go before the size.

    Raises:
        UsageError: there is no such size or recipe, a setting is wrong, or the recipe trains a judge.
    """
    _settle_in()
    from llm_detox.errors import UsageError
    from llm_detox.recipe.files import check_recipe, load_recipe, resolve_recipe

    if size not in SIZES:
        raise UsageError(f"there is no size {size!r}", place="SIZE", remedy=f"one of {', '.join(SIZES)}")
    recipe = load_recipe(Path("recipes") / f"{name}.yaml", settings)
    if recipe.judge.adversarial:
        raise UsageError("this recipe trains a judge of answers; it has no arms to compare", place=name,
                         remedy=f"its own commands stand at the top of recipes/{name}.yaml")
    if size == "full":
        return recipe
    if size == "tiny":
        from llm_detox.rehearsal.run import rehearsal_of

        recipe = rehearsal_of(recipe)
    values = recipe.model_dump(mode="json")
    values |= {"name": f"{name}-{size}"}
    values["budget"]["scale"] = 1.0
    for key, most in (_TINY if size == "tiny" else _SMALL).items():
        section, last = _section(values, key)
        section[last] = section[last] and min(section[last], most)
    for key, value in (_TINY_GATE if size == "tiny" else {}).items():
        section, last = _section(values, key)
        section[last] = value
    if size == "tiny":  # its sources are made up; a setting that names another is in them already
        return check_recipe(values, name)
    return resolve_recipe(json.dumps(values), overrides=settings)


def begin(name: str, size: str, settings: Sequence[str] = ()) -> Walk:
    """Begin a walk-through, or go on with the one of this very recipe; the later notebooks go on with the last begun.

    Raises:
        UsageError: see `recipe_at`.
    """
    recipe = recipe_at(name, size, settings)
    from llm_detox.runs.folders import digest_of

    folder = runs() / f"{recipe.name}-{digest_of(recipe.model_dump(mode='json'))[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _RECIPE).write_text(recipe.model_dump_json(indent=2), "utf-8")
    (runs() / _LATEST).write_text(folder.name, "utf-8")
    return Walk(recipe, folder)


def go_on() -> Walk:
    """The walk-through that `1-sft.ipynb` began last.

    Raises:
        UsageError: there is none.
    """
    _settle_in()
    from llm_detox.errors import UsageError
    from llm_detox.recipe.files import resolve_recipe

    try:
        folder = runs() / (runs() / _LATEST).read_text("utf-8").strip()
        recipe = resolve_recipe((folder / _RECIPE).read_text("utf-8"))
    except OSError:
        raise UsageError("no walk-through has begun", place=str(runs()),
                         remedy="run 1-sft.ipynb first; this notebook goes on with what it makes") from None
    print(f"going on with {recipe.name} in {folder}")
    return Walk(recipe, folder)


@dataclass(frozen=True)
class Walk:
    """A walk-through: its recipe, and the folder with a folder for each step."""

    recipe: Any
    folder: Path

    def step(self, name: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Step:
        """Do a step with the library's own function, unless its folder is there already.

        Args:
            name: of the step's folder.
            function: is called with the arguments and `output`.
        """
        from llm_detox.progress import human_seconds

        found = (self.folder / name).exists()
        if not found:
            function(*arguments, **options, output=self.folder / name)
        done = self._read(name)
        print(f"{name}: {'found from an earlier run' if found else human_seconds(done.seconds)} ({done.folder})")
        return done

    def needs(self, name: str, notebook: str) -> Step:
        """A step that another notebook does.

        Raises:
            UsageError: that notebook has not come so far.
        """
        from llm_detox.errors import UsageError

        if not (self.folder / name).exists():
            raise UsageError(f"the step {name!r} is not done yet", place=str(self.folder),
                             remedy=f"run {notebook} to its end, then this notebook from its top")
        return self._read(name)

    def seconds(self) -> dict[str, float]:
        """How long each finished step took, in the order in which they ended."""
        made = sorted(self.folder.glob("*/manifest.json"), key=lambda path: path.stat().st_mtime)
        return {path.parent.name: json.loads(path.read_text("utf-8"))["seconds"] for path in made}

    def note(self, name: str, value: dict[str, Any]) -> None:
        """Keep a few values for a later notebook."""
        (self.folder / f"{name}.json").write_text(json.dumps(value, indent=2), "utf-8")

    def noted(self, name: str, notebook: str) -> dict[str, Any]:
        """What another notebook noted.

        Raises:
            UsageError: that notebook has not come so far.
        """
        from llm_detox.errors import UsageError

        try:
            value: dict[str, Any] = json.loads((self.folder / f"{name}.json").read_text("utf-8"))
        except OSError:
            raise UsageError(f"nothing is {name} yet", place=str(self.folder),
                             remedy=f"run {notebook} to its end, then this notebook from its top") from None
        return value

    @contextmanager
    def store(self) -> Iterator[str]:
        """An S3 store for the length of a `with` block; gives the URL below which this walk-through publishes.

        It is the one of the environment (AWS_S3_ENDPOINT, AWS_S3_BUCKET, ..., as a data connection sets them), else a
        SeaweedFS on loopback, whose data stays in the runs' folder.
        """
        from llm_detox.errors import DetoxError, without_logins
        from llm_detox.processes import environment
        from llm_detox.storage.s3 import endpoint_of
        from llm_detox.storage.seaweed import Seaweed

        bucket = urlsplit(self.recipe.publish.url).netloc
        if endpoint := endpoint_of():
            print(f"S3 store of the environment: {without_logins(endpoint)}")
            yield f"s3://{os.environ.get('AWS_S3_BUCKET') or bucket}/notebooks/{self.folder.name}"
            return
        folder = self.folder.parent / "store"
        try:
            here = Seaweed.attach(folder)  # of a notebook that was killed
        except DetoxError:
            here = Seaweed.start(folder, buckets=[bucket])
        print(f"S3 store: SeaweedFS on this machine, {here.endpoint}")
        try:
            with environment(here.env()):
                yield f"s3://{bucket}/notebooks/{self.folder.name}"
        finally:
            here.stop()

    def _read(self, name: str) -> Step:
        from llm_detox.runs.folders import read_manifest

        manifest = read_manifest(self.folder / name)
        return Step(self.folder / name, manifest["result"], float(manifest["seconds"]))


def _settle_in() -> None:
    """Paths are those of the checkout, progress is shown as plain text, and the libraries' own bars are off."""
    os.chdir(ROOT)
    sys.path[:] = dict.fromkeys([str(ROOT / "notebooks"), str(ROOT), *sys.path])  # a kernel's is where it stands
    sys.stderr = sys.stdout  # notebooks paint the other one red, as if progress were an error
    # What libraries will rename one day is no concern of who reads a notebook, nor of the steps' processes.
    warnings.simplefilter("ignore", FutureWarning)
    warnings.filterwarnings("ignore", message="IProgress not found")
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")
    from llm_detox.progress import one_voice

    one_voice()


def _section(values: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    *path, last = key.split(".")
    for name in path:
        values = values[name]
    return values, last
