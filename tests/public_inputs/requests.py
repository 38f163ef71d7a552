"""Public reports about requests and records: parameters out of range, texts of nothing, turns of conversations."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm_detox.client.types import Parameters
from llm_detox.data.chats import as_messages
from llm_detox.data.records import read_texts
from llm_detox.errors import DetoxError
from serving.caikit.request_rules import complaint
from serving.engine.validation import InvalidRequest, Limits
from serving.engine.validation import Parameters as EngineParameters
from serving.engine.validation import parameters as engine_parameters
from tests.public_inputs.case import Case, Refused, of

_LIMITS = Limits(max_sequence_length=256, max_new_tokens=100)


def _sorry(text: object) -> DetoxError:
    return DetoxError(str(text), place="the request", remedy="change it as the message says")


def rest(**values: Any) -> Callable[[Path], object]:
    """Parameters as Caikit gets them over REST and gRPC."""
    def read() -> object:
        if reason := complaint(values):
            raise _sorry(reason)
        return values

    return of(read)


def engine(**parts: dict[str, Any]) -> Callable[[Path], object]:
    """Parameters as the engine gets them: what they are read as."""
    def read() -> EngineParameters:
        from serving.engine.proto import messages

        try:
            return engine_parameters(messages().Parameters(**parts), _LIMITS)
        except InvalidRequest as error:
            raise _sorry(error) from None

    return of(read)


def fitting(tokens: int) -> Callable[[Path], object]:
    """An input of so many tokens: how many new ones there is room for."""
    def read() -> int:
        try:
            return EngineParameters(max_new_tokens=50).for_input(tokens, _LIMITS).max_new_tokens
        except InvalidRequest as error:
            raise _sorry(error) from None

    return of(read)


def client(**values: Any) -> Callable[[Path], object]:
    """Parameters as a Python user gives them to the client."""
    return of(lambda: Parameters.of(values).given())


def chat(*turns: tuple[str, str]) -> Callable[[Path], object]:
    """A conversation of roles and contents: its roles."""
    def read() -> list[str]:
        try:
            messages = as_messages([{"role": role, "content": content} for role, content in turns])
        except ValueError as error:
            raise _sorry(error) from None
        return [message["role"] for message in messages]

    return of(read)


def texts(*records: object) -> Callable[[Path], object]:
    """Reads the texts of a file of JSON lines."""
    def read(folder: Path) -> object:
        (folder / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
        return read_texts(folder / "a.jsonl")

    return read


PARAMETERS = (
    Case("microsoft/graphrag#416", "temperature 0",
         rest(temperature=0.0), Refused("temperature must be at least 0.05")),
    Case("vllm-project/vllm#31870", "temperature -1", engine(method=1, sampling={"temperature": -1.0}),
         Refused("temperature must be >= 0.05")),
    Case("vllm-project/vllm#2937", "temperature 0.0001, at which nothing is left to draw from",
         engine(method=1, sampling={"temperature": 1e-4}), Refused("temperature must be >= 0.05")),
    Case("vllm-project/vllm#1623", "top_p 0.0001", rest(top_p=1e-4), {"top_p": 1e-4}),
    Case("lm-sys/FastChat#2994", "no tokens at all", rest(max_new_tokens=0),
         Refused("max_new_tokens must be at least 1")),
    Case("NVIDIA/NeMo-Retriever#1843", "temperature 100, at which all tokens are alike", rest(temperature=100.0),
         {"temperature": 100.0}),
    Case("sbintuitions/flexeval#20", "an empty stop sequence", engine(stopping={"stop_sequences": [""]}),
         Refused("stop_sequences|stop sequences")),
    Case("osaurus-ai/osaurus#1793", "one stop sequence, not in a list", client(stop_sequences="five"),
         {"stop_sequences": ("five",)}),
    Case("deepspeedai/DeepSpeed#4349", "an input as long as the model reads", fitting(256),
         Refused("input tokens \\(256\\) .* must be < 256")),
    Case("huggingface/text-generation-inference#1220", "an input that leaves room for less than was asked for",
         fitting(230),
         26),
    Case("huggingface/huggingface_hub#2473", "another server's name for a parameter", client(stop=["x"]),
         Refused("there is no generation parameter 'stop'")),
)

CHATS = (
    Case("vllm-project/vllm#6862", "two questions behind a system prompt",
         chat(("system", "you are wikipedia"), ("user", "which?"), ("user", "and why?")), Refused("must take turns")),
    Case("FlowiseAI/Flowise#2006", "two answers in a row",
         chat(("user", "a"), ("assistant", "b"), ("assistant", "c")), Refused("must take turns")),
    Case("infiniflow/ragflow#11021", "a system prompt in the middle",
         chat(("user", "a"), ("system", "b"), ("assistant", "c")), Refused("must take turns")),
    Case("EricLBuehler/mistral.rs#45", "a system prompt before the question", chat(("system", "a"), ("user", "b")),
         ["system", "user"]),
)

NOTHING = (
    Case("axolotl-ai-cloud/axolotl#395", "empty texts among others",
         texts({"text": ""}, {"text": "a"}, {"text": None}), ["a"]),
    Case("axolotl-ai-cloud/axolotl#3751", "a message of nothing", chat(("user", "a"), ("assistant", "")),
         Refused("a message is empty")),
    Case("guillaume-be/rust-bert#267", "a text of blanks alone", texts({"text": " \n"}), []),
)

CASES = PARAMETERS + CHATS + NOTHING
