"""A small stand-in for the API v2beta1 of Kubeflow Pipelines 2.16: what is submitted runs as a scenario says.

It answers health, experiments and runs. The nodes of a run have the names that the real backend gives them
(`tests.standins.argo`). It listens on the loopback address only.
"""

from __future__ import annotations

import json
import ssl
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.standins.argo import Node, Scenario, nodes_of

Object = dict[str, Any]


@dataclass
class PipelineServerStandIn:
    """Use as a context manager; `url` is where it answers.

    Args:
        token: what a caller must show.
        scenario: how the next run that is submitted goes.
        looks: how often a run is still RUNNING when it is asked for, with more of its nodes each time.
        certificate: certificate and key files, for https.
    """

    token: str
    scenario: Scenario = field(default_factory=Scenario)
    looks: int = 2
    certificate: tuple[Path, Path] | None = None
    submitted: list[Object] = field(default_factory=list)
    url: str = ""

    def __enter__(self) -> PipelineServerStandIn:
        self._runs: dict[str, tuple[str, list[Node], int]] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        if self.certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self.certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"http{'s' if self.certificate else ''}://localhost:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def answer(self, path: str, token: str | None, body: Object | None) -> tuple[int, Object]:
        """Status and body of the answer to a request; `body` is None for GET."""
        if token != f"Bearer {self.token}":
            return 401, {"error": "Unauthorized"}
        call = path.partition("?")[0].removeprefix("/apis/v2beta1/")
        if call == "healthz":
            return 200, {"multi_user": False}
        if call == "experiments":
            return 200, ({"experiments": []} if body is None
                         else {"experiment_id": "e1", "display_name": body["display_name"]})
        if call == "runs" and body is not None:
            return 200, self._submit(body)
        run_id = call.removeprefix("runs/")
        return (200, self._look(run_id)) if run_id in self._runs else (404, {"error": f"{call} not found"})

    def _submit(self, body: Object) -> Object:
        run_id = f"run-{len(self.submitted) + 1}"
        self.submitted.append(body)
        spec = body["pipeline_spec"]
        self._runs[run_id] = (*nodes_of(spec.get("pipeline_spec", spec), self.scenario), 0)
        return {"run_id": run_id, "state": "PENDING"}

    def _look(self, run_id: str) -> Object:
        state, nodes, seen = self._runs[run_id]
        self._runs[run_id] = (state, nodes, seen + 1)
        if seen < self.looks:
            nodes, state = _begun(nodes[:len(nodes) * (seen + 1) // (self.looks + 1)]), "RUNNING"
        return {"run_id": run_id, "state": state, "run_details": {"task_details": [
            {"task_id": one.task_id, "display_name": one.display_name, "state": one.state} for one in nodes]}}


def _begun(nodes: list[Node]) -> list[Node]:
    """The last of them, and those around it, are still running."""
    last = nodes[-1].task_id if nodes else ""
    return [Node(one.task_id, one.display_name, "RUNNING") if last == one.task_id or last.startswith(f"{one.task_id}.")
            else one for one in nodes]


def _handler(stand_in: PipelineServerStandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(None)

        def do_POST(self) -> None:
            self._send(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _send(self, body: Object | None) -> None:
            status, value = stand_in.answer(self.path, self.headers.get("authorization"), body)
            text = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
