"""Small servers for the client's tests: each answers as it is told."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc

from llm_detox.client.fmaas import messages

ANSWER = {"generated_text": " fine", "generated_tokens": 1, "finish_reason": "EOS_TOKEN", "input_token_count": 2}


class Handler(BaseHTTPRequestHandler):
    """What `answer` gets; `body` is what was asked."""

    body: bytes

    def asked(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.body)
        return value


class Listening(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave are part of the tests."""


@contextmanager
def http_server(answer: Callable[[Any], None]) -> Iterator[str]:
    class Answering(Handler):
        def do_POST(self) -> None:
            self.body = self.rfile.read(int(self.headers["content-length"]))
            answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    with _listening(Answering) as url:
        yield url


@contextmanager
def getting_server(answer: Callable[[Any], None]) -> Iterator[str]:
    """One that is asked by GET."""
    class Answering(Handler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    with _listening(Answering) as url:
        yield url


@contextmanager
def _listening(kind: type[Handler]) -> Iterator[str]:
    server = Listening(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes, kind: str = "application/json",
          **headers: str) -> None:
    handler.send_response(status)
    handler.send_header("content-type", kind)
    handler.send_header("content-length", str(len(body)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def event(text: str, reason: str = "NOT_FINISHED", tokens: int = 1) -> bytes:
    """A piece of Caikit's stream."""
    value = {"generated_text": text, "details": {"finish_reason": reason, "generated_tokens": tokens}}
    return b"event: message\r\ndata: " + json.dumps(value, ensure_ascii=False).encode() + b"\r\n\r\n"


def caikit(texts: list[str], reason: str = "EOS_TOKEN") -> Callable[[Any], None]:
    """Answers as Caikit's REST does, whole or streamed."""

    def answer(handler: Any) -> None:
        if "streaming" in handler.path:
            body = b"".join(event(text, tokens=number) for number, text in enumerate(texts[:-1], 1))
            reply(handler, 200, body + event(texts[-1], reason, len(texts)), "text/event-stream")
        else:
            reply(handler, 200, json.dumps({**ANSWER, "generated_text": "".join(texts), "finish_reason": reason,
                                            "generated_tokens": len(texts)}).encode())

    return answer


def openai(texts: list[str], *, reason: str = "length", usage: bool = True) -> Callable[[Any], None]:
    """Answers as an OpenAI-compatible server does: texts or conversations, whole or streamed."""
    counts = {"prompt_tokens": 5, "completion_tokens": len(texts), "total_tokens": 5 + len(texts)}

    def choice(text: str, chat: bool, stream: bool, last: bool) -> dict[str, Any]:
        part = {"delta" if stream else "message": {"content": text}} if chat else {"text": text}
        return {"index": 0, **part, "finish_reason": reason if last else None}

    def answer(handler: Any) -> None:
        asked, chat = handler.asked(), "chat" in handler.path
        if not asked.get("stream"):
            body = {"choices": [choice("".join(texts), chat, False, True)], **({"usage": counts} if usage else {})}
            reply(handler, 200, json.dumps(body).encode())
            return
        values: list[dict[str, Any]] = [{"choices": [choice(text, chat, True, number == len(texts))]}
                                        for number, text in enumerate(texts, 1)]
        if usage and asked["stream_options"]["include_usage"]:
            values.append({"choices": [], "usage": counts})
        lines = [*(json.dumps(value) for value in values), "[DONE]"]
        reply(handler, 200, b"".join(f"data: {line}\n\n".encode() for line in lines), "text/event-stream")

    return answer


@contextmanager
def fmaas_server(generate: Callable[[Any, Any], Any] | None = None,
                 stream: Callable[[Any, Any], Iterator[Any]] | None = None, workers: int = 8) -> Iterator[str]:
    """TGIS as it is told."""
    kinds = messages()
    handlers = {}
    if generate:
        handlers["Generate"] = grpc.unary_unary_rpc_method_handler(
            generate, request_deserializer=kinds.BatchedGenerationRequest.FromString,
            response_serializer=kinds.BatchedGenerationResponse.SerializeToString)
    if stream:
        handlers["GenerateStream"] = grpc.unary_stream_rpc_method_handler(
            stream, request_deserializer=kinds.SingleGenerationRequest.FromString,
            response_serializer=kinds.GenerationResponse.SerializeToString)
    with ThreadPoolExecutor(workers) as pool:
        server = grpc.server(pool)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("fmaas.GenerationService", handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"fmaas://127.0.0.1:{port}"
        finally:
            server.stop(None)


@contextmanager
def silent_server() -> Iterator[str]:
    """Accepts connections and never says a word."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"127.0.0.1:{server.getsockname()[1]}"
