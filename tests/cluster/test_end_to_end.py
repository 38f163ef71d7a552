"""From a published model to an answer: `llm-detox deploy` in a pipeline's pod, and the model's pods really run.

Their containers are processes of this machine with the manifests' own commands, variables, volumes and probes. What
stands in for what is in `tests.standins.node.images`: Caikit and our engine are real, TGIS, vLLM, the storage
initializer and kube-rbac-proxy are not.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from llm_detox.cluster.objects import STOP
from tests.cluster.place import Cloud
from tests.cluster.pods import Published, RunningProject, running_project
from tests.manifests.kustomize import overlay, with_components
from tests.serving.running import wait_for
from tests.standins.kserve.platform import KSERVE, OPENDATAHUB
from tests.standins.node.sandbox import Refused

Object = dict[str, Any]
ASK = """
from llm_detox.client import GenerationError, TextGenerationClient
from llm_detox.client.credentials import credentials_for

url = "{url}"
options = {options}
if options is None:
    options = credentials_for(url).options()
try:
    with TextGenerationClient(url, "{name}", timeout=20, retries=0, **options) as client:
        prompt = {prompt!r}
        wanted = {{"max_new_tokens": 4, "decoding_method": "GREEDY"}}
        text = client.generate(prompt, **wanted).text
        streamed = "".join(piece.text for piece in client.stream(prompt, **wanted))
        print("same" if text == streamed else (text, streamed))
except GenerationError as error:
    print("refused:", error)
"""


@pytest.fixture
def plain(cloud: Cloud, published: Published, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningProject]:
    """Plain KServe, for Caikit and for vLLM."""
    folder = tmp_path_factory.mktemp("plain")
    objects = tuple(with_components(folder / "overlay", "overlays/kserve", ["vllm"]))
    with running_project(cloud, KSERVE, objects, published, folder) as project:
        yield project


@pytest.fixture
def openshift(cloud: Cloud, published: Published, tmp_path_factory: pytest.TempPathFactory
              ) -> Iterator[RunningProject]:
    """OpenShift AI: pods of an arbitrary user, each with the platform's proxy."""
    with running_project(cloud, OPENDATAHUB, overlay("overlays/openshift-ai"), published,
                         tmp_path_factory.mktemp("openshift")) as project:
        yield project


def rollout_of(done: subprocess.CompletedProcess[str]) -> str:
    """What `deploy` says that it did."""
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["rollout"])


def asked(project: RunningProject, url: str, *, prompt: Any = "you are", options: Object | None = None) -> str:
    """What a pod of the pipeline hears from the model; `options` in place of what it would show by itself."""
    done = project.python(ASK.format(url=url, name="llm-detox", prompt=prompt, options=options))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def host(project: RunningProject) -> str:
    return f"llm-detox-predictor.{project.here.namespace}.svc.cluster.local"


def test_caikit_in_front_of_the_engine_lives_its_whole_life(plain: RunningProject, published: Published) -> None:
    assert rollout_of(plain.deploy(published.old)) == "created"
    for url in (f"http://{host(plain)}", f"grpc://{host(plain)}:8085"):
        assert asked(plain, url) == "same"
    assert rollout_of(plain.deploy(published.old)) == "unchanged"
    assert rollout_of(plain.deploy(published.new)) == "replaced"
    failed = plain.deploy_impatiently(published.damaged)
    assert failed.returncode == 1
    assert "SHA-256 differs" in failed.stderr
    assert "serves again what it served before" in failed.stderr
    plain.here.change({"metadata": {"annotations": {STOP: "true"}}})
    wait_for(lambda: not plain.here.pods())
    started = plain.deploy(published.new)
    assert rollout_of(started) == "replaced"
    assert "it was stopped; starting it" in started.stderr


def test_vllm_lives_its_whole_life(plain: RunningProject, published: Published) -> None:
    url, chat = f"openai+http://{host(plain)}", [{"role": "user", "content": "you are"}]
    assert rollout_of(plain.deploy(published.old, serving="vllm")) == "created"
    assert asked(plain, url) == "same"
    assert asked(plain, url, prompt=chat) == "same"
    assert rollout_of(plain.deploy(published.old, serving="vllm")) == "unchanged"
    assert rollout_of(plain.deploy(published.new, serving="vllm", rollout="canary")) == "promoted"
    failed = plain.deploy_impatiently(published.damaged, serving="vllm")
    assert "SHA-256 differs" in failed.stderr
    assert "serves again what it served before" in failed.stderr
    plain.here.change({"metadata": {"annotations": {STOP: "true"}}})
    wait_for(lambda: not plain.here.pods())
    assert rollout_of(plain.deploy(published.new, serving="vllm")) == "replaced"


def test_a_protected_model_answers_with_a_token_over_tls_and_on_no_other_port(
    openshift: RunningProject, published: Published
) -> None:
    assert rollout_of(openshift.deploy(published.old, auth="on")) == "created"
    url = f"https://{host(openshift)}:8443"
    assert asked(openshift, url) == "same"
    authority = '{"ca_file": Path("/var/run/secrets/kubernetes.io/serviceaccount/service-ca.crt")}'
    assert "HTTP 401" in asked_in_words(openshift, url, authority)
    assert "certificate" in asked_in_words(openshift, url, "{}")
    assert asked_in_words(openshift, f"grpc://{host(openshift)}:8085", "{}").startswith("refused:")
    [pod] = openshift.here.pods()
    for port in (8080, 8085):  # shut in the pod itself: no network policy is asked on this way
        with pytest.raises(Refused):
            openshift.kubelet.connect(pod["status"]["podIP"], port)
    assert rollout_of(openshift.deploy(published.old, auth="on")) == "unchanged"
    assert rollout_of(openshift.deploy(published.old, auth="off")) == "replaced"
    assert asked(openshift, f"http://{host(openshift)}") == "same"
    assert asked(openshift, f"grpc://{host(openshift)}:8085") == "same"


def asked_in_words(project: RunningProject, url: str, options: str) -> str:
    """With options that are written as Python."""
    program = "from pathlib import Path\n" + ASK.format(url=url, name="llm-detox", prompt="a", options=options)
    done = project.python(program)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
