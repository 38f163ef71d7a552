"""The measures of RealToxicityPrompts as a task of lm-evaluation-harness.

Its models continue our prompts, and our scorer, metrics and intervals measure them: on the same continuations the
figures are those of `llm-detox evaluate`, to the last digit. The recipe says how continuations are sampled and scored.

The harness loads this file by its path, beside `toxicity.yaml`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset
from lm_eval.api.task import ConfigurableTask

from llm_detox.errors import UsageError
from llm_detox.evaluation.continuations import SCORED_AT_ONCE, Prompts, score_rows
from llm_detox.evaluation.intervals import Bootstrap, mean_interval
from llm_detox.evaluation.metrics import METRICS, metric_values, prompt_score
from llm_detox.generation.generators import Texts
from llm_detox.recipe.files import PACKAGED_RECIPE, load_recipe
from llm_detox.scoring.load import check_kept_apart, load_scorer

Part = Literal["value", "low", "high"]
RECIPE, PROMPTS = "LLM_DETOX_RECIPE", "LLM_DETOX_PROMPTS"
"""Where `--metadata` names none: jobs of the platform have no such option."""
_UNSCORED = "unscored"
_PARTS: dict[str, Part] = {"": "value", "_low": "low", "_high": "high"}  # the end of a metric's name -> of its interval
_SPLIT = "test"


class OverPrompts:
    """Makes a metric's value, or a bound of its interval, of what all prompts came to; NaN is a prompt without score.

    It is no dataclass: those cannot be made in a file that is loaded by its path.
    """

    def __init__(self, bootstrap: Bootstrap, part: Part) -> None:
        self._bootstrap, self._part = bootstrap, part

    def __repr__(self) -> str:
        return f"{self._part} of the mean over prompts, {self._bootstrap}"

    def __call__(self, values: Sequence[float]) -> float:
        known = np.array([value for value in values if not math.isnan(value)])
        if not len(known):
            return math.nan
        interval = mean_interval(known, self._bootstrap)
        return {"value": interval.value, "low": interval.low, "high": interval.high}[self._part]


class ToxicityTask(ConfigurableTask):  # type: ignore[misc]  # the harness has no types
    """Continuations of the prompts, as many of each as the recipe says, sampled as it says.

    Args:
        config: of the harness; its `metadata` may name `recipe`, a YAML file (else LLM_DETOX_RECIPE, else the recipe of
            the package), and `prompts`, JSON lines as of `llm-detox evaluate` (else LLM_DETOX_PROMPTS).

    Raises:
        DetoxError: no prompts are named, or recipe, prompts or scorer are not usable.
    """

    VERSION = 1.0

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        given = dict((config or {}).get("metadata") or {})
        recipe = given.get("recipe") or os.environ.get(RECIPE)
        prompts = given.get("prompts") or os.environ.get(PROMPTS)
        if not prompts:
            raise UsageError("no prompts are named", place="llm_detox_toxicity",
                             remedy=f"""lm_eval --metadata '{{"prompts": "FILE.jsonl"}}', or set {PROMPTS}""")
        self._recipe = load_recipe(Path(recipe) if recipe else PACKAGED_RECIPE)
        self._prompts = Path(prompts)
        check_kept_apart(self._recipe.scoring)
        self._scorer = load_scorer(self._recipe.scoring.judging)
        super().__init__(config=self._harness_config(given))

    def _harness_config(self, given: dict[str, object]) -> dict[str, object]:
        """What the harness calls the recipe's settings; it writes them into its results."""
        evaluation, scorer = self._recipe.evaluation, self._scorer
        sampling = evaluation.sampling
        known = {"version": self.VERSION, "scorer": scorer.name, "scorer_fingerprint": scorer.fingerprint,
                 "attribute": scorer.attribute, "threshold": evaluation.toxic_threshold, "seed": self._recipe.seed}
        return {
            "task": "llm_detox_toxicity", "output_type": "generate_until", "test_split": _SPLIT, "num_fewshot": 0,
            "repeats": evaluation.continuations, "metadata": {**given, **known},
            # No `top_k` of the model's own: the nucleus alone cuts the distribution off.
            "generation_kwargs": {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p,
                                  "top_k": 0, "max_gen_toks": sampling.max_new_tokens, "until": []},
            "metric_list": [{"metric": name, "aggregation": aggregation, "higher_is_better": False}
                            for name, aggregation in self._aggregations().items()],
            "process_results": "the metrics are made by the task itself"}

    def _aggregations(self) -> dict[str, Callable[[Sequence[float]], float]]:
        bootstrap = Bootstrap.of(self._recipe.evaluation, self._recipe.seed)
        parts = {f"{metric}{end}": OverPrompts(bootstrap, part) for metric in METRICS for end, part in _PARTS.items()}
        return {**parts, _UNSCORED: sum}

    def download(self, *_: object, **__: object) -> None:
        """The prompts' file in place of a data set of the hub."""
        self.dataset = {_SPLIT: Dataset.from_list(
            [{"id": record["id"], "prompt": {"text": record["prompt"]["text"]}} for record in Prompts(self._prompts)])}

    def doc_to_text(self, doc: Mapping[str, Any], *_: object) -> str:
        """The prompt as it is."""
        text: str = doc["prompt"]["text"]
        return text

    def doc_to_target(self, *_: object) -> str:
        """No continuation is the right one."""
        return ""

    def apply_filters(self) -> None:
        """Score all continuations, in batches as `evaluate` does.

        Raises:
            UsageError: the model gives one text for every request of a prompt: it does not sample, or with one seed.
            DetoxError: the scorer is dead.
        """
        rows: list[Texts] = [[str(text) for text in instance.resps] for instance in self.instances]
        if self.config.repeats > 1 and all(len(set(texts)) == 1 for texts in rows):
            raise UsageError(
                f"each prompt has one and the same continuation {self.config.repeats} times", place=self.config.task,
                remedy="let the model sample; a served one may take every request with the same seed: "
                       "--gen_kwargs seed=None")
        at_once = math.ceil(SCORED_AT_ONCE / self.config.repeats)
        for first in range(0, len(rows), at_once):
            scores = score_rows(self._scorer, rows[first:first + at_once])
            for instance, some in zip(self.instances[first:first + at_once], scores, strict=True):
                instance.filtered_resps["none"] = [one[self._scorer.attribute] if one else None for one in some]

    def process_results(self, doc: Mapping[str, Any], results: Sequence[Sequence[float | None]]) -> dict[str, float]:
        """What one prompt's continuations came to; NaN where none of them has a score."""
        [scores] = results
        score = prompt_score(scores, self._recipe.evaluation.toxic_threshold)
        values = {metric: float(metric_values([score], metric)[0]) for metric in METRICS}
        return {f"{metric}{end}": value for metric, value in values.items() for end in _PARTS} | {
            _UNSCORED: score.unscored}

