"""A cluster for the tests: skipped, with the reason, where its programs are not."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llm_detox.cluster.api import Cluster
from llm_detox.errors import DetoxError
from llm_detox.recipe import Recipe
from llm_detox.serve.deployment import KserveDeployment
from llm_detox.serve.kserve.deploy import deploy_kserve
from llm_detox.serve.kserve.status import Patience
from tests.cluster.controller import Controller
from tests.cluster.place import Cloud
from tests.cluster.server import ENVTEST, ApiServer, Object, moved
from tests.conftest import REPOSITORY
from tests.manifests.kustomize import load, overlay, pick
from tests.standins.cluster.admission import Webhooks
from tests.standins.cluster.api import Api
from tests.standins.cluster.certificates import Authority

QUICK = Patience(ready=120, start=60, pending=1.0, settle=0.5, poll=0.05)
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


@dataclass
class Project:
    """A namespace with the overlay applied, its controller, and a cluster seen with the Role's own token."""

    server: ApiServer
    namespace: str
    cluster: Cluster
    controller: Controller
    admin: Cluster
    folder: Path
    asked: list[dict[str, Any]]

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
        plain["deploy"]["kserve"].update(platform="kserve", **settings)
        return Recipe.model_validate(plain)

    def probe(self, places: dict[str, str], name: str, settings: Any) -> None:
        """Stands for the generation: notes which versions would have answered it."""
        ready = {pod.metadata.annotations["llm-detox/version"] for pod in self.controller.pods(name)
                 if any(one.type == "Ready" and one.status == "True" for one in pod.status.conditions or ())}
        self.asked.append({"name": name, "versions": ready, **places})

    def live(self, name: str = "llm-detox") -> Object | None:
        live = self.admin.service(name)
        return live.manifest if live else None

    def bind_training(self, rules: list[Object] | None = None) -> None:
        """Apply the component trainjob-rights; `rules` in place of the shipped ones."""
        folder = REPOSITORY / "manifests" / "components" / "trainjob-rights"
        role, binding = moved((load(folder / name) for name in ("role.yaml", "rolebinding.yaml")), self.namespace)
        role["rules"] = role["rules"] if rules is None else rules
        self.server.kubectl("apply", "--validate=false", "-f", "-",
                            text=json.dumps({"apiVersion": "v1", "kind": "List", "items": [role, binding]}))

    def bind(self, rules: list[Object]) -> None:
        """Give the pipeline's account these rules in place of the shipped ones."""
        self.server.kubectl("apply", "--validate=false", "-f", "-", text=json.dumps({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
            "metadata": {"name": "llm-detox-deploy", "namespace": self.namespace}, "rules": rules}))


def address(version: str) -> str:
    return f"s3://llm-detox/models/{version}"


def refuse(*_: Any) -> None:
    """A model that does not answer."""
    raise DetoxError("the model's answer is empty", place="http://model", remedy="look at the training")


@pytest.fixture
def project(api_server: ApiServer, tmp_path: Path) -> Iterator[Project]:
    from kubernetes import client

    namespace = f"trial-{next(_numbers)}"
    api = api_server.client()
    core = client.CoreV1Api(api)
    core.create_namespace({"metadata": {"name": namespace}})
    objects = moved(overlay("overlays/kserve"), namespace)
    api_server.kubectl("apply", "--validate=false", "-f", "-",
                       text=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
    account = pick(objects, "RoleBinding")["subjects"][0]["name"]
    token = core.create_namespaced_service_account_token(
        account, namespace, {"spec": {"expirationSeconds": 3600, "audiences": []}}).status.token
    with Controller(api, namespace) as controller:
        yield Project(api_server, namespace, Cluster(api_server.client(token), namespace, away_seconds=60), controller,
                      Cluster(api, namespace), tmp_path, [])
