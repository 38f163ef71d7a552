"""The KServe target: a published model behind an InferenceService, replaced in place or tried beside the old one.

Done means that a generation has come back from the version that was published. A version that does not get there is
taken back where one that worked was there before.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llm_detox.cluster.api import Cluster, Conflict
from llm_detox.cluster.objects import InferenceService, Manifest
from llm_detox.errors import DetoxError
from llm_detox.progress import say
from llm_detox.recipe.cluster import ConnectionSection
from llm_detox.recipe.deploy import DeploySection
from llm_detox.runs.artifacts import DeploymentFolder
from llm_detox.runs.folders import step_folder
from llm_detox.serve.deployment import KserveDeployment
from llm_detox.serve.kserve.patch import last_applied, merge_patch, with_last_applied, without_last_applied
from llm_detox.serve.kserve.render import ADDRESS, CANARY, RUN, VERSION, PublishedAddress, inference_service
from llm_detox.serve.kserve.status import Patience, noted_warnings, urls, wait_until_ready

_OURS = ("app.kubernetes.io/part-of", "llm-detox")
_CONFLICTS = 8
_ANSWER_SECONDS = 180.0
_GONE_SECONDS = 120.0
Probe = Callable[[dict[str, str], str, DeploySection], None]


def deploy_kserve(
    settings: DeploySection, connection: ConnectionSection, *, address: str, output: Path,
    cluster: Cluster | None = None, patience: Patience | None = None, probe: Probe | None = None, run: str = "",
) -> KserveDeployment:
    """Serve a published model in a cluster; returns when a generation has come back from it.

    Args:
        settings, connection: the recipe's sections `deploy` and `cluster`.
        address: what `publish` returned.
        output: a new folder: `deployment.json`.
        cluster, patience, probe: instead of the configured cluster, the recipe's patience, and a request to the model.
        run: the pipeline run that deploys; the canary carries it, for `remove_leftover`.

    Raises:
        UsageError: a name or the address cannot work.
        DetoxError: no right, no runtime, not ready, no answer. What worked before is then served again.
    """
    # Wrong names are refused before the cluster is asked anything.
    plan(settings, connection, address, namespace=settings.namespace or "default")
    cluster = cluster or Cluster.connect(settings.namespace)
    patience = patience or Patience(ready=settings.kserve.ready_seconds, pending=settings.kserve.pending_seconds)
    plain = {"deploy": settings.model_dump(mode="json"), "cluster": connection.model_dump(mode="json")}
    with step_folder(output, "deployment", settings=plain, inputs={}) as folder:
        deployed = _RollOut(settings, connection, address, cluster, patience, probe or answers, run).deploy()
        (folder / DeploymentFolder.deployment).write_text(deployed.text(), "utf-8")
        folder.finish(deployed)
    return deployed


def remove_leftover(settings: DeploySection, run: str, cluster: Cluster) -> str | None:
    """Remove the canary of a run that ended before it could; its name, or None where there is none of this run."""
    name = settings.name + CANARY
    for _ in range(_CONFLICTS):
        live = cluster.service(name)
        if live is None or live.annotations.get(RUN) != run:
            return None
        try:
            cluster.delete(name, as_read=live)
            return name
        except Conflict:
            say(f"{name}: changed meanwhile; reading it again")  # another run may have made it its own
    return None


def plan(settings: DeploySection, connection: ConnectionSection, address: str, *, namespace: str) -> list[Manifest]:
    """What `deploy_kserve` would send, without a cluster: the canary first, where the recipe wants one."""
    both = (True, False) if settings.kserve.rollout == "canary" else (False,)
    return [inference_service(settings, connection, address, namespace=namespace, canary=canary) for canary in both]


def dry_run(settings: DeploySection, connection: ConnectionSection, *, address: str,
            cluster: Cluster | None = None) -> str:
    """What `deploy_kserve` would send, as YAML, after the API server has checked it without keeping it."""
    import yaml

    cluster = cluster or Cluster.connect(settings.namespace)
    services = plan(settings, connection, address, namespace=cluster.namespace)
    for service in services:
        _apply(cluster, service, dry=True)
    return yaml.safe_dump_all(services, sort_keys=False)


def answers(places: dict[str, str], name: str, settings: DeploySection) -> None:
    """Ask the model over REST and gRPC.

    Raises:
        DetoxError: no answer, or an empty one.
    """
    from llm_detox.client import TextGenerationClient

    until = time.monotonic() + _ANSWER_SECONDS
    for protocol in ("rest", "grpc"):
        while True:
            try:
                with TextGenerationClient(places[protocol], name, timeout=60) as client:
                    text = client.generate(settings.prompt, max_new_tokens=settings.max_new_tokens).text
                break
            except DetoxError as error:
                if time.monotonic() >= until:
                    raise DetoxError(f"ready, but it does not answer: {error.message}", place=places[protocol],
                                     remedy="read the logs of both containers; from outside the cluster set "
                                            "deploy.kserve.rest_url and grpc_url") from None
            time.sleep(2)
        if not text.strip():
            raise DetoxError("the model's answer is empty", place=places[protocol],
                             remedy="choose another deploy.prompt; if all stay empty, look at the training")


@dataclass(frozen=True)
class _RollOut:
    """One version on its way into service."""

    settings: DeploySection
    connection: ConnectionSection
    address: str
    cluster: Cluster
    patience: Patience
    probe: Probe
    run: str

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def version(self) -> str:
        return PublishedAddress.parse(self.address).version

    def deploy(self) -> KserveDeployment:
        """Bring the version up, and take back what does not get there."""
        self._require_runtime()
        before = self.cluster.service(self.name)
        _require_ours(before, self.name)
        previous = before.annotations.get(ADDRESS) if before else None
        rollout = "replaced" if before else "created"
        if before and previous != self.address and self.settings.kserve.rollout == "canary":
            with self._taking_back_the_pointer(previous), self._canary():
                self._bring_up(canary=True)
            rollout = "promoted"
        with self._taking_back_the_pointer(previous), self._taking_back(before):
            live, sent = self._bring_up(canary=False)
        places = urls(live, self.settings.kserve.rest_url, self.settings.kserve.grpc_url)
        say(f"{self.name} answers at {places['rest']} (REST) and {places['grpc']} (gRPC)")
        return KserveDeployment(self.name, places["rest"], places["grpc"], self.address, self.version,
                                self.cluster.namespace, rollout if sent else "unchanged", previous)

    def _bring_up(self, *, canary: bool) -> tuple[InferenceService, bool]:
        """The service when the version has answered, and whether anything was sent for it."""
        wanted = inference_service(self.settings, self.connection, self.address, namespace=self.cluster.namespace,
                                   canary=canary)
        name = wanted["metadata"]["name"]
        if canary and self.run:
            wanted["metadata"]["annotations"][RUN] = self.run
        known = noted_warnings(self.cluster, name)
        sent = _apply(self.cluster, wanted)
        live = wait_until_ready(self.cluster, name, self.version, self.patience, known)
        kserve = self.settings.kserve
        places = urls(live) if canary else urls(live, kserve.rest_url, kserve.grpc_url)
        self.probe(places, name, self.settings)
        return live, sent

    @contextmanager
    def _canary(self) -> Iterator[None]:
        """The second InferenceService goes again, whatever happens."""
        name = self.name + CANARY
        say(f"trying the new version as {name}; {self.name} serves as before")
        try:
            yield
            say(f"{name} answered; promoting the version to {self.name}")
        except DetoxError as error:
            raise DetoxError(f"the canary failed, {self.name} was not touched: {error.message}", place=error.place,
                             remedy=error.remedy) from error
        finally:
            self.cluster.delete(name)

    @contextmanager
    def _taking_back(self, before: InferenceService | None) -> Iterator[None]:
        """Put back what was served, if it worked."""
        try:
            yield
        except (DetoxError, KeyboardInterrupt) as error:
            if before is None or not before.ready:
                raise
            say(f"{self.name}: restoring the version served before")
            outcome = self._put_back(before, wait=isinstance(error, DetoxError))
            if isinstance(error, KeyboardInterrupt):
                raise
            raise DetoxError(f"{error.message}\n  {self.name} {outcome}", place=error.place,
                             remedy=error.remedy) from error

    def _put_back(self, before: InferenceService, *, wait: bool) -> str:
        """What came of it, in words: the failure that led here is the one to report."""
        try:
            known = noted_warnings(self.cluster, self.name)
            _apply(self.cluster, _as_it_was(before))
            version = before.pod_annotations.get(VERSION)
            if wait and version is not None:
                wait_until_ready(self.cluster, self.name, version, self.patience, known)
        except DetoxError as error:
            return f"was put back to what it served before, but that is not ready: {error.message}"
        return "serves again what it served before"

    @contextmanager
    def _taking_back_the_pointer(self, previous: str | None) -> Iterator[None]:
        """In the store, too, the version that failed is not the current one any more."""
        try:
            yield
        except DetoxError:
            if previous and previous != self.address and os.environ.get("AWS_ACCESS_KEY_ID"):
                _restore_pointer(self.address, previous)
            raise

    def _require_runtime(self) -> None:
        runtime = self.settings.kserve.runtime
        if not self.cluster.has_runtime(runtime):
            raise DetoxError(f"the ServingRuntime {runtime} does not exist",
                             place=f"namespace {self.cluster.namespace}",
                             remedy="an administrator runs: kubectl apply -k manifests/overlays/"
                                    f"{self.settings.kserve.platform}")


def _apply(cluster: Cluster, wanted: Manifest, *, dry: bool = False) -> bool:
    """Create or patch, again when somebody else was faster; whether anything was sent."""
    name, wanted = wanted["metadata"]["name"], with_last_applied(wanted)
    for _ in range(_CONFLICTS):
        live = _live(cluster, name)
        try:
            if live is None:
                cluster.create(wanted, dry_run=dry)
                return True
            patch = merge_patch(last_applied(live.manifest), live.manifest, wanted)
            if not patch:
                return False
            patch.setdefault("metadata", {})["resourceVersion"] = live.resource_version
            cluster.patch(name, patch, dry_run=dry)
            return True
        except Conflict:
            say(f"{name}: somebody else changed it at the same time; reading it again")
    raise DetoxError("others keep changing the InferenceService", place=name,
                     remedy="see who does: oc get inferenceservice --show-managed-fields -o yaml")


def _live(cluster: Cluster, name: str) -> InferenceService | None:
    """The live object; one that is being removed is waited for, because a change to it would go with it."""
    until = time.monotonic() + _GONE_SECONDS
    while True:
        live = cluster.service(name)
        if live is None or not live.leaving:
            return live
        if time.monotonic() >= until:
            raise DetoxError("the InferenceService is still not removed", place=name,
                             remedy="see its finalizers: oc get inferenceservice -o yaml")
        time.sleep(0.5)


def _as_it_was(before: InferenceService) -> Manifest:
    """The parts of a live object that can be sent again."""
    manifest = without_last_applied(before.manifest)
    metadata = manifest["metadata"]
    kept = {key: metadata[key] for key in ("name", "namespace", "labels", "annotations") if key in metadata}
    return {"apiVersion": manifest["apiVersion"], "kind": manifest["kind"], "metadata": kept, "spec": manifest["spec"]}


def _require_ours(live: InferenceService | None, name: str) -> None:
    if live is not None and live.labels.get(_OURS[0]) != _OURS[1]:
        raise DetoxError("llm-detox did not create the InferenceService of this name", place=name,
                         remedy=f"choose another deploy.name, or label it {_OURS[0]}={_OURS[1]}")


def _restore_pointer(failed: str, previous: str) -> None:
    """Best effort: the cluster serves the right version already, and the message of the failure matters more."""
    from llm_detox.storage.publishing import rollback

    prefix, _, digest = previous.rpartition("/")
    if prefix != failed.rpartition("/")[0]:
        return
    try:
        rollback(prefix, digest)
    except DetoxError as error:
        say(f"the pointer in the store still names the version that failed: {error.message}")
