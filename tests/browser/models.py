"""Served models that say what a test wrote for them, at its pace: Caikit's REST, streamed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.helpers.answering import event, http_server, reply

FAILS, BREAKS = "model fails", "model breaks off"


class ScriptedModel:
    """Answers a prompt with the pieces that were written for it; unknown prompts get `a fine day`.

    Attributes:
        said: prompt -> pieces; `FAILS` alone is a refusal, `BREAKS` as the last piece ends the connection there.
        gate: closed, an answer stops behind its first piece until it opens.
        asked: what came: prompt, parameters, and the authorization header.
    """

    def __init__(self) -> None:
        self.said: dict[str, list[str]] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.asked: list[dict[str, Any]] = []
        self.url = ""

    def answer(self, handler: Any) -> None:
        asked = handler.asked()
        self.asked.append({"prompt": asked["inputs"], "parameters": asked["parameters"],
                           "authorization": handler.headers.get("authorization")})
        pieces = self.said.get(asked["inputs"], ["a fine", " day"])
        if pieces == [FAILS]:
            reply(handler, 500, b'{"details": "the model has no memory left", "code": 13}')
            return
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream")
        handler.end_headers()
        for number, piece in enumerate(pieces, 1):
            if piece == BREAKS:
                return
            last = number == len(pieces)
            handler.wfile.write(event(piece, "MAX_TOKENS" if last else "NOT_FINISHED", number))
            handler.wfile.flush()
            if not last:
                self.gate.wait(30)


@contextmanager
def scripted_model() -> Iterator[ScriptedModel]:
    model = ScriptedModel()
    with http_server(model.answer) as url:
        model.url = f"{url}/scripted"
        yield model
        model.gate.set()
