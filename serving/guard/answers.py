"""Answers of Caikit and of OpenAI-compatible servers as JSON: their texts found, judged, and withheld."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from llm_detox.guard.filter import WITHHELD, Guard, GuardVerdict, judge_whole

# What may stay of an answer whose text is withheld; all else, log probabilities of tokens among it, could tell it.
_CAIKIT_KEEPS = ("generated_tokens", "input_token_count", "seed", "producer_id")
_CHOICE_KEEPS = ("index",)


def judged(answer: Any, guard: Guard) -> dict[str, Any]:
    """The answer with its verdict under `guard`; a text that does not pass is empty, with all that tells of it.

    Args:
        answer: what the model's server answered.
        guard: judges the text alone: a graph hands over the answer, not the request.

    Raises:
        ValueError: no text is found in it. What cannot be read is not let pass.
    """
    if isinstance(answer, dict) and isinstance(answer.get("generated_text"), str):
        verdict = judge_whole(guard, "", answer["generated_text"])
        if verdict.withheld:
            answer = {**_kept(answer, _CAIKIT_KEEPS), "generated_text": "", "finish_reason": WITHHELD}
        return {**answer, "guard": _told(guard, verdict)}
    if isinstance(answer, dict) and isinstance(answer.get("choices"), list) and answer["choices"]:
        return {**answer, "choices": [_choice(choice, guard) for choice in answer["choices"]]}
    raise ValueError("not the answer of a model: it has neither generated_text nor choices")


def _choice(choice: Any, guard: Guard) -> dict[str, Any]:
    text, empty = _text_of(choice)
    verdict = judge_whole(guard, "", text)
    if verdict.withheld:
        choice = {**_kept(choice, _CHOICE_KEEPS), **empty, "finish_reason": "content_filter"}
    return {**choice, "guard": _told(guard, verdict)}


def _text_of(choice: Any) -> tuple[str, dict[str, Any]]:
    """The text of a choice, and what stands in its place where it is withheld."""
    if isinstance(choice, dict) and isinstance(choice.get("text"), str):
        return choice["text"], {"text": ""}
    message = choice.get("message") if isinstance(choice, dict) else None
    if isinstance(message, dict) and isinstance(message.get("content"), str):
        return message["content"], {"message": {"role": "assistant", "content": ""}}
    raise ValueError("a choice without a text")


def _kept(value: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value[name] for name in names if name in value}


def _told(guard: Guard, verdict: GuardVerdict) -> dict[str, Any]:
    return {"name": guard.name, **asdict(verdict)}
