"""TGIS over gRPC: `fmaas.GenerationService`, whose field numbers are fixed."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from llm_detox.client.grpc import name_of
from llm_detox.client.types import Chunk, Generation, Parameters, Token

_SERVICE = "fmaas.GenerationService"
# The part of generation.proto that a client needs: message -> field -> (number, type); * repeats, ? is optional.
_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "BatchedGenerationRequest": {"model_id": (1, "string"), "requests": (3, "GenerationRequest*"),
                                 "params": (10, "Parameters")},
    "SingleGenerationRequest": {"model_id": (1, "string"), "request": (3, "GenerationRequest"),
                                "params": (10, "Parameters")},
    "GenerationRequest": {"text": (2, "string")},
    "BatchedGenerationResponse": {"responses": (1, "GenerationResponse*")},
    "GenerationResponse": {"generated_token_count": (2, "uint32"), "text": (4, "string"),
                           "input_token_count": (6, "uint32"), "stop_reason": (7, "StopReason"),
                           "tokens": (8, "TokenInfo*"), "input_tokens": (9, "TokenInfo*"), "seed": (10, "uint64"),
                           "stop_sequence": (11, "string")},
    "TokenInfo": {"text": (2, "string"), "logprob": (3, "float"), "rank": (4, "uint32")},
    "Parameters": {"method": (1, "DecodingMethod"), "sampling": (2, "SamplingParameters"),
                   "stopping": (3, "StoppingCriteria"), "response": (4, "ResponseOptions"),
                   "decoding": (5, "DecodingParameters"), "truncate_input_tokens": (6, "uint32")},
    "SamplingParameters": {"temperature": (1, "float"), "top_k": (2, "uint32"), "top_p": (3, "float"),
                           "typical_p": (4, "float"), "seed": (5, "uint64?")},
    "StoppingCriteria": {"max_new_tokens": (1, "uint32"), "min_new_tokens": (2, "uint32"),
                         "time_limit_millis": (3, "uint32"), "stop_sequences": (4, "string*"),
                         "include_stop_sequence": (5, "bool?")},
    "ResponseOptions": {"input_text": (1, "bool"), "generated_tokens": (2, "bool"), "input_tokens": (3, "bool"),
                        "token_logprobs": (4, "bool"), "token_ranks": (5, "bool")},
    "LengthPenalty": {"start_index": (1, "uint32"), "decay_factor": (2, "float")},
    "DecodingParameters": {"repetition_penalty": (1, "float"), "length_penalty": (2, "LengthPenalty?")},
}
_ENUMS = {"DecodingMethod": ("GREEDY", "SAMPLE"),
          "StopReason": ("NOT_FINISHED", "MAX_TOKENS", "EOS_TOKEN", "CANCELLED", "TIME_LIMIT", "STOP_SEQUENCE",
                         "TOKEN_LIMIT", "ERROR")}


class FmaasGrpc:
    """`Generate` and `GenerateStream`."""

    service = _SERVICE
    unary, streaming = "Generate", "GenerateStream"
    described = False

    def kinds(self, pool: Any) -> dict[str, tuple[Any, Any]]:
        made = messages()
        return {self.unary: (made.BatchedGenerationRequest, made.BatchedGenerationResponse),
                self.streaming: (made.SingleGenerationRequest, made.GenerationResponse)}

    def metadata(self, model_id: str) -> dict[str, str]:
        return {}

    def request(self, kind: Any, model_id: str, text: str, parameters: Parameters) -> Any:
        made = messages()
        one = made.GenerationRequest(text=text)
        asked = {"requests": [one]} if kind is made.BatchedGenerationRequest else {"request": one}
        return kind(model_id=model_id, params=to_params(parameters), **asked)

    def generation(self, answer: Any) -> Generation:
        if len(answer.responses) != 1:
            raise ValueError(f"{len(answer.responses)} answers to one text")
        return Generation(**_fields(answer.responses[0]))

    def chunk(self, answer: Any) -> Chunk:
        return Chunk(**_fields(answer))


def to_params(parameters: Parameters) -> Any:
    """Caikit's parameters as fmaas writes them."""
    given, params = parameters.given(), messages().Parameters()
    params.method = 1 if given.get("decoding_method") == "SAMPLING" else 0
    for name in ("temperature", "top_k", "top_p", "typical_p", "seed"):
        if name in given:
            setattr(params.sampling, name, given[name])
    for name in ("max_new_tokens", "min_new_tokens", "include_stop_sequence"):
        if name in given:
            setattr(params.stopping, name, given[name])
    params.stopping.stop_sequences.extend(given.get("stop_sequences", ()))
    if "max_time" in given:
        params.stopping.time_limit_millis = int(given["max_time"] * 1000)
    for name, theirs in (("preserve_input_text", "input_text"), ("generated_tokens", "generated_tokens"),
                         ("input_tokens", "input_tokens"), ("token_logprobs", "token_logprobs"),
                         ("token_ranks", "token_ranks")):
        if name in given:
            setattr(params.response, theirs, given[name])
    if "repetition_penalty" in given:
        params.decoding.repetition_penalty = given["repetition_penalty"]
    if "exponential_decay_length_penalty" in given:
        start, factor = given["exponential_decay_length_penalty"]
        params.decoding.length_penalty.start_index, params.decoding.length_penalty.decay_factor = start, factor
    if "truncate_input_tokens" in given:
        params.truncate_input_tokens = given["truncate_input_tokens"]
    return params


@functools.cache
def messages() -> SimpleNamespace:
    """The message classes, by name."""
    file = descriptor_pb2.FileDescriptorProto(name="fmaas_client.proto", package="fmaas", syntax="proto3")
    for name, values in _ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    scalar = descriptor_pb2.FieldDescriptorProto
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            plain = kind.rstrip("*?")
            made = message.field.add(name=field, number=number, label=3 if kind.endswith("*") else 1)
            if plain in _MESSAGES or plain in _ENUMS:
                made.type = scalar.TYPE_MESSAGE if plain in _MESSAGES else scalar.TYPE_ENUM
                made.type_name = f".fmaas.{plain}"
            else:
                made.type = scalar.Type.Value(f"TYPE_{plain.upper()}")
            if kind.endswith("?") and plain not in _MESSAGES:  # presence of a scalar is a oneof of its own
                made.proto3_optional, made.oneof_index = True, len(message.oneof_decl)
                message.oneof_decl.add(name=f"_{field}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return SimpleNamespace(**{
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"fmaas.{name}")) for name in _MESSAGES})


def _fields(answer: Any) -> dict[str, Any]:
    return {"text": answer.text, "generated_tokens": answer.generated_token_count,
            "finish_reason": name_of(answer, "stop_reason"), "input_token_count": answer.input_token_count,
            "seed": answer.seed or None, "tokens": _tokens(answer.tokens), "input_tokens": _tokens(answer.input_tokens)}


def _tokens(values: Any) -> tuple[Token, ...]:
    return tuple(Token(one.text, one.logprob, one.rank or None) for one in values)
