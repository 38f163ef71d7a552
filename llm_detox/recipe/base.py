"""What the sections of a recipe are made of."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
# The type in which a model multiplies, wherever a recipe says `precision`; see `generation.models.resolve_dtype`.
Precision = Literal["auto", "bf16", "float32"]
PRECISION = "`auto` is bf16 on GPUs and float32 on CPUs, `bf16` also on CPUs with AMX, `float32` everywhere."
Source = Annotated[str, Field(min_length=1, description="hub id (owner/name, or owner/name@revision), path, s3:// or package://")]
# A value of the project's own, or of an installed package (`llm_detox.plugins`). Which of them is decided before it is
# checked, so that a mistake is explained once.
OWN, OTHER = "own", "other"
Plugin = Annotated[str, Field(pattern=r"^plugin:[A-Za-z0-9._-]+$"), Tag(OTHER)]


def _whose(value: Any) -> str:
    return OTHER if isinstance(value, str) and value.startswith("plugin:") else OWN


OwnOrPlugin = Discriminator(_whose)


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Table(Section):
    """A file or folder of records, and the column with the text. A plain string is the source."""

    source: Source = Field(
        description="Where the records are: a hub id (`owner/name` or `owner/name@revision`), a path, `s3://` or "
                    "`package://`.")
    text_column: str = Field(
        "text", description="The column that holds the text; dots step into nested records, as in `prompt.text`.")

    @model_validator(mode="before")
    @classmethod
    def _plain_source(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value
