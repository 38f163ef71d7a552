"""What the sections of a recipe are made of."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from llm_detox.recipe.addresses import check_source

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
# The type in which a model multiplies, wherever a recipe says `precision`; see `generation.models.resolve_dtype`.
Precision = Literal["auto", "bf16", "float32"]
PRECISION = "`auto` is bf16 on GPUs and float32 on CPUs, `bf16` also on CPUs with AMX, `float32` everywhere."
Source = Annotated[str, AfterValidator(check_source), Field(
    min_length=1, description="hub id (owner/name, or owner/name@revision), path, s3:// or package://")]
_LARGEST = 2**31 - 1
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
# A value of the project's own, or of an installed package (`llm_detox.plugins`). Which of them is decided before it is
# checked, so that a mistake is explained once.
OWN, OTHER = "own", "other"
Plugin = Annotated[str, Field(pattern=r"^plugin:[A-Za-z0-9._-]+$"), Tag(OTHER)]


def _whose(value: Any) -> str:
    return OTHER if isinstance(value, str) and value.startswith("plugin:") else OWN


OwnOrPlugin = Discriminator(_whose)


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, values do not change.

    No number is infinite or made of a yes or no, and no text holds control characters.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _of_its_kind(cls, value: Any, info: ValidationInfo) -> Any:
        _refuse_other_kinds(value, set(types_in(cls.model_fields[str(info.field_name)].annotation)))
        return value


def types_in(annotation: Any) -> list[type]:
    """Every class named in an annotation, `list[Table]` and unions included."""
    if isinstance(annotation, type) and not get_args(annotation):
        return [annotation]
    return [kind for part in get_args(annotation) for kind in types_in(part)]


def _refuse_other_kinds(value: Any, kinds: set[type]) -> None:
    """Refuse what pydantic would turn into a value of a field's kinds, or what no step can use.

    Raises:
        ValueError: it is such a value, or holds one.
    """
    if isinstance(value, list | tuple):
        for one in value:
            _refuse_other_kinds(one, kinds)
    elif isinstance(value, bool):
        if kinds & {int, float} and bool not in kinds:
            raise ValueError("a number is needed, not a yes or no")
    elif isinstance(value, bytes):
        raise ValueError("text is needed, not bytes")
    elif isinstance(value, int) and abs(value) > _LARGEST:
        raise ValueError(f"a number of at most {_LARGEST} is needed")
    elif isinstance(value, str) and _CONTROL.search(value):
        raise ValueError("a text without control characters is needed")


class Rows(Section):
    """Records of a file or folder. A plain string is the source."""

    source: Source = Field(
        description="Where the records are: a hub id (`owner/name` or `owner/name@revision`), a path, `s3://` or "
                    "`package://`.")
    files: str | None = Field(
        None,
        description="Which files of a folder count, as a pattern of their names: `'test*.csv'`; with `null` all that "
                    "hold tables.")
    where: dict[str, str] = Field({}, description="Only records with these values in these columns are used.")

    @model_validator(mode="before")
    @classmethod
    def _plain_source(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value


class Table(Rows):
    """Records with a column of text. A plain string is the source."""

    text_column: str = Field(
        "text", description="The column that holds the text; dots step into nested records, as in `prompt.text`.")
