"""A deployment that cannot come up says why and leaves nothing behind."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from llm_detox import processes
from llm_detox.errors import DetoxError
from llm_detox.runs.locks import locked
from llm_detox.serve import local, local_stack
from llm_detox.serve.deployment import read_state
from llm_detox.serve.foreground import serve
from llm_detox.serve.local import deploy_local, stop_local
from llm_detox.serve.local_stack import Ports
from llm_detox.storage.fetch import LocalModel
from tests.helpers.damage import copy_of, with_code


@pytest.fixture
def model(tiny_llama: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    copy_of(tiny_llama, folder / "artifacts")
    (folder / "config.yml").write_text("name: x")
    return folder


@pytest.fixture
def published(model: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Fetching brings the model, without a store."""

    def fetch(address: str, to: Path) -> LocalModel:
        copy_of(model, to)
        return LocalModel(address + "/abc", "abc", files=1, bytes=7, seconds=0.1)

    monkeypatch.setattr(local, "fetch_model", fetch)
    return "s3://models/x"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[processes.Process]:
    """A stand-in for both interpreters that prints one line and fails; what was started is recorded."""
    started: list[processes.Process] = []
    plain = processes.spawn

    def spawn(name: str, command: list[str], **options: Any) -> processes.Process:
        code = "import sys; print('no memory left'); sys.exit(1)" if name == "caikit" else "import time; time.sleep(60)"
        started.append(plain(name, [sys.executable, "-c", code], log=options["log"]))
        return started[-1]

    monkeypatch.setattr(local_stack.processes, "spawn", spawn)
    monkeypatch.setenv("LLM_DETOX_CAIKIT_PYTHON", sys.executable)
    return started


def test_a_process_that_ends_while_starting_is_named_with_its_last_words(
    tmp_path: Path, published: str, programs: list[processes.Process]
) -> None:
    with pytest.raises(DetoxError, match="caikit ended while starting:\nno memory left"):
        deploy_local(published, name="x", output=tmp_path / "out")
    assert [process.name for process in programs] == ["engine", "caikit"]
    assert not any(processes.is_running(process) for process in programs)
    assert not (tmp_path / "out").exists()


def test_a_model_with_code_is_refused_before_anything_is_started(
    model: Path, tmp_path: Path, published: str, programs: list[processes.Process]
) -> None:
    with_code(model / "artifacts")
    for start in (lambda: deploy_local(published, name="x", output=tmp_path / "out"),
                  lambda: serve(str(model), name="x")):
        with pytest.raises(DetoxError, match="the model brings its own code"):
            start()
    assert programs == []


def test_serving_ends_with_the_same_words_and_leaves_nothing(
    model: Path, programs: list[processes.Process]
) -> None:
    with pytest.raises(DetoxError, match="caikit ended while starting"):
        serve(str(model), name="x")
    assert not any(processes.is_running(process) for process in programs)


def test_a_port_in_use_is_named_before_anything_is_fetched(
    tmp_path: Path, published: str, programs: list[processes.Process]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for wanted in ({"rest_port": port}, {"grpc_port": port}):
            with pytest.raises(DetoxError, match=f"port {port}") as caught:
                deploy_local(published, name="x", output=tmp_path / "out", **wanted)
            assert "another port" in str(caught.value.remedy)
    assert not programs
    assert not (tmp_path / "out").exists()


def test_an_existing_output_is_left_alone(tmp_path: Path, published: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(DetoxError, match="exists already"):
        deploy_local(published, name="x", output=tmp_path / "out")
    assert (tmp_path / "out" / "mine").exists()


def test_a_deployment_that_another_process_makes_is_not_joined(
    tmp_path: Path, published: str, programs: list[processes.Process]
) -> None:
    with locked(tmp_path / "out"), pytest.raises(DetoxError, match="has been writing this since"):
        deploy_local(published, name="x", output=tmp_path / "out")
    assert programs == []


def test_a_missing_caikit_environment_is_named(
    tmp_path: Path, published: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_DETOX_CAIKIT_PYTHON", str(tmp_path / "absent"))
    with pytest.raises(DetoxError, match="own environment is missing") as caught:
        deploy_local(published, name="x", output=tmp_path / "out")
    assert "make install" in str(caught.value.remedy)
    assert not (tmp_path / "out").exists()


def test_another_kind_of_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(DetoxError, match="not a Caikit model folder"):
        local_stack.start(tmp_path / "model", "x", Ports(1, 2, 3, 4), tmp_path / "work")


def test_wanted_ports_are_kept_and_all_differ() -> None:
    wanted = processes.free_ports(2)
    ports = Ports.choose(*wanted)
    assert (ports.rest, ports.grpc) == tuple(wanted)
    assert len({ports.rest, ports.grpc, ports.engine_grpc, ports.engine_http}) == 4


def test_the_servers_do_not_inherit_the_keys_of_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setenv("CONFIG_FILES", "x")
    monkeypatch.setenv("PYTHONPATH", "p")
    kept = local_stack._environment()
    assert not any(name.startswith("AWS_") for name in kept)
    assert "CONFIG_FILES" not in kept
    assert kept["PYTHONPATH"] == "p"
    assert "PYTHONPATH" not in local_stack._environment(without=("PYTHONPATH",))


def test_stopping_ends_what_is_ours_and_nothing_else(tmp_path: Path) -> None:
    ours = processes.spawn("engine", [sys.executable, "-c", "import time; time.sleep(60)"], log=tmp_path / "log")
    other = processes.spawn("other", [sys.executable, "-c", "import time; time.sleep(60)"], log=tmp_path / "log")
    # The pid of "caikit" was given to another process meanwhile.
    reused = {**other.as_dict(), "name": "caikit", "started": "12345"}
    (tmp_path / "deployment.json").write_text(json.dumps({"processes": [ours.as_dict(), reused]}))
    try:
        assert [one.name for one in read_state(tmp_path).processes] == ["engine", "caikit"]
        assert stop_local(tmp_path) == ["engine"]
        assert not processes.is_running(ours)
        assert processes.is_running(other)
        assert stop_local(tmp_path / "deployment.json") == []
    finally:
        processes.stop(other)


def test_a_folder_without_a_deployment_is_told_apart(tmp_path: Path) -> None:
    assert stop_local(tmp_path) == []
    with pytest.raises(DetoxError, match="not a deployment"):
        read_state(tmp_path)
