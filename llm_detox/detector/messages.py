"""The detector API of the FMS Guardrails Orchestrator, as far as it is spoken here: `POST /api/v1/text/contents`.

Written after the orchestrator's client (foundation-model-stack/fms-guardrails-orchestrator, May 2026): what it sends,
and what it reads of an answer. Parameters of other detectors are let pass, misspelled ones of this are not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

MOST_CONTENTS, LONGEST_CONTENT = 256, 100_000  # contents of a request; characters of each

_HALF = re.compile("[\ud800-\udfff]")
_ALIKE = 0.8  # of a misspelled name and the one that is meant
Threshold = Annotated[float, Field(gt=0, le=1, strict=True)]


class DetectorParams(BaseModel):
    """What a request may ask of a detector."""

    threshold: Threshold | None = Field(
        None, description="Detections that score less are left out. The orchestrator keeps this one to itself and "
                          "applies it to what the detector answers.")
    thresholds: dict[str, Threshold] = Field(
        {}, description="Detection -> threshold, for detections beside the detector's own.")
    rewrite: Annotated[bool, Field(strict=True)] = Field(
        False, description="Each detection has an acceptable version of its text in its metadata.")


    @model_validator(mode="before")
    @classmethod
    def _no_misspelled_names(cls, value: Any) -> Any:
        names = [name for name in value if isinstance(name, str)] if isinstance(value, dict) else []
        for name in names:
            if name not in cls.model_fields and (meant := get_close_matches(name, cls.model_fields, 1, _ALIKE)):
                raise ValueError(f"there is no such parameter; is {meant[0]} meant?")
        return value


def _readable(text: str) -> str:
    if len(text) > LONGEST_CONTENT:
        raise ValueError(f"a content has at most {LONGEST_CONTENT} characters")
    if _HALF.search(text):
        raise ValueError("half a surrogate pair is no text in unicode")
    return text


class ContentsRequest(BaseModel):
    """Texts to be looked at: prompts, answers, or chunks of either."""

    contents: list[Annotated[str, AfterValidator(_readable)]] = Field(
        max_length=MOST_CONTENTS, description="The answer has a list of detections for each, in this order.")
    detector_params: Annotated[DetectorParams, BeforeValidator(lambda value: {} if value is None else value)] = Field(
        default_factory=DetectorParams)


class ContentDetection(BaseModel):
    """A part of a content. Offsets count code points: `content[start:end] == text` in Python."""

    start: int = Field(ge=0)
    end: int = Field(ge=0)
    text: str
    detection: str
    detection_type: str
    score: float = Field(ge=0, le=1)
    metadata: dict[str, Any] = Field({}, description="`rewrite`, `method` and `reason`, where rewrites were asked for.")


class ErrorAnswer(BaseModel):
    """What is wrong. The code is the status, as a number: the orchestrator reads nothing else."""

    code: int
    message: str


def problem(errors: Mapping[str, Any]) -> str:
    """One of pydantic's or FastAPI's errors in one line, without the text that it is about."""
    place = ".".join(str(part) for part in errors.get("loc", ()) if part not in ("body", "header"))
    message = str(errors.get("msg", "invalid"))
    return f"{place}: {message}" if place and not place.isdigit() else message
