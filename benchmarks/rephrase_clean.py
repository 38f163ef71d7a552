"""How much clean text the recipe's chain changes or drops, and how much toxic text its gate lets pass.

    python -m benchmarks.rephrase_clean --recipe recipes/smollm2-demo.yaml --prompts ../shared/data/rtp_dev.jsonl

The texts are prompts and continuations of RealToxicityPrompts, clean below 0.2 and toxic from 0.5 on by the Perspective
scores stored with them. Toxic ones only pass the gate; clean ones go through the whole chain. Exit code 1 where more
than one clean text in a hundred is not what it was.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from llm_detox.recipe.files import load_recipe
from llm_detox.rephrase.build import MethodFactory

CLEAN_BELOW, TOXIC_FROM = 0.2, 0.5
MOST_CHANGED = 0.01
FEWEST_WORDS = 4


def main() -> int:
    options = parsed()
    recipe = load_recipe(options.recipe, options.set)
    found = list(scored_texts(options.prompts))
    clean = [text for text, toxicity in found if toxicity < CLEAN_BELOW][:options.sentences]
    toxic = [text for text, toxicity in found if toxicity >= TOXIC_FROM][:options.sentences]
    workshop = MethodFactory(recipe)
    records = workshop.chain.run([{"id": str(i), "text": text} for i, text in enumerate(clean)])
    actions = Counter(record["action"] for record in records)
    changed = sum(record["text"] != text for record, text in zip(records, clean, strict=True)) / len(clean)
    threshold = recipe.detoxify.toxic_threshold
    seen = sum(score is None or score >= threshold for score in workshop.scorer.score(toxic)) / len(toxic)
    print(f"{len(clean)} clean texts: {actions['kept']} kept, {actions['rewritten']} rewritten, "
          f"{actions['dropped']} dropped; changed {changed:.2%}")
    print(f"{len(toxic)} toxic texts: the gate finds {seen:.1%}")
    if options.show:
        for record in records:
            if record["action"] != "kept":
                print(json.dumps({name: record[name] for name in ("original", "text", "action", "scores")}))
    return 0 if changed <= MOST_CHANGED else 1


def scored_texts(path: Path) -> Iterator[tuple[str, float]]:
    """(text, its toxicity by Perspective) of prompts and continuations, each text once."""
    seen = set()
    for line in path.read_text("utf-8").splitlines():
        record = json.loads(line)
        for part in (record["prompt"], record["continuation"]):
            text, toxicity = str(part["text"]).strip(), part.get("toxicity")
            if toxicity is not None and len(text.split()) >= FEWEST_WORDS and text not in seen:
                seen.add(text)
                yield text, float(toxicity)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True, help="RealToxicityPrompts records, JSON lines")
    parser.add_argument("--set", action="append", default=[], help="override of a recipe value")
    parser.add_argument("--sentences", type=int, default=2000, help="of each kind")
    parser.add_argument("--show", action="store_true", help="print what was changed")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
