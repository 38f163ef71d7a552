"""A stand-in for kube-rbac-proxy: TLS, and only requests with the token of a service account go through.

Whom the token belongs to, and what that account may do, is not asked: the API server cannot be reached from a pod here.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import http.client
import json
import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}
_CHUNK = 2**16


def main() -> None:
    options = _parser().parse_args()
    rules = json.loads(Path(options.config_file).read_text("utf-8"))
    if "authorization" not in rules:
        sys.exit("no authorization is configured")
    Guard.upstream = urlsplit(options.upstream).netloc
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(options.tls_cert_file, options.tls_private_key_file)
    health = _server(int(options.proxy_endpoints_port), Health, context)
    threading.Thread(target=health.serve_forever, daemon=True).start()
    _server(int(options.secure_listen_address.rpartition(":")[2]), Guard, context).serve_forever()


def _server(port: int, handler: type[BaseHTTPRequestHandler], context: ssl.SSLContext) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("", port), handler)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    return server


class Health(BaseHTTPRequestHandler):
    """`/healthz`."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/healthz" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Probes come often."""


class Guard(BaseHTTPRequestHandler):
    """Passes requests on."""

    upstream = ""

    def do_GET(self) -> None:
        status = _refusal(self.headers.get("Authorization", ""))
        if status:
            self._say(status, {401: "Unauthorized", 403: "Forbidden"}[status])
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
        connection = http.client.HTTPConnection(self.upstream, timeout=300)
        try:
            connection.request(self.command, self.path, body=body, headers=headers)
            self._pass_on(connection.getresponse())
        except OSError as error:
            self._say(502, str(error))
        finally:
            connection.close()

    do_POST = do_GET

    def _pass_on(self, answer: http.client.HTTPResponse) -> None:
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP:
                self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        while piece := answer.read1(_CHUNK):
            self.wfile.write(piece)

    def _say(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


def _refusal(header: str) -> int | None:
    """401 without a token, 403 for what no service account has."""
    kind, _, token = header.partition(" ")
    if kind != "Bearer" or not token:
        return 401
    try:
        claims = json.loads(base64.urlsafe_b64decode(f"{token.split('.')[1]}===="))
    except (IndexError, ValueError, binascii.Error):
        return 401
    return None if str(claims.get("sub", "")).startswith("system:serviceaccount:") else 403


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    for name in ("secure-listen-address", "proxy-endpoints-port", "upstream", "tls-cert-file", "tls-private-key-file",
                 "config-file"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--auth-header-fields-enabled")
    parser.add_argument("--v")
    return parser


if __name__ == "__main__":
    main()
