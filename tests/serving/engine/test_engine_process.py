"""The engine as a process: its arguments, its certificates, its start, its failures and its end."""

from __future__ import annotations

import datetime
import os
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from llm_detox.errors import UsageError
from serving.engine import proto
from serving.engine.settings import parse
from tests.serving.engine.running import PROMPT, Engine, engine_command, refused, running_engine


def test_an_argument_wins_over_the_environment_and_that_over_the_default() -> None:
    environment = {"MODEL_NAME": "m", "GRPC_PORT": "9000", "MAX_NEW_TOKENS": "77", "DEFAULT_INCLUDE_STOP_SEQS": "false"}
    settings = parse(["--grpc-port", "9001"], environment)
    assert (settings.model_name, settings.grpc_port, settings.port) == ("m", 9001, 3000)
    assert (settings.max_new_tokens, settings.default_include_stop_seqs) == (77, False)


def test_the_arguments_of_the_tgis_launcher_are_taken() -> None:
    settings = parse(["--model-name=/mnt/models/artifacts/", "--num-shard=1", "--max-waiting-tokens", "24",
                      "--shard-uds-path", "x", "--json-output", "--deployment-framework=hf_transformers"], {})
    assert settings.model_name == "/mnt/models/artifacts/"
    assert settings.json_output
    assert parse(["--model-name", "m"], {"DTYPE_STR": "float16", "NUM_GPUS": "1"}).dtype == "float16"


def test_it_listens_to_everyone_only_in_a_pod_or_where_told() -> None:
    assert parse(["--model-name", "m"], {}).host == "127.0.0.1"
    assert parse(["--model-name", "m"], {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}).host == "0.0.0.0"  # noqa: S104
    assert parse(["--model-name", "m"], {"BIND_HOST": "10.1.1.1"}).host == "10.1.1.1"
    assert parse(["--model-name", "m", "--host", "::1"], {}).host == "::1"


@pytest.mark.parametrize(("arguments", "words"), [
    ([], "no model is given"),
    (["--model-name", "m", "--grpc-port", "x"], "'x' is no int"),
    (["--model-name", "m", "--max-new-tokens", "0"], "max_new_tokens must be at least 1"),
    (["--model-name", "m", "--tls-cert-path", "c"], "must come together"),
    (["--model-name", "m", "--tls-client-ca-cert-path", "c"], "needs tls_cert_path"),
    (["--model-name", "m", "--num-shard", "2"], "one device"),
    (["--model-name", "m", "--quantize", "gptq"], "not supported"),
    (["--model-name", "m", "--dtype", "float16", "--dtype-str", "float32"], "different values"),
    (["--model-name", "m", "--backend", "magic"], "no back end"),
])
def test_wrong_settings_are_refused(arguments: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse(arguments, {})


def _fails(*arguments: str, model: Path) -> tuple[int, str]:
    done = subprocess.run(engine_command(model, *arguments), capture_output=True, text=True, timeout=120,
                          env=dict(os.environ, OMP_NUM_THREADS="1"))
    return done.returncode, done.stderr


def test_a_missing_model_gives_one_clear_message(tmp_path: Path) -> None:
    code, text = _fails("--port", "0", "--grpc-port", "0", model=tmp_path / "nothing")
    assert code == 1
    assert "nothing" in text
    assert "remedy" in text
    assert "Traceback" not in text


@pytest.mark.parametrize("option", ["--port", "--grpc-port"])
def test_a_port_in_use_gives_one_clear_message(option: str, tiny_llama: Path) -> None:
    other = "--grpc-port" if option == "--port" else "--port"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = str(taken.getsockname()[1])
        code, text = _fails(option, number, other, "0", model=tiny_llama)
    assert code == 1
    assert f"127.0.0.1:{number}: cannot listen" in text
    assert "Traceback" not in text


def test_a_certificate_that_cannot_be_read_gives_one_clear_message(tmp_path: Path, tiny_llama: Path) -> None:
    code, text = _fails("--tls-cert-path", str(tmp_path / "no.pem"), "--tls-key-path", "x", "--port", "0",
                        model=tiny_llama)
    assert code == 1
    assert "cannot be read" in text


def test_sigterm_lets_requests_finish_and_takes_no_new_ones(tiny_llama: Path) -> None:
    with running_engine(tiny_llama) as engine:
        stopping = {"max_new_tokens": 240, "min_new_tokens": 240}
        streams = [engine.start_stream(PROMPT, stopping=stopping) for _ in range(3)]
        first = [next(stream) for stream in streams]
        codes: list[int] = []
        waiter = threading.Thread(target=lambda: codes.append(engine.terminate()))
        waiter.start()
        counts = [[message.generated_token_count for message in stream][-1] for stream in streams]
        assert counts == [240, 240, 240]
        assert all(message.input_token_count for message in first)
        waiter.join()
        assert codes == [0]
        assert refused(lambda: engine.generate(PROMPT), grpc.StatusCode.UNAVAILABLE)
        assert "Traceback" not in engine.log.read_text()


def test_the_grace_period_bounds_the_end(tiny_llama: Path) -> None:
    with running_engine(tiny_llama, "--shutdown-grace-seconds", "0") as engine:
        stream = engine.start_stream(PROMPT, stopping={"max_new_tokens": 240, "min_new_tokens": 240})
        next(stream)
        assert engine.terminate() == 0
        with pytest.raises(grpc.RpcError):
            list(stream)


class _Authority:
    """A certificate authority for tests."""

    def __init__(self, name: str) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self._sign(self.name, self.key, authority=True)

    def _sign(self, name: x509.Name, key: Any, *, authority: bool) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        built = (x509.CertificateBuilder().subject_name(name).issuer_name(self.name).public_key(key.public_key())
                 .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1))
                 .not_valid_after(now + datetime.timedelta(hours=1))
                 .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
                 .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
                 .sign(self.key, hashes.SHA256()))
        return built.public_bytes(serialization.Encoding.PEM)

    def issue(self, name: str) -> tuple[bytes, bytes]:
        """(key, certificate) in PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                serialization.NoEncryption())
        return pem, self._sign(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key, authority=False)


def _answers(port: int, credentials: Any) -> bool:
    with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
        try:
            grpc.channel_ready_future(channel).result(3)
        except grpc.FutureTimeoutError:
            return False
        answer = channel.unary_unary(f"/{proto.SERVICE}/ModelInfo")(b"", timeout=10)
        return bool(answer)


def test_mutual_tls_admits_only_clients_of_the_authority(tmp_path: Path, tiny_llama: Path) -> None:
    server_authority, client_authority, stranger = _Authority("server"), _Authority("client"), _Authority("stranger")
    key, certificate = server_authority.issue("localhost")
    for name, content in {"key": key, "cert": certificate, "ca": client_authority.certificate}.items():
        (tmp_path / name).write_bytes(content)
    root = server_authority.certificate
    good = grpc.ssl_channel_credentials(root, *client_authority.issue("someone"))
    arguments = ("--tls-cert-path", str(tmp_path / "cert"), "--tls-key-path", str(tmp_path / "key"))
    with running_engine(tiny_llama, *arguments, "--tls-client-ca-cert-path", str(tmp_path / "ca"),
                        credentials=good) as engine:
        assert isinstance(engine, Engine)
        assert engine.generate(PROMPT)[0].generated_token_count == 20
        assert not _answers(engine.grpc_port, grpc.ssl_channel_credentials(root))
        assert not _answers(engine.grpc_port, grpc.ssl_channel_credentials(root, *stranger.issue("someone")))
        assert not _answers(engine.grpc_port, grpc.ssl_channel_credentials(stranger.certificate))


def test_tls_alone_asks_no_client_certificate(tmp_path: Path, tiny_llama: Path) -> None:
    authority = _Authority("server")
    key, certificate = authority.issue("localhost")
    (tmp_path / "key").write_bytes(key)
    (tmp_path / "cert").write_bytes(certificate)
    credentials = grpc.ssl_channel_credentials(authority.certificate)
    with running_engine(tiny_llama, "--tls-cert-path", str(tmp_path / "cert"), "--tls-key-path", str(tmp_path / "key"),
                        credentials=credentials) as engine:
        assert engine.generate(PROMPT)[0].generated_token_count == 20
        with grpc.insecure_channel(f"localhost:{engine.grpc_port}") as plain:
            call = plain.unary_unary(f"/{proto.SERVICE}/ModelInfo")
            assert refused(lambda: call(b"", timeout=5), grpc.StatusCode.UNAVAILABLE)
