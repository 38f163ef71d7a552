"""The model of a recipe, how far its budget reaches, and what a published source says otherwise."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llm_detox.recipe.base import Section, Source


class ModelSection(Section):
    """The model to detoxify."""

    source: Source = Field(
        description="The model to detoxify: a hub id (`owner/name` or `owner/name@revision`), a path, `s3://` or "
                    "`package://`.")


class Translation(Section):
    """A value of the published source that cannot be used as it is. Training prints it."""

    source: str = Field(description="What the source says.")
    here: str = Field(description="What this recipe says instead.")
    reason: str = Field(description="Why it cannot be the same.")


class BudgetSection(Section):
    """A quick measurement of the machine decides the sizes: slower machines get fewer records."""

    scale: Literal["auto"] | Annotated[float, Field(gt=0, le=1)] = Field(
        "auto", description="The share of texts, prompts and clean passages that is used; `auto` measures the machine.")
    reference_gflops: Annotated[float, Field(gt=0)] = Field(
        100, description="The float32 rate, in GFLOP/s, of a machine that runs the full sizes.")
    smallest_scale: Annotated[float, Field(gt=0, le=1)] = Field(0.5, description="The least share that `auto` chooses.")
