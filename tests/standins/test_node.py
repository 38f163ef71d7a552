"""The stand-in node: containers, probes, users, volumes, networks. Without an API server."""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving.running import wait_for
from tests.standins.cluster.kubelet import PodEvent
from tests.standins.cluster.pod_state import Running, Terminated
from tests.standins.node import sandbox
from tests.standins.node.container import Container, Program, command_of
from tests.standins.node.enter import Mount
from tests.standins.node.environment import ConfigError, User, user_of, variables
from tests.standins.node.images import Image
from tests.standins.node.policy import Caller, admits, lets_out
from tests.standins.node.sandbox import Refused, Sandbox
from tests.standins.node.volumes import MountFailed, fill_volumes

Object = dict[str, Any]
needs_namespaces = pytest.mark.skipif(bool(sandbox.missing()), reason=str(sandbox.missing()))
SERVE = "python3 -m http.server 8080 --directory /mnt"
PROBE: Object = {"periodSeconds": 1, "timeoutSeconds": 2, "failureThreshold": 2}
IMAGE = Image("1001", "/usr/bin:/bin", ())
POD: Object = {"metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"app": "x"},
                            "annotations": {"a/b": "c"}},
               "spec": {"containers": [], "serviceAccountName": "s"}}


class Objects:
    """An API server's part: Secrets and ConfigMaps by name."""

    def __init__(self, **objects: Object) -> None:
        self._objects = objects

    def get(self, kind: str, _: str, name: str) -> Object | None:
        return self._objects.get(f"{kind}_{name}")


SECRETS: Any = Objects(Secret_login={"data": {"key": b64encode(b"value").decode()}},
                       ConfigMap_settings={"data": {"file": "content"}})


class Box:
    """A container in a sandbox of its own."""

    def __init__(self, folder: Path, **specification: Any) -> None:
        self.folder, self.events = folder, list[PodEvent]()
        self.sandbox = Sandbox(folder, "10.244.0.9")
        wait_for(lambda: self.sandbox.is_up)
        volume = folder / "volume"
        volume.mkdir()
        volume.chmod(0o777)
        self.specification: Object = {"name": "main", "image": "x", **specification}

    def start(self, script: str, *, user: int = 1001, restarts: str = "Always") -> Container:
        program = Program(["sh", "-c", script], {"PATH": "/usr/local/bin:/usr/bin:/bin"}, User(user, 0, ()),
                          [Mount(str(self.folder / "volume"), "/opt/llm-detox/volume", read_only=False)])
        self.container = Container(self.specification, program, self.sandbox, self.folder / "main", restarts=restarts,
                                   factor=20, grace_seconds=2, tell=self.events.append)
        self.container.start()
        return self.container


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    import shutil
    import tempfile

    short = Path(tempfile.mkdtemp(prefix="node-"))  # the socket's path must be short
    yield short
    shutil.rmtree(short)


@pytest.fixture
def box(folder: Path) -> Iterator[Box]:
    made = Box(folder)
    yield made
    made.container.stop()
    made.sandbox.close()


# Containers


@needs_namespaces
def test_a_container_sees_its_mounts_its_user_and_none_of_this_machines_files(box: Box) -> None:
    box.specification["securityContext"] = {"readOnlyRootFilesystem": True}
    container = box.start("id -u; ls /tmp /mnt; echo a > /opt/llm-detox/volume/a; echo b > /opt/b; sleep 60")
    wait_for(lambda: (box.folder / "volume" / "a").exists() and "Read-only" in container.log.read_text())
    assert container.log.read_text().splitlines()[0] == "1001"
    assert box.folder.name not in container.log.read_text(), "its folder lies in this machine's /tmp"
    assert not Path("/opt/llm-detox/volume").exists(), "nothing of it is left on this machine"


@needs_namespaces
def test_a_container_that_ends_is_started_again_with_pauses_and_says_what_it_left_in_its_log(box: Box) -> None:
    box.specification["terminationMessagePolicy"] = "FallbackToLogsOnError"
    container = box.start("echo no such model; exit 3")
    wait_for(lambda: container.state.restarts >= 2)
    assert container.state.last == Terminated(3, message="no such model\n")
    assert "BackOff" in {one.reason for one in box.events}


@needs_namespaces
def test_what_a_container_writes_for_its_end_is_told(box: Box) -> None:
    container = box.start("echo changed > /dev/termination-log; exit 1", restarts="Never")
    wait_for(lambda: isinstance(container.state.now, Terminated))
    assert container.state.now == Terminated(1, message="changed\n")


@needs_namespaces
def test_a_container_is_told_to_end_before_it_is_killed(box: Box) -> None:
    container = box.start("trap 'exit 7' TERM; while true; do sleep 0.1; done")
    wait_for(lambda: container.state.started)
    time.sleep(0.3)
    container.stop()
    assert container.state.now == Terminated(7)


@needs_namespaces
def test_a_program_that_is_not_in_the_image_is_an_end_with_127(box: Box) -> None:
    container = box.start("no-such-program", restarts="Never")
    wait_for(lambda: isinstance(container.state.now, Terminated))
    assert isinstance(container.state.now, Terminated)
    assert container.state.now.exit_code == 127


# Probes


@needs_namespaces
def test_a_port_by_its_name_is_asked_at_the_pods_own_address(box: Box) -> None:
    box.specification |= {"ports": [{"name": "http", "containerPort": 8080}],
                          "readinessProbe": {**PROBE, "httpGet": {"path": "/", "port": "http"}}}
    container = box.start(SERVE)
    wait_for(lambda: container.state.ready)
    box.sandbox.connect(8080).close()
    with pytest.raises(Refused, match="connection refused"):
        box.sandbox.connect(8081)


@needs_namespaces
@pytest.mark.parametrize(("probe", "words"), [
    ({"httpGet": {"path": "/", "port": 8081}}, "connection refused"),
    ({"httpGet": {"path": "/nothing", "port": 8080}}, "statuscode: 404"),
    ({"httpGet": {"path": "/", "port": 8080, "scheme": "HTTPS"}}, "Readiness probe failed: Get"),
    ({"httpGet": {"path": "/", "port": "https"}}, "couldn't find port: https"),
    ({"exec": {"command": ["sh", "-c", "echo not yet; exit 1"]}}, "not yet"),
    ({"exec": {"command": ["no-such-program"]}}, "No such file"),
])
def test_a_wrong_path_port_scheme_or_program_is_a_container_that_is_never_ready(box: Box, probe: Object, words: str
                                                                              ) -> None:
    box.specification["readinessProbe"] = {**PROBE, **probe}
    container = box.start(SERVE)
    wait_for(lambda: any(one.reason == "Unhealthy" and words in one.message for one in box.events))
    assert not container.state.ready


@needs_namespaces
def test_a_server_for_the_pod_alone_is_not_ready_for_the_kubelet(box: Box) -> None:
    box.specification["readinessProbe"] = {**PROBE, "httpGet": {"path": "/", "port": 8080}}
    container = box.start(f"{SERVE} --bind 127.0.0.1")
    wait_for(lambda: len(box.events) > 3)
    assert not container.state.ready


@needs_namespaces
def test_a_liveness_probe_that_fails_too_often_starts_the_container_again(box: Box) -> None:
    box.specification["livenessProbe"] = {**PROBE, "exec": {"command": ["sh", "-c", "exit 1"]}}
    container = box.start("sleep 60")
    wait_for(lambda: container.state.restarts >= 1)
    assert PodEvent("Killing", "Container main failed liveness probe, will be restarted", normal=True) in box.events


@needs_namespaces
def test_until_the_startup_probe_has_passed_no_other_is_asked(box: Box) -> None:
    box.specification |= {"startupProbe": {**PROBE, "failureThreshold": 200, "exec": {"command": ["cat", "/mnt/up"]}},
                          "livenessProbe": {**PROBE, "failureThreshold": 1, "exec": {"command": ["cat", "/mnt/up"]}}}
    container = box.start("sleep 1; echo > /mnt/up; sleep 60", user=0)
    wait_for(lambda: container.state.ready)
    assert container.state.restarts == 0


@needs_namespaces
def test_a_probe_runs_in_the_container_as_its_user_and_sees_no_other_processes(box: Box) -> None:
    count = 'test "$(ls -d /proc/[0-9]* | wc -l)" -lt 9 && test "$(id -u)" = 1001'
    box.specification["readinessProbe"] = {**PROBE, "exec": {"command": ["sh", "-c", count]}}
    container = box.start("sleep 60")
    wait_for(lambda: container.state.ready)
    assert isinstance(container.state.now, Running)


# What a kubelet works out before it starts anything


@pytest.mark.parametrize(("security", "image_user", "arbitrary", "expected"), [
    ({"runAsNonRoot": True}, "tgis", None, "non-numeric user"), ({"runAsNonRoot": True}, "0", None, "run as root"),
    ({"runAsNonRoot": True, "runAsUser": 1000}, "tgis", None, 1000), ({"runAsNonRoot": True}, "1001", None, 1001),
    ({"runAsNonRoot": True}, "tgis", 1000740000, 1000740000), ({}, "0", None, 0)])
def test_an_image_whose_user_may_be_root_is_not_started_where_that_is_forbidden(
    security: Object, image_user: str, arbitrary: int | None, expected: int | str
) -> None:
    pod = {**POD, "spec": {**POD["spec"], "securityContext": security}}
    image = Image(image_user, "", ())
    if isinstance(expected, str):
        with pytest.raises(ConfigError, match=expected):
            user_of({"name": "main"}, image, pod, arbitrary)
    else:
        assert user_of({"name": "main"}, image, pod, arbitrary).user == expected


@pytest.mark.parametrize(("source", "expected"), [
    ({"fieldRef": {"fieldPath": "metadata.labels['app']"}}, "x"),
    ({"fieldRef": {"fieldPath": "metadata.labels['other']"}}, ""),
    ({"fieldRef": {"fieldPath": "metadata.annotations['a/b']"}}, "c"),
    ({"fieldRef": {"fieldPath": "status.podIP"}}, "10.244.0.9"),
    ({"secretKeyRef": {"name": "login", "key": "key"}}, "value"),
    ({"configMapKeyRef": {"name": "settings", "key": "file"}}, "content")])
def test_variables_come_from_fields_secrets_and_config_maps(source: Object, expected: str) -> None:
    container = {"env": [{"name": "A", "valueFrom": source}, {"name": "B", "value": "-$(A)-$(C)"}]}
    environment = variables(container, IMAGE, POD, "10.244.0.9", SECRETS)
    assert (environment["A"], environment["B"]) == (expected, f"-{expected}-$(C)")
    assert command_of({"args": ["$(A)"]}, ("run",), environment) == ["run", expected]


@pytest.mark.parametrize(("reference", "words"), [
    ({"name": "none", "key": "key"}, 'secret "none" not found'),
    ({"name": "login", "key": "other"}, "couldn't find key other in Secret n/login")])
def test_a_secret_or_a_key_that_is_not_there_is_told(reference: Object, words: str) -> None:
    container = {"env": [{"name": "A", "valueFrom": {"secretKeyRef": reference}}]}
    with pytest.raises(ConfigError, match=words):
        variables(container, IMAGE, POD, "", SECRETS)
    container["env"][0]["valueFrom"]["secretKeyRef"]["optional"] = True
    assert "A" not in variables(container, IMAGE, POD, "", SECRETS)


@pytest.mark.parametrize(("volume", "words"), [
    ({"secret": {"secretName": "none"}}, 'for volume "v" : secret "none" not found'),
    ({"configMap": {"name": "settings", "items": [{"key": "other", "path": "x"}]}}, "non-existent configmap key"),
])
def test_a_volume_of_something_that_is_not_there_is_not_mounted(tmp_path: Path, volume: Object, words: str) -> None:
    pod = {**POD, "spec": {"volumes": [{"name": "v", **volume}]}}
    with pytest.raises(MountFailed, match=words):
        fill_volumes(pod, tmp_path, "", SECRETS)


def test_volumes_hold_what_they_name(tmp_path: Path) -> None:
    pod = {**POD, "spec": {"volumes": [
        {"name": "a", "configMap": {"name": "settings"}}, {"name": "b", "emptyDir": {}},
        {"name": "c", "secret": {"secretName": "login", "items": [{"key": "key", "path": "deep/file"}]}}]}}
    fill_volumes(pod, tmp_path, "", SECRETS)
    assert (tmp_path / "a" / "file").read_text() == "content"
    assert (tmp_path / "c" / "deep" / "file").read_text() == "value"
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o777


# Network policies


def policy(**rules: Any) -> Object:
    return {"spec": {"podSelector": {"matchExpressions": [{"key": "app", "operator": "Exists"}]},
                     "policyTypes": ["Ingress", "Egress"], **rules}}


def test_without_a_policy_everybody_gets_in_and_with_one_only_whom_it_names() -> None:
    same, other = Caller("n"), Caller("m", {"role": "pipeline"}, {"name": "kubeflow"})
    assert admits([], POD, 8080, other)
    assert not admits([policy()], POD, 8080, same)
    here = policy(ingress=[{"from": [{"podSelector": {}}], "ports": [{"port": 8080}]}])
    assert admits([here], POD, 8080, same)
    assert not admits([here], POD, 8085, same)
    assert not admits([here], POD, 8080, other)
    there = policy(ingress=[{"from": [{"namespaceSelector": {"matchLabels": {"name": "kubeflow"}}, "podSelector": {
        "matchLabels": {"role": "pipeline"}}}]}])
    assert admits([here, there], POD, 9, other)
    assert not admits([there], POD, 9, Caller("m", {}, {"name": "kubeflow"}))


def test_a_pod_gets_out_to_the_ports_that_its_policy_names() -> None:
    only_s3 = policy(egress=[{"ports": [{"port": 8333}]}])
    assert lets_out([only_s3], POD, 8333)
    assert not lets_out([only_s3], POD, 9000)
    assert lets_out([], POD, 9000)


