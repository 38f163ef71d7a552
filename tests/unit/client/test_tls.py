"""The client checks who it talks to, and shows who it is where a server asks."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest

from llm_detox.client import GenerationError, TextGenerationClient
from llm_detox.client.fmaas import messages
from tests.helpers.certificates import Certificates, make_certificates


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@contextmanager
def rest_server(certificates: Certificates) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            body = json.dumps({"generated_text": "ok", "generated_tokens": 1, "finish_reason": "MAX_TOKENS",
                               "input_token_count": 1}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server, certificates.server_key)
    context.load_verify_locations(certificates.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"https://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def fmaas_server(certificates: Certificates) -> Iterator[str]:
    kinds = messages()

    def generate(request: Any, context: Any) -> Any:
        return kinds.BatchedGenerationResponse(responses=[{"text": "ok", "generated_token_count": 1}])

    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("fmaas.GenerationService", {
        "Generate": grpc.unary_unary_rpc_method_handler(
            generate, request_deserializer=kinds.BatchedGenerationRequest.FromString,
            response_serializer=kinds.BatchedGenerationResponse.SerializeToString)}),))
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(
        [(certificates.server_key.read_bytes(), certificates.server.read_bytes())],
        root_certificates=certificates.ca.read_bytes(), require_client_auth=True))
    server.start()
    try:
        yield f"fmaass://127.0.0.1:{port}"
    finally:
        server.stop(None)


@pytest.mark.parametrize("serve", [rest_server, fmaas_server])
def test_a_trusted_server_answers_a_client_that_shows_its_certificate(serve: Any, certificates: Certificates) -> None:
    with serve(certificates) as url, TextGenerationClient(
            url, "x", ca_file=certificates.ca, cert_file=certificates.client,
            key_file=certificates.client_key) as client:
        assert client.generate("a").text == "ok"


@pytest.mark.parametrize("serve", [rest_server, fmaas_server])
@pytest.mark.parametrize("wrong", ["no certificate", "a stranger's certificate", "an untrusted server"])
def test_anything_else_is_refused(serve: Any, wrong: str, certificates: Certificates) -> None:
    files: dict[str, Path] = {
        "ca_file": certificates.ca, "cert_file": certificates.client, "key_file": certificates.client_key}
    if wrong == "no certificate":
        files = {"ca_file": certificates.ca}
    elif wrong == "a stranger's certificate":
        files |= {"cert_file": certificates.other_client, "key_file": certificates.other_client_key}
    else:
        files |= {"ca_file": certificates.other_ca}
    with (serve(certificates) as url, TextGenerationClient(url, "x", retries=0, timeout=10, **files) as client,
          pytest.raises(GenerationError) as caught):
        client.generate("a")
    assert caught.value.code == "UNAVAILABLE"


def test_without_a_ca_file_a_private_authority_is_not_trusted(certificates: Certificates) -> None:
    with (rest_server(certificates) as url, TextGenerationClient(url, "x", retries=0, timeout=10) as client,
          pytest.raises(GenerationError, match=r"(?i)certificate")):
        client.generate("a")
