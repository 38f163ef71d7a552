"""A protected model: its pod's proxy reaches REST and gRPC over loopback, other pods only gRPC with a certificate.

127.0.0.2 stands for the address of the pod: only a server that listens there, or everywhere, answers at it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llm_detox import processes
from llm_detox.serve.local_stack import caikit_python
from tests.helpers.certificates import Certificates, make_certificates
from tests.serving.conftest import NAME, Stack
from tests.serving.running import REPOSITORY, running_caikit, wait_for

POD, LOOPBACK = "127.0.0.2", "127.0.0.1"


@dataclass(frozen=True)
class Protected:
    """The ports of a runtime that was told that its model is protected."""

    rest: int
    grpc: int
    mutual: int
    certificates: Certificates

    def health(self, host: str) -> int:
        return httpx.get(f"http://{host}:{self.rest}/health", timeout=20, trust_env=False).status_code

    def up(self) -> bool:
        """Whether both servers answer: Caikit starts REST after gRPC."""
        try:
            return self.health(LOOPBACK) == 200 and checked(grpc.insecure_channel(f"{LOOPBACK}:{self.grpc}"))
        except httpx.TransportError:
            return False

    def mutual_channel(self, host: str, credentials: grpc.ChannelCredentials) -> grpc.Channel:
        return grpc.secure_channel(f"{host}:{self.mutual}", credentials,
                                   [("grpc.ssl_target_name_override", "localhost")])


def checked(channel: grpc.Channel) -> bool:
    """Whether gRPC's own health check comes back."""
    with channel:
        call = health_pb2_grpc.HealthStub(channel).Check.future(health_pb2.HealthCheckRequest(), timeout=10)
        code = call.code()
    assert code in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE), call.details()
    return code is grpc.StatusCode.OK


@pytest.fixture(scope="module")
def protected(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Protected]:
    root = tmp_path_factory.mktemp("protected")
    c, [mutual] = make_certificates(root / "certificates"), processes.free_ports(1)
    with running_caikit(stack.folder / "model", root / "caikit.log", model_id=NAME, host=POD, protected="true",
                        engine=stack.urls["fmaas"].removeprefix("fmaas://"), mtls_port=mutual, mtls_cert=c.server,
                        mtls_key=c.server_key, mtls_client_ca=c.ca) as (ports, _):
        running = Protected(ports["rest"], ports["grpc"], mutual, c)
        wait_for(running.up, 300, 0.5)
        yield running


def test_the_proxy_in_the_pod_reaches_rest_and_grpc(protected: Protected) -> None:
    assert protected.health(LOOPBACK) == 200
    assert checked(grpc.insecure_channel(f"{LOOPBACK}:{protected.grpc}"))


def test_other_pods_reach_neither(protected: Protected) -> None:
    """Port 8085 of a protected model answered without a token."""
    with pytest.raises(httpx.ConnectError):
        protected.health(POD)
    assert not checked(grpc.insecure_channel(f"{POD}:{protected.grpc}"))


def test_caikits_own_probe_finds_it_ready(protected: Protected) -> None:
    """The command of the manifest's three probes, with the manifest's environment."""
    ports = {"RUNTIME_HTTP_PORT": str(protected.rest), "RUNTIME_GRPC_PORT": str(protected.grpc)}
    seconds = {"RUNTIME_HTTP_PROBE_TIMEOUT": "5", "RUNTIME_GRPC_PROBE_TIMEOUT": "5"}
    done = subprocess.run([caikit_python(), "-m", "caikit_health_probe", "readiness"], env=os.environ | ports | seconds,
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_other_pods_reach_grpc_with_a_certificate(protected: Protected) -> None:
    c = protected.certificates
    shown = grpc.ssl_channel_credentials(c.ca.read_bytes(), c.client_key.read_bytes(), c.client.read_bytes())
    assert checked(protected.mutual_channel(POD, shown))
    with protected.mutual_channel(POD, shown) as channel:  # what is not offered is not offered here either
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/mmesh.ModelRuntime/unloadModel")(b"", timeout=20)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_without_one_or_with_anothers_they_do_not(protected: Protected) -> None:
    c = protected.certificates
    others = grpc.ssl_channel_credentials(c.ca.read_bytes(), c.other_client_key.read_bytes(),
                                          c.other_client.read_bytes())
    assert not checked(protected.mutual_channel(POD, grpc.ssl_channel_credentials(c.ca.read_bytes())))
    assert not checked(protected.mutual_channel(POD, others))
    assert not checked(grpc.insecure_channel(f"{POD}:{protected.mutual}"))


@pytest.mark.parametrize(("environment", "host"), [
    ({}, POD), ({"CAIKIT_PROTECTED": "", "CAIKIT_ENABLE_AUTH": ""}, POD),
    ({"CAIKIT_PROTECTED": "true", "CAIKIT_ENABLE_AUTH": ""}, LOOPBACK),
    ({"CAIKIT_PROTECTED": "", "CAIKIT_ENABLE_AUTH": "true"}, LOOPBACK),
    ({"CAIKIT_PROTECTED": "", "CAIKIT_ENABLE_AUTH": "false"}, POD)])
def test_the_label_or_the_platforms_annotation_protects(environment: dict[str, str], host: str) -> None:
    """As the pod's downward API gives them: empty where the pod has no such label or annotation."""
    given = {**os.environ, **environment, "CAIKIT_HOST": POD, "CAIKIT_MODEL_DIR": "m", "CAIKIT_MODEL_ID": "m"}
    program = "import runtime; print(runtime.host_of(runtime._parser().parse_args([])))"
    done = subprocess.run([caikit_python(), "-c", program],
                          cwd=REPOSITORY / "serving/caikit", env=given, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == host, done.stderr


def test_a_port_for_certificates_without_an_authority_is_refused(tmp_path: Path) -> None:
    done = subprocess.run([caikit_python(), "-c", "import runtime; runtime.mutual_tls(runtime._parser().parse_args("
                           "['--model-dir=m', '--model-id=m', '--mtls-port=8444', '--mtls-cert=c', '--mtls-key=k']))"],
                          cwd=REPOSITORY / "serving/caikit", capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "mtls-client-ca" in done.stderr

