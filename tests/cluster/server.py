"""A real Kubernetes API server for a test session, and projects in it."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.conftest import SHARED

ENVTEST = SHARED / "envtest" / "envtest.py"
Object = dict[str, Any]
_STOP_SECONDS = 1.0  # nothing of it is kept


class ApiServer:
    """kube-apiserver and etcd of `../shared/envtest`, with Kubernetes' own controllers and the CRDs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.kubeconfig = folder, folder / "kubeconfig"
        for command in ("start", "crds", "controllers"):
            done = subprocess.run([sys.executable, str(ENVTEST), command, str(folder)], capture_output=True, text=True,
                                  timeout=180)
            if done.returncode:
                self.stop()
                raise RuntimeError(done.stderr)
        try:
            self.wait_for_kinds()
        except BaseException:
            self.stop()
            raise

    def wait_for_kinds(self) -> None:
        """Until the kinds of all CRDs are served: discovery is a moment behind, on a busy machine a minute."""
        from kubernetes import client

        api = self.client()
        custom, extensions = client.CustomObjectsApi(api), client.ApiextensionsV1Api(api)
        until = time.monotonic() + 240
        for crd in extensions.list_custom_resource_definition().items:
            group, version, plural = crd.spec.group, crd.spec.versions[0].name, crd.spec.names.plural
            while True:
                try:
                    custom.list_cluster_custom_object(group, version, plural)
                    break
                except client.exceptions.ApiException:
                    if time.monotonic() >= until:
                        raise
                    time.sleep(0.2)

    def stop(self) -> None:
        """End all of it; an API server whose etcd went first would stay for minutes."""
        if not (self.folder / "pids").exists():
            return
        pids = [int(pid) for pid in (self.folder / "pids").read_text().split()]
        subprocess.run([sys.executable, str(ENVTEST), "stop", str(self.folder)], timeout=60)
        until = time.monotonic() + _STOP_SECONDS
        while any(_runs(pid) for pid in pids) and time.monotonic() < until:
            time.sleep(0.1)
        for pid in pids:
            if _runs(pid):
                os.kill(pid, signal.SIGKILL)

    def client(self, token: str | None = None) -> Any:
        """An ApiClient: of the administrator, or with a token."""
        from kubernetes import client

        config = json.loads(self.kubeconfig.read_text("utf-8"))
        cluster = config["clusters"][0]["cluster"]
        made = client.Configuration()
        made.host, made.ssl_ca_cert = cluster["server"], cluster["certificate-authority"]
        made.api_key = {"authorization": f"Bearer {token or config['users'][0]['user']['token']}"}
        made.retries = 0
        return client.ApiClient(made)

    def restart(self, away_seconds: float) -> None:
        """End the API server, and start it again with the same arguments; etcd keeps the data."""
        controllers, api, etcd = (int(pid) for pid in (self.folder / "pids").read_text().split())
        arguments = Path(f"/proc/{api}/cmdline").read_bytes().decode().split("\0")[:-1]
        os.kill(api, signal.SIGKILL)
        while _runs(api):
            time.sleep(0.05)
        time.sleep(away_seconds)
        with (self.folder / "apiserver.log").open("a") as log:
            again = subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        (self.folder / "pids").write_text(f"{controllers} {again.pid} {etcd}\n")

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        """Run kubectl as the administrator."""
        from tests.manifests.kustomize import kubectl

        options = ["--kubeconfig", str(self.kubeconfig), "--cache-dir", str(self.folder)]
        done = subprocess.run([kubectl(), *options, *arguments], input=text, capture_output=True, text=True,
                              timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def moved(objects: Iterable[Object], namespace: str) -> list[Object]:
    """The objects as they would be with another namespace in manifests/settings."""
    found = []
    for one in copy.deepcopy(list(objects)):
        one["metadata"]["namespace"] = namespace
        for subject in one.get("subjects", ()):
            subject["namespace"] = namespace
        found.append(one)
    return found
