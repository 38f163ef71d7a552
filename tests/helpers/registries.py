"""A real image registry for tests (Debian's docker-registry), and a standard client (Debian's skopeo).

`make registry` unpacks both into `build/registry`; without them the tests skip and say so.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from tests.conftest import REPOSITORY
from tests.helpers.answering import getting_server, reply
from tests.helpers.certificates import Certificates

TOOLS = REPOSITORY / "build" / "registry"
_READY_SECONDS = 20.0


def program(name: str) -> Path:
    """A program of the registry's packages; skips where it is missing."""
    own = TOOLS / "usr" / "bin" / name
    there = str(own) if own.exists() else shutil.which(name)
    if there is None:
        pytest.skip(f"{name} is not installed: make registry, or apt-get install {name}")
    return Path(there)


@dataclass(frozen=True)
class RunningRegistry:
    """Where it listens, and where its blobs lie."""

    host: str
    data: Path

    def blobs(self) -> set[str]:
        """The digests of all that it holds."""
        folder = self.data / "docker/registry/v2/blobs/sha256"
        return {f"sha256:{path.name}" for path in folder.glob("*/*")}


@contextmanager
def registry(folder: Path, **http: Any) -> Iterator[RunningRegistry]:
    """Start one on loopback; `auth` is that section of its configuration, `tls` that of its part `http`."""
    binary = program("docker-registry")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    auth, tls = http.get("auth"), http.get("tls")
    settings = {"version": 0.1, "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
                "http": {"addr": host, **({"tls": tls} if tls else {})}, **({"auth": auth} if auth else {}),
                "log": {"accesslog": {"disabled": True}, "level": "error"}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yml").write_text(yaml.safe_dump(settings), "utf-8")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([binary, "serve", str(folder / "config.yml")], stdout=log, stderr=log,
                                   env={**os.environ, "OTEL_TRACES_EXPORTER": "none"})
    try:
        _wait(host, process, folder / "log")
        yield RunningRegistry(host, folder / "data")
    finally:
        process.terminate()
        process.wait(10)


def _wait(host: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + _READY_SECONDS
    name, _, port = host.rpartition(":")
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text("utf-8")
        with socket.socket() as probe:
            if probe.connect_ex((name, int(port))) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(log.read_text("utf-8"))


def pulled(address: str, to: Path, *, login: str | None = None, ca: Path | None = None) -> dict[str, Any]:
    """Pull an image with skopeo into a folder of blobs; returns its manifest."""
    binary = program("skopeo")
    to.parent.mkdir(parents=True, exist_ok=True)
    policy = to.parent / "policy.json"
    policy.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}), "utf-8")
    options = ["--src-creds", login] if login else []
    if ca:
        (to.parent / "certs").mkdir(exist_ok=True)
        shutil.copy(ca, to.parent / "certs" / "ca.crt")
        options += ["--src-cert-dir", str(to.parent / "certs")]
    else:
        options += ["--src-tls-verify=false"]
    libraries = ":".join(str(path) for path in (TOOLS / "usr/lib").glob("*-linux-gnu"))
    done = subprocess.run(
        [binary, "--policy", str(policy), "copy", *options, f"docker://{address.removeprefix('oci://')}", f"dir:{to}"],
        capture_output=True, text=True, timeout=120, env={**os.environ, "LD_LIBRARY_PATH": libraries})
    assert done.returncode == 0, done.stderr
    manifest: dict[str, Any] = json.loads((to / "manifest.json").read_bytes())
    return manifest


USER, PASSWORD = "pusher", "a-password-of-the-tests"
# A line for htpasswd; bcrypt, the only kind that the registry takes.
HASHED = f"{USER}:$2b$04$KBf6/rEe76lRchNTFhV9i.vysykyzvrCoqIGalQgAMlsrZxnYfx8O\n"


@contextmanager
def token_service(certificates: Certificates, service: str, *, lifetime: int = 300) -> Iterator[list[str]]:
    """Gives tokens that the registry checks by the authority's certificate; yields [realm, each scope asked for]."""
    asked: list[str] = []

    def answer(handler: Any) -> None:
        query = parse_qs(urlsplit(handler.path).query)
        if handler.headers.get("authorization") != basic(USER, PASSWORD):
            reply(handler, 401, b"{}")
            return
        asked.append(query["scope"][0])
        kind, name, actions = query["scope"][0].rsplit(":", 2)
        now = int(time.time())
        claims = {"iss": "tests", "sub": USER, "aud": service, "iat": now - 5, "nbf": now - 5, "jti": str(len(asked)),
                  "exp": now + lifetime, "access": [{"type": kind, "name": name, "actions": actions.split(",")}]}
        reply(handler, 200, json.dumps({"token": _signed(claims, certificates)}).encode())

    with getting_server(answer) as url:
        asked.append(f"{url}/token")
        yield asked


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _signed(claims: dict[str, Any], certificates: Certificates) -> str:
    """A JSON web token (ES256) with the certificate of its key in the head."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    key = serialization.load_pem_private_key(certificates.server_key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    shown = x509.load_pem_x509_certificate(certificates.server.read_bytes()).public_bytes(serialization.Encoding.DER)
    head = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(shown).decode()]}
    text = f"{_url64(json.dumps(head).encode())}.{_url64(json.dumps(claims).encode())}"
    r, s = decode_dss_signature(key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{text}.{_url64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _url64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
