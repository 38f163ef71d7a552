"""Caikit over REST; streams come as server-sent events."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterable, Iterator
from typing import Any

import httpx

from llm_detox.client.transport import Deadline, Server
from llm_detox.client.types import Chunk, Generation, GenerationError, Parameters, Token

_UNARY, _STREAM = "/api/v1/task/text-generation", "/api/v1/task/server-streaming-text-generation"
# Caikit turns UNAVAILABLE into 501.
_CODES = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND",
          408: "DEADLINE_EXCEEDED", 413: "INVALID_ARGUMENT", 422: "INVALID_ARGUMENT", 429: "RESOURCE_EXHAUSTED",
          499: "CANCELLED", 501: "UNAVAILABLE", 502: "UNAVAILABLE", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED"}


class CaikitRest:
    """`POST /api/v1/task/text-generation` and its streaming twin."""

    def __init__(self, server: Server) -> None:
        self._server = server
        verify: ssl.SSLContext | bool = True
        if server.url.startswith("https"):
            verify = ssl.create_default_context(cafile=str(server.ca_file) if server.ca_file else None)
            if server.cert_file and server.key_file:
                verify.load_cert_chain(server.cert_file, server.key_file)
        headers = {"authorization": f"Bearer {server.token}"} if server.token else {}
        self._http = httpx.Client(base_url=server.url.rstrip("/"), verify=verify, headers=headers,
                                  trust_env=not server.is_local, follow_redirects=False)

    def generate(self, model_id: str, text: str, parameters: Parameters, deadline: Deadline) -> Generation:
        with self._clear_errors(deadline):
            answer = self._http.post(_UNARY, json=_body(model_id, text, parameters), timeout=deadline.left())
        if answer.status_code != 200:
            raise self._error(answer.status_code, answer.content)
        value = self._json(answer.content)
        try:
            return Generation(
                text=str(value["generated_text"]), generated_tokens=int(value["generated_tokens"]),
                finish_reason=str(value["finish_reason"]), input_token_count=int(value["input_token_count"]),
                seed=value.get("seed") or None, tokens=_tokens(value.get("tokens")),
                input_tokens=_tokens(value.get("input_tokens")))
        except (KeyError, TypeError, ValueError):
            raise self._foreign() from None

    def stream(self, model_id: str, text: str, parameters: Parameters, deadline: Deadline) -> Iterator[Chunk]:
        body = _body(model_id, text, parameters)
        with (self._clear_errors(deadline),
              self._http.stream("POST", _STREAM, json=body, timeout=deadline.left()) as answer):
            if answer.status_code != 200:
                raise self._error(answer.status_code, answer.read())
            finished = False
            for kind, data in events(answer.iter_bytes()):
                value = self._json(data)
                if kind == "error" or "generated_text" not in value:
                    raise self._error(int(value.get("code") or 500), data)
                chunk = _chunk(value)
                finished = chunk.finish_reason != "NOT_FINISHED"
                yield chunk
                if deadline.is_over() and not finished:
                    raise httpx.ReadTimeout("deadline")
            if not finished:
                raise httpx.RemoteProtocolError("the stream ended before the answer did")

    def close(self) -> None:
        self._http.close()

    def _clear_errors(self, deadline: Deadline) -> _ClearErrors:
        return _ClearErrors(self._server.url, deadline)

    def _json(self, data: bytes) -> dict[str, Any]:
        try:
            value = json.loads(data)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise self._foreign()
        return value

    def _foreign(self) -> GenerationError:
        return GenerationError("INTERNAL", "the answer has another form: is this a Caikit server?",
                               place=self._server.url)

    def _error(self, status: int, body: bytes) -> GenerationError:
        try:
            value = json.loads(body)
        except ValueError:
            value = {}
        said = (value.get("details") or value.get("detail")) if isinstance(value, dict) else None
        text = said if isinstance(said, str) else json.dumps(said) if said else f"HTTP {status}"
        return GenerationError(_CODES.get(status, "INTERNAL"), text, place=self._server.url)


class _ClearErrors:
    """httpx's failures as `GenerationError`."""

    def __init__(self, url: str, deadline: Deadline) -> None:
        self._url, self._deadline = url, deadline

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, httpx.TimeoutException):
            raise GenerationError("DEADLINE_EXCEEDED", f"no answer within {self._deadline.seconds:g} s",
                                  place=self._url) from error
        if isinstance(error, httpx.TransportError):
            raise GenerationError("UNAVAILABLE", str(error) or type(error).__name__, place=self._url) from error


def events(pieces: Iterable[bytes]) -> Iterator[tuple[str, bytes]]:
    """Server-sent events as (kind, data). Lines end with LF or CRLF only: U+2028 in a text is not a line's end."""
    kind, rest = "message", b""
    data: list[bytes] = []
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            line = line.removesuffix(b"\r")
            name, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if not line and data:
                yield kind, b"\n".join(data)
            if not line:
                kind, data = "message", []
            elif name == b"data":
                data.append(value)
            elif name == b"event":
                kind = value.decode("utf-8", errors="replace")


def _body(model_id: str, text: str, parameters: Parameters) -> dict[str, Any]:
    given = parameters.given()
    if "exponential_decay_length_penalty" in given:
        start, factor = given["exponential_decay_length_penalty"]
        given["exponential_decay_length_penalty"] = {"start_index": start, "decay_factor": factor}
    if "stop_sequences" in given:
        given["stop_sequences"] = list(given["stop_sequences"])
    return {"model_id": model_id, "inputs": text, "parameters": given}


def _chunk(value: dict[str, Any]) -> Chunk:
    details = value.get("details") or {}
    return Chunk(
        text=value.get("generated_text") or "", generated_tokens=details.get("generated_tokens") or 0,
        finish_reason=details.get("finish_reason") or "NOT_FINISHED",
        input_token_count=details.get("input_token_count") or 0, seed=details.get("seed") or None,
        tokens=_tokens(value.get("tokens")), input_tokens=_tokens(value.get("input_tokens")))


def _tokens(values: list[dict[str, Any]] | None) -> tuple[Token, ...]:
    return tuple(Token(one.get("text") or "", one.get("logprob"), one.get("rank") or None) for one in values or ())
