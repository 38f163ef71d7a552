"""Projects whose pods run, and commands that run as a pod of the pipeline."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.cluster.conftest import token_of
from tests.cluster.place import Cloud, Place, place
from tests.cluster.published import BUCKET, Published
from tests.conftest import REPOSITORY
from tests.manifests.kustomize import pick
from tests.serving.running import wait_for
from tests.standins.kserve.platform import OPENDATAHUB, Flavour
from tests.standins.node.enter import Mount, Spec
from tests.standins.node.kubelet import ProcessKubelet
from tests.standins.node.network import Network

Object = dict[str, Any]
_numbers = itertools.count(1)
_ENTER = REPOSITORY / "tests" / "standins" / "node" / "enter.py"
_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
_ARBITRARY_USER = 1_000_740_000  # OpenShift gives each project a range like this


_IMPATIENT = """
from pathlib import Path
from llm_detox.errors import DetoxError
from llm_detox.recipe.cluster import ConnectionSection
from llm_detox.recipe.deploy import DeploySection
from llm_detox.serve.kserve.deploy import deploy_kserve
from llm_detox.serve.kserve.status import Patience

settings = DeploySection.model_validate({{"target": "kserve", "namespace": "{namespace}", "kserve": {kserve!r}}})
try:
    deploy_kserve(settings, ConnectionSection(), address="{address}", output=Path("/data/deploy-{number}"),
                  patience=Patience(ready=150, failing=15, settle=3, poll=0.3))
except DetoxError as error:
    raise SystemExit(str(error))
"""


@dataclass(frozen=True)
class RunningProject:
    """A project whose pods run, and the way to them."""

    here: Place
    kubelet: ProcessKubelet
    network: Network
    account: str
    folder: Path

    def command(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command as a pod of the pipeline's account would: with its token, and the cluster's names."""
        work = self.folder / f"command-{next(_numbers)}"
        work.mkdir()
        spec = Spec(
            str(work), os.getpid(), self._mounts(), read_only_root=False, user=0, group=0, more_groups=[], cwd="/data",
            command=list(command), environment={**self._environment(), **environment})
        file = work / "spec.json"
        file.write_text(json.dumps(asdict(spec)), "utf-8")
        held, end = os.pipe()
        try:
            return subprocess.run([sys.executable, "-S", "-E", str(_ENTER), str(file)], stdin=held,
                                  capture_output=True, text=True, timeout=400)
        finally:
            os.close(held)
            os.close(end)

    def deploy(self, address: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """`llm-detox deploy`; settings go into `deploy.kserve`."""
        given = {"platform": self._platform, "gpus": "0", **settings}
        output = f"/data/deploy-{next(_numbers)}"
        return self.command(
            "llm-detox", "deploy", "--address", address, "--output", output, "--json",
            "--recipe", str(REPOSITORY / "recipes" / "smollm2-demo.yaml"),
            "--set", "deploy.target=kserve", "--set", f"deploy.namespace={self.here.namespace}",
            *(part for name, value in given.items() for part in ("--set", f"deploy.kserve.{name}={value}")))

    def deploy_impatiently(self, address: str, **settings: Any) -> subprocess.CompletedProcess[str]:
        """The same step, which gives up soon where a container fails again and again."""
        given = {"platform": self._platform, "gpus": 0, **settings}
        return self.python(_IMPATIENT.format(address=address, namespace=self.here.namespace, kserve=given,
                                             number=next(_numbers)))

    def python(self, program: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a Python program as a pod of the pipeline's account would."""
        return self.command("python", "-c", program, **environment)

    @property
    def _platform(self) -> str:
        return "openshift-ai" if self.here.flavour == OPENDATAHUB else "kserve"

    def _environment(self) -> dict[str, str]:
        _, _, port = self.here.api.host.rpartition(":")
        return {"PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin", "HOME": "/data",
                "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1",
                "KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": port}

    def _mounts(self) -> list[Mount]:
        account, data = self.folder / "account", self.folder / "data"
        account.mkdir(exist_ok=True)
        data.mkdir(exist_ok=True)
        files = {"token": token_of(self.here, self.account), "namespace": self.here.namespace,
                 "ca.crt": Path(self.here.api.authority).read_text("utf-8")}
        if self.here.flavour == OPENDATAHUB:
            files["service-ca.crt"] = self.here.cloud.authority.pem().decode()
        for name, content in files.items():
            (account / name).write_text(content, "utf-8")
        return [Mount(str(account), _ACCOUNT, read_only=True), Mount(str(data), "/data", read_only=False),
                Mount(str(self.network.hosts), "/etc/hosts", read_only=True)]


@contextmanager
def running_project(cloud: Cloud, flavour: Flavour, objects: tuple[Object, ...], published: Published,
                    folder: Path, *, factor: float = 5.0) -> Iterator[RunningProject]:
    """A namespace with these objects (an overlay's), whose pods run."""
    arbitrary = _ARBITRARY_USER if flavour == OPENDATAHUB else None
    connection = {"AWS_ACCESS_KEY_ID": published.store.access_key, "AWS_SECRET_ACCESS_KEY": published.store.secret_key,
                  "AWS_S3_ENDPOINT": published.store.endpoint, "AWS_S3_BUCKET": BUCKET,
                  "AWS_DEFAULT_REGION": "us-east-1"}

    def kubelet(api: Any, namespace: str) -> ProcessKubelet:
        return ProcessKubelet(api, namespace, published.store, factor, arbitrary)

    with place(cloud, flavour, kubelet, connection=connection) as (here, node):
        here.apply(objects)
        if flavour == OPENDATAHUB:
            wait_for(lambda: here.api.get("Secret", here.namespace, "storage-config"))
        account = pick(objects, "RoleBinding")["subjects"][0]["name"]
        with Network(here.api, here.namespace, node.connect, folder) as network:
            assert isinstance(network, Network)
            yield RunningProject(here, node, network, account, folder)
