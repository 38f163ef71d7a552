"""The topology as in a pod with certificates, and little room: TLS on all ways, and an engine that is full or gone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from llm_detox import processes
from llm_detox.client import GenerationError, TextGenerationClient
from llm_detox.errors import DetoxError
from llm_detox.export import convert
from llm_detox.serve.local_stack import caikit_python
from tests.helpers.certificates import Certificates, make_certificates
from tests.serving.engine.running import Engine, running_engine
from tests.serving.running import STREAM, UNARY, running_caikit, wait_for

NAME = "guarded"
PLACES = 4
LONG = {"max_new_tokens": 240, "min_new_tokens": 240}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def model(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        caikit_python()
    except DetoxError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("guarded") / "model"
    convert(model=str(tiny_llama), output=folder)
    return folder


@dataclass
class Guarded:
    """A runtime with mutual TLS in front of an engine with mutual TLS, which takes few requests at once."""

    ports: dict[str, int]
    engine: Engine
    model: Path
    certificates: Certificates

    def client(self, protocol: str, **files: Any) -> TextGenerationClient:
        c = self.certificates
        known = {"ca_file": c.ca, "cert_file": c.client, "key_file": c.client_key, **files}
        scheme = {"rest": "https", "grpc": "grpcs"}[protocol]
        return TextGenerationClient(f"{scheme}://localhost:{self.ports[protocol]}", NAME, retries=0, timeout=20,
                                    **known)

    def http(self) -> httpx.Client:
        import ssl

        context = ssl.create_default_context(cafile=str(self.certificates.ca))
        context.load_cert_chain(self.certificates.client, self.certificates.client_key)
        return httpx.Client(base_url=f"https://localhost:{self.ports['rest']}", verify=context, trust_env=False,
                            timeout=30)


@contextmanager
def engine_with_tls(model: Path, c: Certificates, *arguments: str) -> Iterator[Engine]:
    credentials = grpc.ssl_channel_credentials(c.ca.read_bytes(), c.client_key.read_bytes(), c.client.read_bytes())
    with running_engine(model / "artifacts", "--max-concurrent-requests", str(PLACES), "--tls-cert-path",
                        str(c.server), "--tls-key-path", str(c.server_key), "--tls-client-ca-cert-path", str(c.ca),
                        *arguments, credentials=credentials) as engine:
        yield engine


@pytest.fixture(scope="module")
def guarded(model: Path, certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    c, log = certificates, tmp_path_factory.mktemp("runtime") / "caikit.log"
    port = processes.free_ports(1)[0]
    with ExitStack() as stack:
        ports, _ = stack.enter_context(running_caikit(
            model, log, model_id=NAME, engine=f"localhost:{port}", engine_ca=c.ca, engine_cert=c.client,
            engine_key=c.client_key, tls_cert=c.server, tls_key=c.server_key, tls_client_ca=c.ca))
        engine = stack.enter_context(engine_with_tls(model, c, "--grpc-port", str(port)))
        found = Guarded(ports, engine, model, c)
        for protocol in ("rest", "grpc"):
            wait_for(lambda protocol=protocol: _answers(found, protocol), 120, 0.3)
        yield found


def _answers(guarded: Guarded, protocol: str) -> bool:
    with guarded.client(protocol) as client:
        try:
            return client.generate("a", max_new_tokens=1).generated_tokens == 1
        except GenerationError:
            return False


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_mutual_tls_on_all_ways_answers_whole_and_streamed(guarded: Guarded, protocol: str) -> None:
    [direct] = guarded.engine.generate("the quick", stopping={"max_new_tokens": 8})
    with guarded.client(protocol) as client:
        assert client.generate("the quick", max_new_tokens=8).text == direct.text
        assert "".join(chunk.text for chunk in client.stream("the quick", max_new_tokens=8)) == direct.text


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
@pytest.mark.parametrize("wrong", ["no certificate", "a stranger's certificate", "an untrusted server", "no TLS"])
def test_whoever_cannot_prove_who_he_is_gets_no_answer(guarded: Guarded, protocol: str, wrong: str) -> None:
    c = guarded.certificates
    files: dict[str, Any] = {
        "no certificate": {"cert_file": None, "key_file": None},
        "a stranger's certificate": {"cert_file": c.other_client, "key_file": c.other_client_key},
        "an untrusted server": {"ca_file": c.other_ca},
    }.get(wrong, {})
    if wrong == "no TLS":
        scheme = {"rest": "http", "grpc": "grpc"}[protocol]
        client = TextGenerationClient(f"{scheme}://localhost:{guarded.ports[protocol]}", NAME, retries=0, timeout=5)
    else:
        client = guarded.client(protocol, **files)
    with client, pytest.raises(GenerationError) as caught:
        client.generate("a", max_new_tokens=1)
    assert caught.value.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED")


def test_the_engine_behind_it_admits_the_runtime_only(guarded: Guarded) -> None:
    ca = guarded.certificates.ca
    with (TextGenerationClient(f"fmaass://localhost:{guarded.engine.grpc_port}", retries=0, timeout=5, ca_file=ca)
          as client, pytest.raises(GenerationError)):
        client.generate("a", max_new_tokens=1)


def test_a_full_engine_is_told_from_a_wrong_request(guarded: Guarded) -> None:
    busy = [guarded.engine.start_stream("the quick", stopping={"max_new_tokens": 240, "min_new_tokens": 240},
                                        method=1, sampling={"typical_p": 0.99, "seed": 1}) for _ in range(PLACES)]
    for call in busy:
        next(call)
    body = {"model_id": NAME, "inputs": "a", "parameters": {"max_new_tokens": 1}}
    with guarded.http() as http:
        answers = [http.post(path, json=body) for path in (UNARY, STREAM)]
    for protocol in ("rest", "grpc"):
        with guarded.client(protocol) as client:
            for ask in (client.generate, lambda *a, client=client, **o: list(client.stream(*a, **o))):
                with pytest.raises(GenerationError, match="overloaded") as caught:
                    ask("a", max_new_tokens=1)
                assert caught.value.code == "RESOURCE_EXHAUSTED"
    for call in busy:
        call.cancel()
    assert answers[0].status_code == 429
    assert answers[1].text.startswith("event: error")
    assert '"code": 429' in answers[1].text


def test_ids_that_callers_make_up_are_not_kept(guarded: Guarded) -> None:
    with guarded.http() as http:
        for number in range(30):
            answer = http.post(UNARY, json={"model_id": f"made-up-{number}", "inputs": "a"})
            assert answer.status_code == 404
    for number in range(3):
        with guarded.client("grpc") as client, pytest.raises(GenerationError) as caught:
            client.model_id = f"made-up-{number}"
            client.generate("a")
        assert caught.value.code == "NOT_FOUND"
    exposed = httpx.get(f"http://127.0.0.1:{guarded.ports['metrics']}/metrics", timeout=10, trust_env=False).text
    assert f'model_id="{NAME}"' in exposed
    assert "made-up" not in exposed


def test_an_engine_that_dies_is_unavailable_until_it_is_back(guarded: Guarded) -> None:
    """The last test of the fast ones here: it ends the engine."""
    clients = [guarded.client(protocol) for protocol in ("rest", "grpc")]
    streams = [client.stream("the quick", **LONG) for client in clients]
    for stream in streams:
        next(stream)
    guarded.engine.process.kill()
    for stream in streams:
        with pytest.raises(GenerationError) as caught:
            list(stream)
        assert caught.value.code == "UNAVAILABLE", str(caught.value)
    for client in clients:
        with pytest.raises(GenerationError) as caught:
            client.generate("a", max_new_tokens=1)
        assert caught.value.code == "UNAVAILABLE", str(caught.value)
    guarded.engine.process.wait()
    with engine_with_tls(guarded.model, guarded.certificates, "--grpc-port", str(guarded.engine.grpc_port)):
        started = time.monotonic()
        for protocol in ("rest", "grpc"):
            wait_for(lambda protocol=protocol: _answers(guarded, protocol), 20, 0.2)
        assert time.monotonic() - started < 10
        for client in clients:
            client.close()


@pytest.mark.slow
def test_tls_without_client_certificates_admits_everyone_who_trusts_it(
    model: Path, certificates: Certificates, tmp_path: Path
) -> None:
    c = certificates
    credentials = grpc.ssl_channel_credentials(c.ca.read_bytes())
    with (running_engine(model / "artifacts", "--tls-cert-path", str(c.server), "--tls-key-path", str(c.server_key),
                         credentials=credentials) as engine,
          running_caikit(model, tmp_path / "caikit.log", model_id=NAME, engine=f"localhost:{engine.grpc_port}",
                         engine_ca=c.ca, tls_cert=c.server, tls_key=c.server_key) as (ports, _)):
        found = Guarded(ports, engine, model, c)
        for protocol in ("rest", "grpc"):
            wait_for(lambda protocol=protocol: _answers(found, protocol), 120, 0.3)
            with found.client(protocol, cert_file=None, key_file=None) as client:
                assert client.generate("the quick", max_new_tokens=3).generated_tokens == 3
            with found.client(protocol, ca_file=c.other_ca) as client, pytest.raises(GenerationError):
                client.generate("a")
