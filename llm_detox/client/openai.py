"""OpenAI-compatible servers, such as vLLM's: `/v1/completions` for texts, `/v1/chat/completions` for conversations.

Parameters keep their Caikit names. Those that OpenAI's own API lacks go by the names that vLLM gave them; those that
have no name there are refused, not dropped: an answer without its time limit is another answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from llm_detox.client.http import Body
from llm_detox.client.types import Chunk, Generation, Parameters, Prompt, Token

_NAMES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens", "stop_sequences": "stop",
          "truncate_input_tokens": "truncate_prompt_tokens", "include_stop_sequence": "include_stop_str_in_output",
          "top_k": "top_k", "top_p": "top_p", "temperature": "temperature", "seed": "seed",
          "repetition_penalty": "repetition_penalty"}
_UNKNOWN = ("typical_p", "max_time", "exponential_decay_length_penalty", "input_tokens", "token_ranks")
_OF_SAMPLING = ("temperature", "top_k", "top_p", "typical_p", "seed")
_REASONS = {"length": "MAX_TOKENS", "abort": "CANCELLED"}


class OpenAi:
    """Completions and chat completions."""

    name = "an OpenAI-compatible server"
    takes_messages = True
    codes: Mapping[int, str] = MappingProxyType({})

    def request(self, model_id: str, prompt: Prompt, parameters: Parameters, *, stream: bool) -> tuple[str, Body]:
        chat = not isinstance(prompt, str)
        body: Body = ({"prompt": prompt} if isinstance(prompt, str)
                      else {"messages": [dict(message) for message in prompt]})
        body |= _written(parameters.given(), chat=chat)
        if model_id:
            body["model"] = model_id
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return "/v1/chat/completions" if chat else "/v1/completions", body

    def generation(self, value: Body) -> Generation:
        choice, usage = value["choices"][0], value.get("usage") or {}
        message = choice.get("message")
        return Generation(
            text=str((message.get("content") or "") if message is not None else choice["text"]),
            generated_tokens=int(usage.get("completion_tokens") or 0), finish_reason=_reason(choice),
            input_token_count=int(usage.get("prompt_tokens") or 0), tokens=_tokens(choice.get("logprobs")))

    def fault(self, kind: str, value: Body) -> int | None:
        error = value.get("error")
        if not error and value.get("object") != "error":
            return None
        code = (error if isinstance(error, dict) else value).get("code")
        return code if isinstance(code, int) else 500

    def reader(self) -> _Reader:
        return _Reader()


class _Reader:
    """Holds the last piece back until the counts arrive, in an event after it."""

    def __init__(self) -> None:
        self._last: Chunk | None = None
        self._usage: dict[str, Any] = {}

    def read(self, value: Body) -> Iterator[Chunk]:
        self._usage = value.get("usage") or self._usage
        for choice in value["choices"][:1]:
            delta = choice.get("delta")
            text = (delta.get("content") or "") if delta is not None else choice["text"]
            chunk = Chunk(text=str(text), generated_tokens=0, finish_reason=_reason(choice),
                          tokens=_tokens(choice.get("logprobs")))
            if chunk.finish_reason != "NOT_FINISHED":
                self._last = chunk
            elif chunk.text or chunk.tokens:
                yield chunk

    def end(self) -> Iterator[Chunk]:
        if self._last is not None:
            last, self._last = self._last, None
            yield replace(last, generated_tokens=int(self._usage.get("completion_tokens") or 0),
                          input_token_count=int(self._usage.get("prompt_tokens") or 0))


def _written(given: dict[str, Any], *, chat: bool) -> Body:
    """Parameters as such servers name them."""
    for name in _UNKNOWN:
        if given.get(name):
            raise ValueError(f"OpenAI-compatible servers have no parameter for {name}")
    body = {theirs: given[name] for name, theirs in _NAMES.items() if name in given}
    if "stop" in body:
        body["stop"] = list(body["stop"])
    if given.get("decoding_method") == "GREEDY":
        for name in _OF_SAMPLING:
            if name in given:
                raise ValueError(f"{name} is given, and the decoding method is greedy")
        body["temperature"] = 0
    if given.get("preserve_input_text"):
        if chat:
            raise ValueError("a conversation is not repeated in front of its answer (preserve_input_text)")
        body["echo"] = True
    if given.get("generated_tokens"):
        body["logprobs"] = True if chat else 1
    return body


def _reason(choice: Body) -> str:
    reason = choice.get("finish_reason")
    if reason is None:
        return "NOT_FINISHED"
    if reason == "stop":  # vLLM says which sequence it was; an end token has none
        return "STOP_SEQUENCE" if isinstance(choice.get("stop_reason"), str) else "EOS_TOKEN"
    return _REASONS.get(reason, str(reason).upper())


def _tokens(logprobs: Any) -> tuple[Token, ...]:
    if not logprobs:
        return ()
    if "content" in logprobs:  # of a chat
        return tuple(Token(str(one["token"]), one.get("logprob")) for one in logprobs["content"] or ())
    values = logprobs.get("token_logprobs") or [None] * len(logprobs["tokens"])
    return tuple(Token(str(text), value) for text, value in zip(logprobs["tokens"], values, strict=True))
