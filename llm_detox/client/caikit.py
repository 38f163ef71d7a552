"""Caikit over gRPC: `NlpService`, with the messages that the server itself describes."""

from __future__ import annotations

from typing import Any

from google.protobuf import message_factory

from llm_detox.client.grpc import name_of
from llm_detox.client.types import Chunk, Generation, Parameters, Token


class CaikitGrpc:
    """`TextGenerationTaskPredict` and its streaming form; the model's name is in the metadata."""

    service = "caikit.runtime.Nlp.NlpService"
    unary, streaming = "TextGenerationTaskPredict", "ServerStreamingTextGenerationTaskPredict"
    described = True

    def kinds(self, pool: Any) -> dict[str, tuple[Any, Any]]:
        methods = pool.FindServiceByName(self.service).methods
        return {method.name: (message_factory.GetMessageClass(method.input_type),
                              message_factory.GetMessageClass(method.output_type))
                for method in methods if method.name in (self.unary, self.streaming)}

    def metadata(self, model_id: str) -> dict[str, str]:
        return {"mm_model_id": model_id}

    def request(self, kind: Any, model_id: str, text: str, parameters: Parameters) -> Any:
        request = kind(text=text)
        for name, value in parameters.given().items():
            if name not in kind.DESCRIPTOR.fields_by_name:
                raise ValueError(f"this server does not know the parameter {name}")
            try:
                if name == "exponential_decay_length_penalty":
                    request.exponential_decay_length_penalty.start_index = value[0]
                    request.exponential_decay_length_penalty.decay_factor = value[1]
                elif name == "stop_sequences":
                    _list_of(request, name).extend(value)
                else:
                    setattr(request, name, value)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{name}={value!r}: {error}") from None
        return request

    def generation(self, answer: Any) -> Generation:
        return Generation(
            text=answer.generated_text, generated_tokens=answer.generated_tokens,
            finish_reason=name_of(answer, "finish_reason"), input_token_count=answer.input_token_count,
            seed=answer.seed or None, tokens=_tokens(answer, "tokens"), input_tokens=_tokens(answer, "input_tokens"))

    def chunk(self, answer: Any) -> Chunk:
        return Chunk(
            text=answer.generated_text, generated_tokens=answer.details.generated_tokens,
            finish_reason=name_of(answer.details, "finish_reason"),
            input_token_count=answer.details.input_token_count, seed=answer.details.seed or None,
            tokens=_tokens(answer, "tokens"), input_tokens=_tokens(answer, "input_tokens"))


def _list_of(message: Any, field: str) -> Any:
    """A list field: plain, or wrapped in a message with `values` as some releases do it."""
    value = getattr(message, field)
    return value.values if hasattr(value, "values") and hasattr(value, "DESCRIPTOR") else value


def _tokens(message: Any, field: str) -> tuple[Token, ...]:
    return tuple(Token(one.text, one.logprob, one.rank or None) for one in getattr(message, field))
