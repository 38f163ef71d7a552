"""The schema of a recipe: one experiment from its data to the served model. The only place where defaults live; each
section has a file of its own.

A recipe is read once, checked as a whole and passed on as a value. See `recipes/` for examples and
`llm-detox recipe show` for a recipe with every default filled in.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from llm_detox.recipe.addresses import OCI
from llm_detox.recipe.base import Section
from llm_detox.recipe.cluster import ConnectionSection
from llm_detox.recipe.data import BudgetSection, DataSection, ModelSection, Translation
from llm_detox.recipe.deploy import DeploySection, PublishSection
from llm_detox.recipe.evaluation import EvaluationSection, GateSection, TrackingSection
from llm_detox.recipe.judge import JudgeSection, StopHateSection
from llm_detox.recipe.rephrase import DetoxifySection, RephraserTrainingSection
from llm_detox.recipe.scorers import ScoringSection
from llm_detox.recipe.training import TrainingSection

_MOVED_TO_CLUSTER = ("s3_secret", "hub_secret", "ca_config_map")


class Recipe(Section):
    """One experiment."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="The name of runs, folders and reports.")
    description: str = Field("", description="What the experiment is, for people.")
    translations: list[Translation] = Field(
        [], description="Values of the published source that this recipe could not take over.")
    seed: int = Field(42, ge=0, description="The seed of everything that is random.")
    model: ModelSection
    data: DataSection
    budget: BudgetSection = BudgetSection()
    scoring: ScoringSection
    detoxify: DetoxifySection = DetoxifySection()
    rephraser_training: RephraserTrainingSection = RephraserTrainingSection()
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()
    gate: GateSection = GateSection()
    tracking: TrackingSection = TrackingSection()
    judge: JudgeSection = JudgeSection()
    stop_hate: StopHateSection = StopHateSection()
    publish: PublishSection = PublishSection()
    deploy: DeploySection = DeploySection()
    cluster: ConnectionSection = ConnectionSection()

    @model_validator(mode="before")
    @classmethod
    def _earlier_keys(cls, values: Any) -> Any:
        """Recipes of before name the connection in `training.job`."""
        try:
            job, cluster = values["training"]["job"], values.get("cluster", {})
        except (KeyError, TypeError):
            return values
        if not isinstance(job, dict) or not isinstance(cluster, dict):
            return values
        moved = {key: job[key] for key in _MOVED_TO_CLUSTER if key in job}
        if both := [key for key in moved if key in cluster and cluster[key] != moved[key]]:
            raise ValueError(f"training.job.{both[0]} and cluster.{both[0]} differ; keep cluster.{both[0]}")
        kept = {key: value for key, value in job.items() if key not in moved}
        return {**values, "training": {**values["training"], "job": kept}, "cluster": {**moved, **cluster}}

    @model_validator(mode="after")
    def _a_judge_where_one_is_asked(self) -> Recipe:
        if self.evaluation.judged_prompts and self.judge.reader.model is None:
            raise ValueError("evaluation.judged_prompts needs judge.reader.model")
        if self.gate.max_unsafe_share is not None and not self.evaluation.judged_prompts:
            raise ValueError("gate.max_unsafe_share needs evaluation.judged_prompts")
        return self

    @model_validator(mode="after")
    def _a_store_where_nodes_need_one(self) -> Recipe:
        if self.training.job.nodes > 1 and self.publish.url.startswith(OCI):
            raise ValueError("training on several nodes hands its files on in S3: training.job.nodes above 1 needs "
                             "publish.url to be s3://bucket/prefix")
        return self

    def settings(self, *sections: str) -> dict[str, Any]:
        """The named sections and the seed as plain values: what decides a step's outcome."""
        whole = self.model_dump(mode="json")
        return {"seed": self.seed, **{name: whole[name] for name in sections}}
