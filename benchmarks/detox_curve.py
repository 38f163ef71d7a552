"""Toxicity against fluency along the way from the SFT adapter to the last arm's: the curve behind one point.

    python -m benchmarks.detox_curve --recipe recipes/smollm2-quality.yaml --quality runs/quality [--shares .4 .7]

Goes on from the output folder of `benchmarks.detox_quality`, whose base and last arm are the curve's ends, with its
prompts, seeds and number of continuations. A point is an adapter whose every weight lies at that share of the way
(Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", eq. 1, for adapters). Prints a table of shares of the
base's figures and writes the figures with their intervals to `curve.json`. What is measured already is read again.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from benchmarks.detox_quality import ROWS, measure, number
from llm_detox.recipe.files import load_recipe
from llm_detox.runs.artifacts import BASE, DPO, TrainedFolder, plain
from llm_detox.runs.folders import MANIFEST

_WEIGHTS = TrainedFolder.adapter_weights


def between(start: Path, end: Path, share: float, output: Path) -> Path:
    """An adapter folder whose weights are (1 - share) * start + share * end."""
    shutil.copytree(end, output, ignore=shutil.ignore_patterns(MANIFEST, _WEIGHTS), dirs_exist_ok=True)
    first, last = load_file(start / _WEIGHTS), load_file(end / _WEIGHTS)
    save_file({name: (1 - share) * first[name] + share * last[name] for name in last}, output / _WEIGHTS)
    return output


def main() -> None:
    """Measure the points, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--quality", type=Path, required=True, help="output folder of benchmarks.detox_quality")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.4, 0.7])
    parser.add_argument("--continuations", type=int, default=25)
    options = parser.parse_args()
    recipe = load_recipe(options.recipe, [f"evaluation.continuations={options.continuations}"])
    root: Path = options.quality
    points = {f"{share:g}": between(root / "sft", root / DPO, share, root / f"adapter-{share:g}")
              for share in options.shares}
    models = {BASE: recipe.model.source, **{name: str(folder) for name, folder in points.items()},
              DPO: str(root / DPO)}
    measured = {name: measure(recipe, root, model=model, arm=name, output=root / f"evaluation-{name}")
             for name, model in models.items()}
    print("| share of the way | " + " | ".join(ROWS) + " |\n|" + "---|" * (len(ROWS) + 1))
    for name, result in measured.items():
        shares = (number(result, row) / number(measured[BASE], row) for row in ROWS)
        print(f"| {name} | " + " | ".join(f"{share:.3f}" for share in shares) + " |")
    (root / "curve.json").write_text(json.dumps(plain(measured), indent=1), "utf-8")


if __name__ == "__main__":
    main()
