"""A cluster for the tests: skipped, with the reason, where its programs are not."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llm_detox.cluster.api import Cluster
from llm_detox.errors import DetoxError
from llm_detox.recipe import Recipe
from llm_detox.serve.deployment import KserveDeployment
from llm_detox.serve.kserve.deploy import deploy_kserve
from llm_detox.serve.kserve.render import VERSION
from llm_detox.serve.kserve.status import Patience
from llm_detox.storage.seaweed import find_weed
from tests.cluster.place import Cloud, Place, place
from tests.cluster.published import Published, published_once
from tests.cluster.server import ENVTEST, ApiServer, Object, moved
from tests.conftest import REPOSITORY
from tests.manifests.kustomize import load, overlay, pick
from tests.standins.cluster.admission import Webhooks
from tests.standins.cluster.api import Api
from tests.standins.cluster.certificates import Authority
from tests.standins.cluster.scripted import Course, ScriptedKubelet
from tests.standins.kserve.platform import KSERVE, OPENDATAHUB, Flavour
from tests.standins.node import images, sandbox

OLD, NEW = "1" * 64, "2" * 64
QUICK = Patience(ready=120, start=60, pending=2.0, failing=4.0, settle=1.0, poll=0.1)
_numbers = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    if not ENVTEST.exists():
        pytest.skip(f"no API server for tests here ({ENVTEST}); set LLM_DETOX_SHARED, or KUBEBUILDER_ASSETS beside it")
    server = ApiServer(tmp_path_factory.mktemp("envtest"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def cloud(api_server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """The API server with KServe's webhooks, for both platforms."""
    api = Api.of(api_server.kubeconfig)
    authority = Authority(tmp_path_factory.mktemp("authority"), "service CA")
    with Webhooks(api, authority):
        yield Cloud(api_server, api, authority)
    api.changes.close()


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """Models for pods that run; skipped, with the reason, where they cannot."""
    if reason := sandbox.missing() or images.caikit_is_missing():
        pytest.skip(reason)
    try:
        find_weed()
    except DetoxError as error:
        pytest.skip(str(error))
    base = tmp_path_factory.getbasetemp()
    return published_once((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "published")


@dataclass
class Project:
    """A namespace with the overlay applied and the stand-ins at work, and a cluster seen with the Role's own token.

    Args:
        here: the namespace.
        kubelet: its pods get ready soon, unless a test says otherwise.
        cluster, admin: what the pipeline's account may do, and what everybody may.
        core: the administrator's client.
        folder: for the steps' outputs.
        asked: what `probe` has noted.
    """

    here: Place
    kubelet: ScriptedKubelet
    cluster: Cluster
    admin: Cluster
    core: Any
    folder: Path
    asked: list[dict[str, Any]]

    @property
    def server(self) -> ApiServer:
        return self.here.cloud.server

    @property
    def namespace(self) -> str:
        return self.here.namespace

    def deploy(self, version: str = "1" * 64, *, probe: Callable[..., None] | None = None,
               patience: Patience = QUICK, **settings: Any) -> KserveDeployment:
        """The deploy step, for a version by its digest; `settings` go into `deploy.kserve`."""
        recipe = self.recipe(**settings)
        return deploy_kserve(
            recipe.deploy, recipe.cluster, address=address(version), output=self.folder / f"deploy-{next(_numbers)}",
            cluster=self.cluster, patience=patience, probe=probe or self.probe)

    def recipe(self, **settings: Any) -> Recipe:
        from llm_detox.recipe.files import load_recipe

        recipe = load_recipe(REPOSITORY / "recipes" / "smollm2-demo.yaml")
        plain = recipe.model_dump(mode="json")
        plain["deploy"].update(target="kserve", namespace=self.namespace)
        platform = "openshift-ai" if self.here.flavour == OPENDATAHUB else "kserve"
        plain["deploy"]["kserve"].update(platform=platform, **settings)
        return Recipe.model_validate(plain)

    def probe(self, urls: Mapping[str, str], name: str, settings: Any) -> None:
        """Stands for the generation: notes which versions would have answered it."""
        ready = {pod["metadata"]["annotations"][VERSION] for pod in self.here.pods(name) if _is_ready(pod)}
        self.asked.append({"name": name, "versions": ready, **urls})

    def play(self, course: Course, version: str = "", *, model: str | None = None) -> None:
        """From now on this happens in pods of versions that begin so."""
        self.kubelet.play(course, model=model, where=lambda pod: str(
            pod["metadata"]["annotations"].get(VERSION, "")).startswith(version))

    def live(self, name: str = "llm-detox") -> Object | None:
        live = self.admin.service(name)
        return live.manifest if live else None

    def fill_quota(self) -> None:
        """No more GPUs: Kubernetes itself then refuses the next pod."""
        hard = {"requests.nvidia.com/gpu": "1"}
        self.core.create_namespaced_resource_quota(self.namespace, {"metadata": {"name": "gpus"}, "spec": {
            "hard": hard}})
        self.core.patch_namespaced_resource_quota_status("gpus", self.namespace, {"status": {
            "hard": hard, "used": hard}})

    def bind_training(self, rules: list[Object] | None = None) -> None:
        """Apply the component trainjob-rights; `rules` in place of the shipped ones."""
        folder = REPOSITORY / "manifests" / "components" / "trainjob-rights"
        role, binding = moved((load(folder / name) for name in ("role.yaml", "rolebinding.yaml")), self.namespace)
        role["rules"] = role["rules"] if rules is None else rules
        self.server.kubectl("apply", "--validate=false", "-f", "-",
                            text=json.dumps({"apiVersion": "v1", "kind": "List", "items": [role, binding]}))

    def bind_cluster_runtimes(self) -> None:
        """Let the pipeline's account see the runtimes of the whole cluster, which only a ClusterRole can."""
        name, account = f"runtimes-{self.namespace}", {"kind": "ServiceAccount", "name": "llm-detox-pipeline"}
        rule = {"apiGroups": ["serving.kserve.io"], "resources": ["clusterservingruntimes"], "verbs": ["get"]}
        group = "rbac.authorization.k8s.io"
        self.server.kubectl("apply", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": f"{group}/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": [rule]},
            {"apiVersion": f"{group}/v1", "kind": "ClusterRoleBinding", "metadata": {"name": name},
             "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": name},
             "subjects": [{**account, "namespace": self.namespace}]}]}))

    def bind(self, rules: list[Object]) -> None:
        """Give the pipeline's account these rules in place of the shipped ones."""
        self.server.kubectl("apply", "--validate=false", "-f", "-", text=json.dumps({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
            "metadata": {"name": "llm-detox-deploy", "namespace": self.namespace}, "rules": rules}))


def address(version: str) -> str:
    return f"s3://llm-detox/models/{version}"


def live(project: Project, name: str = "llm-detox") -> Object:
    service = project.live(name)
    assert service is not None
    return service


def version_of(service: Object) -> str:
    return str(service["spec"]["predictor"]["annotations"][VERSION])


def asked_versions(project: Project) -> list[set[str]]:
    return [one["versions"] for one in project.asked]


def source_of(service: Object) -> str:
    model = service["spec"]["predictor"]["model"]
    return str(model.get("storageUri") or model["storage"]["path"])


def refuse(*_: Any) -> None:
    """A model that does not answer."""
    raise DetoxError("the model's answer is empty", place="http://model", remedy="look at the training")


@pytest.fixture
def project(cloud: Cloud, tmp_path: Path) -> Iterator[Project]:
    """On plain KServe."""
    with _project(cloud, KSERVE, "overlays/kserve", tmp_path) as made:
        yield made


@pytest.fixture
def openshift(cloud: Cloud, tmp_path: Path) -> Iterator[Project]:
    """On OpenShift AI, that is, with Open Data Hub's KServe."""
    with _project(cloud, OPENDATAHUB, "overlays/openshift-ai", tmp_path) as made:
        yield made


@pytest.fixture(params=["project", "openshift"])
def any_platform(request: pytest.FixtureRequest) -> Project:
    """The same test on plain KServe and on OpenShift AI."""
    made: Project = request.getfixturevalue(request.param)
    return made


@contextmanager
def _project(cloud: Cloud, flavour: Flavour, overlay_name: str, folder: Path) -> Iterator[Project]:
    from kubernetes import client

    with place(cloud, flavour) as (here, kubelet):
        objects = overlay(overlay_name)
        here.apply(objects)
        account = pick(objects, "RoleBinding")["subjects"][0]["name"]
        admin = cloud.server.client()
        account_cluster = Cluster(cloud.server.client(token_of(here, account)), here.namespace, away_seconds=60)
        yield Project(here, kubelet, account_cluster, Cluster(admin, here.namespace), client.CoreV1Api(admin), folder,
                      [])


def token_of(here: Place, account: str) -> str:
    """A token of a service account, which is made if it is not there."""
    metadata = {"name": account, "namespace": here.namespace}
    if here.api.get("ServiceAccount", here.namespace, account) is None:
        here.api.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": metadata,
               "spec": {"expirationSeconds": 3600}}
    return str(here.api.create(request, sub="token")["status"]["token"])


def _is_ready(pod: Object) -> bool:
    conditions = (pod.get("status") or {}).get("conditions", ())
    return any((one["type"], one["status"]) == ("Ready", "True") for one in conditions)
