"""Toxicity against fluency along the way from the SFT adapter to the last arm's: the curve behind one point.

    python -m benchmarks.detox_curve --recipe recipes/smollm2-quality.yaml --quality runs/quality [--shares .4 .7]

Goes on from the output folder of `benchmarks.detox_quality`, whose base and last arm are the curve's ends, with its
prompts, seeds and number of continuations. A point is a model whose every weight lies at that share of the way
(Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", eq. 1). Prints a table of shares of the base's figures
and writes the figures with their intervals to `curve.json`. What is measured already is read again.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.detox_quality import ROWS, measure, number
from llm_detox.recipe.files import load_recipe
from llm_detox.runs.artifacts import BASE, DPO, TrainedFolder, plain
from llm_detox.runs.folders import MANIFEST


def between(start: Path, end: Path, share: float, output: Path) -> Path:
    """An adapter folder that changes the base by (1 - share) of what `start` does and `share` of what `end` does.

    What an adapter adds to a layer is a product, B A. Between the factors of two adapters lies another product than
    between their products; the sum of two products is one of twice the rank, (1 - share) B1 A1 + share B2 A2.
    """
    shutil.copytree(end, output, ignore=shutil.ignore_patterns(MANIFEST), dirs_exist_ok=True)
    before, after, outcome = TrainedFolder(start), TrainedFolder(end), TrainedFolder(output)
    first, last = load_file(before.adapter_weights), load_file(after.adapter_weights)
    save_file({name: _beside(name, first[name], last[name], share) for name in last}, outcome.adapter_weights)
    config = json.loads(after.adapter_config.read_text("utf-8"))
    config |= {name: 2 * config[name] for name in ("r", "lora_alpha")}  # B A is scaled by alpha / r
    outcome.adapter_config.write_text(json.dumps(config, indent=2), "utf-8")
    return output


def _beside(name: str, first: Tensor, last: Tensor, share: float) -> Tensor:
    """The factors of two adapters side by side; B has the weights."""
    if ".lora_A." in name:
        return torch.cat([first, last], dim=0)
    return torch.cat([(1 - share) * first, share * last], dim=1)


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
