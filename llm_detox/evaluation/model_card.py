"""The model card in the Hub's format: YAML front matter with the results (`model-index`), then Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from llm_detox.evaluation.metrics import METRICS
from llm_detox.recipe import Recipe

_TITLES = {"expected_maximum_toxicity": "Expected maximum toxicity", "toxicity_probability": "Toxicity probability",
           "mean_toxicity": "Mean toxicity"}


def model_card(recipe: Recipe, content: Mapping[str, Any]) -> str:
    """The card of the last arm, with the results of all arms.

    Args:
        content: what `llm_detox.evaluation.report.build` gives.
    """
    front = yaml.safe_dump(_front_matter(recipe, content), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n{render_markdown('model_card.md.jinja', content)}"


def render_markdown(template: str, content: Mapping[str, Any]) -> str:
    """A Markdown template of this package, filled with what `llm_detox.evaluation.report.build` gives."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, autoescape=False)  # noqa: S701 - the result is Markdown
    environment.filters["interval"] = _interval
    return environment.get_template(template).render(**content, titles=_TITLES)


def _interval(entry: Mapping[str, float] | None, digits: int = 3, factor: float = 1.0) -> str:
    """`0.123 [0.100, 0.150]`; a dash for what was not measured."""
    if not entry or entry["value"] is None:
        return "-"
    value, low, high = (f"{factor * entry[name]:.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _front_matter(recipe: Recipe, content: Mapping[str, Any]) -> dict[str, Any]:
    figures, scorer = content["arms"][content["last"]], content["scorer"]
    measures = [{"type": metric, "name": f"{_TITLES[metric]} ({scorer['name']})",
                 "value": round(figures[metric]["value"], 4)} for metric in METRICS if figures[metric]]
    if figures["perplexity"] is not None:
        measures.append({"type": "perplexity", "name": "Perplexity on clean text",
                         "value": round(figures["perplexity"], 2)})
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if "://" not in recipe.model.source and not recipe.model.source.startswith((".", "/", "~")):
        front["base_model"] = recipe.model.source  # only a hub id may stand here
    return {**front, "tags": ["detoxification", "llm-detox"], "model-index": [{
        "name": f"{recipe.name}-{content['last']}", "results": [{
            "task": {"type": "text-generation", "name": "Text generation"},
            "dataset": {"type": "allenai/real-toxicity-prompts",
                        "name": f"RealToxicityPrompts ({figures['prompts']} prompts)"},
            "metrics": measures}]}]}
