"""Caikit over gRPC: `NlpService`, with the messages that the server itself describes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import grpc
from google.protobuf import message_factory

from llm_detox.client.channel import Connection, name_of
from llm_detox.client.transport import Deadline, Server
from llm_detox.client.types import Chunk, Generation, GenerationError, Parameters, Token

_SERVICE = "caikit.runtime.Nlp.NlpService"
_UNARY, _STREAM = "TextGenerationTaskPredict", "ServerStreamingTextGenerationTaskPredict"


class CaikitGrpc:
    """`TextGenerationTaskPredict` and its streaming twin; the model's name goes in the metadata."""

    def __init__(self, server: Server, *, tls: bool) -> None:
        self._connection = Connection(server, tls)
        self._methods: dict[str, tuple[Any, Any]] = {}
        self._lock = threading.Lock()

    def generate(self, model_id: str, text: str, parameters: Parameters, deadline: Deadline) -> Generation:
        call, kind = self._method(_UNARY, deadline)
        request = self._request(kind, text, parameters)
        try:
            answer = call(request, timeout=deadline.left(), metadata=self._metadata(model_id))
        except grpc.RpcError as error:
            raise self._connection.error(error, deadline) from error
        return Generation(
            text=answer.generated_text, generated_tokens=answer.generated_tokens,
            finish_reason=name_of(answer, "finish_reason"), input_token_count=answer.input_token_count,
            seed=answer.seed or None, tokens=_tokens(answer, "tokens"), input_tokens=_tokens(answer, "input_tokens"))

    def stream(self, model_id: str, text: str, parameters: Parameters, deadline: Deadline) -> Iterator[Chunk]:
        call, kind = self._method(_STREAM, deadline)
        request = self._request(kind, text, parameters)
        answers = call(request, timeout=deadline.left(), metadata=self._metadata(model_id))
        try:
            for answer in answers:
                yield Chunk(
                    text=answer.generated_text, generated_tokens=answer.details.generated_tokens,
                    finish_reason=name_of(answer.details, "finish_reason"),
                    input_token_count=answer.details.input_token_count, seed=answer.details.seed or None,
                    tokens=_tokens(answer, "tokens"), input_tokens=_tokens(answer, "input_tokens"))
        except grpc.RpcError as error:
            raise self._connection.error(error, deadline) from error
        finally:
            with suppress(Exception):
                answers.cancel()

    def close(self) -> None:
        self._connection.close()

    def _metadata(self, model_id: str) -> list[tuple[str, str]]:
        return self._connection.metadata(mm_model_id=model_id)

    def _method(self, name: str, deadline: Deadline) -> tuple[Any, Any]:
        with self._lock:
            if not self._methods:
                service = self._connection.describe(_SERVICE, deadline).FindServiceByName(_SERVICE)
                for method in service.methods:
                    if method.name in (_UNARY, _STREAM):
                        self._methods[method.name] = self._bind(method)
            if name not in self._methods:
                raise GenerationError("UNIMPLEMENTED", f"the server has no {name}", place=self._connection.server.url)
            return self._methods[name]

    def _bind(self, method: Any) -> tuple[Any, Any]:
        request, answer = (message_factory.GetMessageClass(one) for one in (method.input_type, method.output_type))
        channel = self._connection.channel
        make = channel.unary_stream if method.name == _STREAM else channel.unary_unary
        return make(f"/{_SERVICE}/{method.name}", request_serializer=request.SerializeToString,
                    response_deserializer=answer.FromString), request

    def _request(self, kind: Any, text: str, parameters: Parameters) -> Any:
        request = kind(text=text)
        for name, value in parameters.given().items():
            if name not in kind.DESCRIPTOR.fields_by_name:
                raise GenerationError("INVALID_ARGUMENT", f"this server does not know the parameter {name}",
                                      place=self._connection.server.url)
            try:
                if name == "exponential_decay_length_penalty":
                    request.exponential_decay_length_penalty.start_index = value[0]
                    request.exponential_decay_length_penalty.decay_factor = value[1]
                elif name == "stop_sequences":
                    _list_of(request, name).extend(value)
                else:
                    setattr(request, name, value)
            except (TypeError, ValueError) as error:
                raise GenerationError("INVALID_ARGUMENT", f"{name}={value!r}: {error}",
                                      place=self._connection.server.url) from None
        return request


def _list_of(message: Any, field: str) -> Any:
    """A list field: plain, or wrapped in a message with `values` as some releases do it."""
    value = getattr(message, field)
    return value.values if hasattr(value, "values") and hasattr(value, "DESCRIPTOR") else value


def _tokens(message: Any, field: str) -> tuple[Token, ...]:
    return tuple(Token(one.text, one.logprob, one.rank or None) for one in getattr(message, field))
