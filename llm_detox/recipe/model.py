"""The model of a recipe, how far its budget reaches, and what a published source says otherwise."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llm_detox.recipe.base import Section, Source


class ModelSection(Section):
    """The model to detoxify."""

    source: Source


class Translation(Section):
    """A value of the published source that cannot be taken over as it is. Told whenever the recipe trains."""

    source: str = Field(description="what the source says")
    here: str = Field(description="what stands for it in this recipe")
    reason: str = Field(description="why")


class BudgetSection(Section):
    """Sizes follow a quick measurement of the machine: slower ones get fewer records."""

    scale: Literal["auto"] | Annotated[float, Field(gt=0, le=1)] = Field(
        "auto", description="of the counts of texts, prompts and clean passages; auto: measured")
    reference_gflops: Annotated[float, Field(gt=0)] = Field(
        100, description="float32 rate that the full sizes are meant for")
    smallest_scale: Annotated[float, Field(gt=0, le=1)] = Field(0.5, description="of auto")
