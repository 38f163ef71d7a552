"""A stand-in for vLLM's OpenAI server: our engine generates, this answers as vLLM words it.

    python -m vllm.entrypoints.openai.api_server --port=8080 --model=FOLDER --served-model-name=NAME
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from llm_detox.client import GenerationError, TextGenerationClient

_ENGINE_PORT, _ENGINE_HEALTH_PORT = 18033, 13000
_READY_SECONDS = 300.0
_REASONS = {"MAX_TOKENS": "length", "TOKEN_LIMIT": "length", "CANCELLED": "abort"}
Object = dict[str, Any]


def main() -> None:
    options = _parser().parse_args()
    if not Path(options.model, "config.json").is_file():
        sys.exit(f"OSError: Can't load the configuration of '{options.model}': no config.json there")
    engine = subprocess.Popen([
        sys.executable, "-m", "serving.engine", "--model-name", options.model, "--backend", "transformers",
        "--host", "127.0.0.1",
        "--grpc-port", str(_ENGINE_PORT), "--port", str(_ENGINE_HEALTH_PORT), "--end-with-stdin", "true"],
        stdin=subprocess.PIPE)
    Answers.name, Answers.folder = options.served_model_name or options.model, options.model
    Answers.client = TextGenerationClient(f"fmaas://127.0.0.1:{_ENGINE_PORT}", "", timeout=300)
    _wait_for(engine)
    server = ThreadingHTTPServer((options.host, options.port), Answers)
    server.daemon_threads = True
    server.serve_forever()


def _wait_for(engine: subprocess.Popen[bytes]) -> None:
    """vLLM listens when the model is loaded, not before."""
    until = time.monotonic() + _READY_SECONDS
    while True:
        if engine.poll() is not None or time.monotonic() > until:
            sys.exit("RuntimeError: Engine core initialization failed. See root cause above.")
        try:
            Answers.client.generate("a", max_new_tokens=1)
            return
        except GenerationError:
            time.sleep(0.2)


class Answers(BaseHTTPRequestHandler):
    """The paths of the API that clients of ours use."""

    name = folder = ""
    client: TextGenerationClient
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/health":
            self._send(200, b"")
        elif self.path == "/v1/models":
            models = [{"id": self.name, "object": "model", "owned_by": "vllm", "root": self.folder, "parent": None}]
            self._send_json(200, {"object": "list", "data": models})
        elif self.path == "/metrics":
            self._send(200, f'vllm:num_requests_running{{model_name="{self.name}"}} 0.0\n'.encode(), "text/plain")
        else:
            self._refuse(404, "Not Found", "NotFoundError")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chat = self.path == "/v1/chat/completions"
        if not chat and self.path != "/v1/completions":
            self._refuse(404, "Not Found", "NotFoundError")
            return
        try:
            asked = json.loads(body)
        except ValueError:
            self._refuse(400, "Request body is not valid JSON", "BadRequestError")
            return
        if asked.get("model", self.name) != self.name:
            self._refuse(404, f"The model `{asked['model']}` does not exist.", "NotFoundError")
            return
        try:
            prompt = _as_text(asked["messages"], self.folder) if chat else str(asked["prompt"])
        except ValueError as error:
            self._refuse(400, str(error), "BadRequestError")
            return
        act = self._stream if asked.get("stream") else self._whole
        act(prompt, asked, chat)

    def _whole(self, prompt: str, asked: Object, chat: bool) -> None:
        answer = self.client.generate(prompt, **_parameters(asked))
        echo = prompt if asked.get("echo") else ""
        choice = {"index": 0, **_part(echo + answer.text, chat, "message"), "logprobs": None,
                  "finish_reason": _REASONS.get(answer.finish_reason, "stop"), "stop_reason": None}
        self._send_json(200, {**self._head(chat), "choices": [choice],
                              "usage": _usage(answer.input_token_count, answer.generated_tokens)})

    def _stream(self, prompt: str, asked: Object, chat: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Connection", "close")
        self.end_headers()
        for event in self._events(prompt, asked, chat):
            self.wfile.write(f"data: {event}\n\n".encode())
            self.wfile.flush()
        self.close_connection = True

    def _events(self, prompt: str, asked: Object, chat: bool) -> Iterator[str]:
        head, inputs, outputs = self._head(chat, stream=True), 0, 0
        for chunk in self.client.stream(prompt, **_parameters(asked)):
            done = chunk.finish_reason != "NOT_FINISHED"
            inputs, outputs = max(inputs, chunk.input_token_count or 0), max(outputs, chunk.generated_tokens)
            reason = _REASONS.get(chunk.finish_reason, "stop") if done else None
            yield json.dumps({**head, "choices": [{"index": 0, **_part(chunk.text, chat, "delta"), "logprobs": None,
                                                   "finish_reason": reason}]})
        if asked.get("stream_options", {}).get("include_usage"):
            yield json.dumps({**head, "choices": [], "usage": _usage(inputs, outputs)})
        yield "[DONE]"

    def _head(self, chat: bool, *, stream: bool = False) -> Object:
        kind = ("chat.completion.chunk" if stream else "chat.completion") if chat else "text_completion"
        return {"id": "cmpl-0", "object": kind, "created": int(time.time()), "model": self.name}

    def _refuse(self, status: int, message: str, kind: str) -> None:
        self._send_json(status, {"error": {"message": message, "type": kind, "param": None, "code": status}})

    def _send_json(self, status: int, value: Object) -> None:
        self._send(status, json.dumps(value).encode(), "application/json")

    def _send(self, status: int, body: bytes, kind: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _parameters(asked: Object) -> Object:
    result: Object = {"max_new_tokens": asked.get("max_completion_tokens") or asked.get("max_tokens") or 16}
    if asked.get("temperature", 1.0) == 0:
        result["decoding_method"] = "GREEDY"
    else:
        result |= {"decoding_method": "SAMPLING", "temperature": asked.get("temperature", 1.0)}
        result |= {name: asked[name] for name in ("top_p", "top_k", "seed") if name in asked}
    if asked.get("stop"):
        result["stop_sequences"] = [asked["stop"]] if isinstance(asked["stop"], str) else asked["stop"]
    return result


def _part(text: str, chat: bool, field: str) -> Object:
    return {field: {"role": "assistant", "content": text}} if chat else {"text": text}


def _usage(inputs: int, outputs: int) -> Object:
    return {"prompt_tokens": inputs, "completion_tokens": outputs, "total_tokens": inputs + outputs}


def _as_text(messages: list[Object], folder: str) -> str:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not tokenizer.chat_template:
        raise ValueError("default chat template is no longer allowed, so you must provide a chat template")
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="api_server", description=__doc__)
    parser.add_argument("--host", default="0.0.0.0")  # noqa: S104
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--model", required=True)
    parser.add_argument("--served-model-name")
    return parser


if __name__ == "__main__":
    main()
