"""Caikit over REST; streams come as server-sent events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from llm_detox.client.http import Body
from llm_detox.client.types import Chunk, Generation, Parameters, Prompt, Token

_UNARY, _STREAM = "/api/v1/task/text-generation", "/api/v1/task/server-streaming-text-generation"


class CaikitRest:
    """`POST /api/v1/task/text-generation` and its streaming twin."""

    name = "a Caikit server"
    takes_messages = False
    codes: Mapping[int, str] = MappingProxyType({501: "UNAVAILABLE"})  # Caikit turns UNAVAILABLE into 501

    def request(self, model_id: str, prompt: Prompt, parameters: Parameters, *, stream: bool) -> tuple[str, Body]:
        given = parameters.given()
        if "exponential_decay_length_penalty" in given:
            start, factor = given["exponential_decay_length_penalty"]
            given["exponential_decay_length_penalty"] = {"start_index": start, "decay_factor": factor}
        if "stop_sequences" in given:
            given["stop_sequences"] = list(given["stop_sequences"])
        return _STREAM if stream else _UNARY, {"model_id": model_id, "inputs": prompt, "parameters": given}

    def generation(self, value: Body) -> Generation:
        return Generation(
            text=str(value["generated_text"]), generated_tokens=int(value["generated_tokens"]),
            finish_reason=str(value["finish_reason"]), input_token_count=int(value["input_token_count"]),
            seed=value.get("seed") or None, tokens=_tokens(value.get("tokens")),
            input_tokens=_tokens(value.get("input_tokens")))

    def fault(self, kind: str, value: Body) -> int | None:
        return int(value.get("code") or 500) if kind == "error" or "generated_text" not in value else None

    def reader(self) -> CaikitRest:
        return self

    def read(self, value: Body) -> Iterator[Chunk]:
        details = value.get("details") or {}
        yield Chunk(
            text=value.get("generated_text") or "", generated_tokens=details.get("generated_tokens") or 0,
            finish_reason=details.get("finish_reason") or "NOT_FINISHED",
            input_token_count=details.get("input_token_count") or 0, seed=details.get("seed") or None,
            tokens=_tokens(value.get("tokens")), input_tokens=_tokens(value.get("input_tokens")))

    def end(self) -> Iterator[Chunk]:
        """Every event is a chunk of its own."""
        return iter(())


def _tokens(values: list[dict[str, Any]] | None) -> tuple[Token, ...]:
    return tuple(Token(one.get("text") or "", one.get("logprob"), one.get("rank") or None) for one in values or ())
