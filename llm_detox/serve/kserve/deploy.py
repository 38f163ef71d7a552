"""The KServe target: a published model behind an InferenceService, replaced in place or tried beside the old one.

Done means that a generation has come back from the version that was published. A version that does not get there is
taken back where one that worked was there before.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_detox.cluster.api import Cluster, Conflict
from llm_detox.errors import DetoxError
from llm_detox.progress import say
from llm_detox.recipe import Recipe
from llm_detox.recipe.cluster import ConnectionSection
from llm_detox.recipe.deploy import DeploySection
from llm_detox.runs.artifacts import DeploymentFolder
from llm_detox.runs.folders import step_folder
from llm_detox.serve.kserve.patch import last_applied, merge_patch, with_last_applied, without_last_applied
from llm_detox.serve.kserve.render import ADDRESS, CANARY, RUN, VERSION, inference_service, version_of
from llm_detox.serve.kserve.status import condition, urls
from llm_detox.serve.kserve.wait import Patience, noted_warnings, wait_until_ready

_OURS = ("app.kubernetes.io/part-of", "llm-detox")
_CONFLICTS = 8
_ANSWER_SECONDS = 180.0
_GONE_SECONDS = 120.0
Object = dict[str, Any]
Probe = Callable[[dict[str, str], str, DeploySection], None]


def deploy_kserve(
    recipe: Recipe, *, address: str, output: Path, cluster: Cluster | None = None, patience: Patience | None = None,
    probe: Probe | None = None, run: str = "",
) -> dict[str, Any]:
    """Serve a published model in a cluster; returns when a generation has come back from it.

    Args:
        recipe: its `deploy` section counts.
        address: what `publish` returned.
        output: a new folder: `deployment.json`.
        cluster, patience, probe: instead of the configured cluster, the recipe's patience, and a request to the model.
        run: the pipeline run that deploys; the canary carries it, for `remove_leftover`.

    Returns:
        `model_id`, `address`, `version`, `namespace`, `rest_url`, `grpc_url`, `rollout` ("created", "unchanged",
        "replaced", or "promoted" after a canary), `previous` (the address before; None for the first).

    Raises:
        UsageError: a name or the address cannot work.
        DetoxError: no right, no runtime, not ready, no answer. What worked before is then served again.
    """
    settings, connection = recipe.deploy, recipe.cluster
    # Wrong names are refused before the cluster is asked anything.
    plan(settings, connection, address, namespace=settings.namespace or "default")
    cluster = cluster or Cluster.connect(settings.namespace)
    patience = patience or Patience(ready=settings.kserve.ready_seconds, pending=settings.kserve.pending_seconds)
    with step_folder(output, "deployment", settings=recipe.settings("deploy"), inputs={}) as folder:
        deployment = _Deployment(settings, connection, address, cluster, patience, probe or answers, run)
        state = deployment.roll_out()
        (folder / DeploymentFolder.deployment).write_text(
            json.dumps({"schema": 1, "target": "kserve", **state}, indent=2), "utf-8")
        folder.result.update({
            "model_id": state["name"], "rest_url": state["urls"]["rest"], "grpc_url": state["urls"]["grpc"],
            **{key: state[key] for key in ("address", "version", "namespace", "rollout", "previous")}})
        return folder.result


def remove_leftover(settings: DeploySection, run: str, cluster: Cluster) -> str | None:
    """Remove the canary of a run that ended before it could; its name, or None where there is none of this run."""
    name = settings.name + CANARY
    for _ in range(_CONFLICTS):
        live = cluster.service(name)
        if live is None or live["metadata"].get("annotations", {}).get(RUN) != run:
            return None
        try:
            cluster.delete(name, as_read=live)
            return name
        except Conflict:
            say(f"{name}: changed meanwhile; reading it again")  # another run may have made it its own
    return None


def plan(settings: DeploySection, connection: ConnectionSection, address: str, *, namespace: str) -> list[Object]:
    """What `deploy_kserve` would send, without a cluster: the canary first, where the recipe wants one."""
    both = (True, False) if settings.kserve.rollout == "canary" else (False,)
    return [inference_service(settings, connection, address, namespace=namespace, canary=canary) for canary in both]


def dry_run(recipe: Recipe, *, address: str, cluster: Cluster | None = None) -> str:
    """What `deploy_kserve` would send, as YAML, after the API server has checked it without keeping it."""
    import yaml

    cluster = cluster or Cluster.connect(recipe.deploy.namespace)
    things = plan(recipe.deploy, recipe.cluster, address, namespace=cluster.namespace)
    for thing in things:
        _apply(cluster, thing, dry=True)
    return yaml.safe_dump_all(things, sort_keys=False)


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
            raise DetoxError("the model answers with nothing", place=places[protocol],
                             remedy="choose another deploy.prompt; if all stay empty, look at the training")


@dataclass(frozen=True)
class _Deployment:
    """One roll-out."""

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

    def roll_out(self) -> dict[str, Any]:
        self._require_runtime()
        before = self.cluster.service(self.name)
        _require_ours(before, self.name)
        previous = (before or {}).get("metadata", {}).get("annotations", {}).get(ADDRESS)
        how = "replaced" if before else "created"
        if before and previous != self.address and self.settings.kserve.rollout == "canary":
            with self._taking_back_the_pointer(previous), self._canary():
                self._bring_up(canary=True)
            how = "promoted"
        with self._taking_back_the_pointer(previous), self._taking_back(before):
            live, sent = self._bring_up(canary=False)
        places = urls(live, self.settings.kserve.rest_url, self.settings.kserve.grpc_url)
        say(f"{self.name} answers at {places['rest']} (REST) and {places['grpc']} (gRPC)")
        return {"name": self.name, "namespace": self.cluster.namespace, "address": self.address,
                "version": version_of(self.address), "urls": places, "previous": previous,
                "rollout": how if sent else "unchanged"}

    def _bring_up(self, *, canary: bool) -> tuple[Object, bool]:
        wanted = inference_service(self.settings, self.connection, self.address, namespace=self.cluster.namespace,
                                   canary=canary)
        name = wanted["metadata"]["name"]
        if canary and self.run:
            wanted["metadata"]["annotations"][RUN] = self.run
        known = noted_warnings(self.cluster, name)
        sent = _apply(self.cluster, wanted)
        live = wait_until_ready(self.cluster, name, version_of(self.address), self.patience, known)
        kserve = self.settings.kserve
        places = urls(live) if canary else urls(live, kserve.rest_url, kserve.grpc_url)
        self.probe(places, name, self.settings)
        return live, sent

    @contextmanager
    def _canary(self) -> Iterator[None]:
        """The second InferenceService goes again, whatever happens."""
        name = self.name + CANARY
        say(f"trying the new version as {name}; {self.name} goes on as it is")
        try:
            yield
            say(f"{name} answered; promoting the version to {self.name}")
        except DetoxError as error:
            raise DetoxError(f"the canary failed, {self.name} was not touched: {error.message}", place=error.place,
                             remedy=error.remedy) from error
        finally:
            self.cluster.delete(name)

    @contextmanager
    def _taking_back(self, before: Object | None) -> Iterator[None]:
        """Put back what was served, if it worked."""
        try:
            yield
        except (DetoxError, KeyboardInterrupt) as error:
            if before is None or condition(before, "Ready").get("status") != "True":
                raise
            say(f"{self.name}: putting back what was served before")
            outcome = self._put_back(before, wait=isinstance(error, DetoxError))
            if isinstance(error, KeyboardInterrupt):
                raise
            raise DetoxError(f"{error.message}\n  {self.name} {outcome}", place=error.place,
                             remedy=error.remedy) from error

    def _put_back(self, before: Object, *, wait: bool) -> str:
        """What came of it, in words: the failure that led here is the one to report."""
        try:
            known = noted_warnings(self.cluster, self.name)
            _apply(self.cluster, _as_it_was(before))
            version = before["spec"]["predictor"].get("annotations", {}).get(VERSION)
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
        if self.cluster.runtime(runtime) is None:
            raise DetoxError(f"the ServingRuntime {runtime} is not there", place=f"namespace {self.cluster.namespace}",
                             remedy="an administrator runs: kubectl apply -k manifests/overlays/"
                                    f"{self.settings.kserve.platform}")


def _apply(cluster: Cluster, wanted: Object, *, dry: bool = False) -> bool:
    """Create or patch, again when somebody else was faster; whether anything was sent."""
    name, wanted = wanted["metadata"]["name"], with_last_applied(wanted)
    for _ in range(_CONFLICTS):
        live = _settled(cluster, name)
        try:
            if live is None:
                cluster.create(wanted, dry_run=dry)
                return True
            patch = merge_patch(last_applied(live), live, wanted)
            if not patch:
                return False
            patch.setdefault("metadata", {})["resourceVersion"] = live["metadata"]["resourceVersion"]
            cluster.patch(name, patch, dry_run=dry)
            return True
        except Conflict:
            say(f"{name}: somebody else changed it at the same time; reading it again")
    raise DetoxError("others keep changing the InferenceService", place=name,
                     remedy="see who does: oc get inferenceservice --show-managed-fields -o yaml")


def _settled(cluster: Cluster, name: str) -> Object | None:
    """The live object; one that is being removed is waited for, because a change to it would go with it."""
    until = time.monotonic() + _GONE_SECONDS
    while True:
        live = cluster.service(name)
        if live is None or "deletionTimestamp" not in live["metadata"]:
            return live
        if time.monotonic() >= until:
            raise DetoxError("the InferenceService is being removed, and does not go", place=name,
                             remedy="see its finalizers: oc get inferenceservice -o yaml")
        time.sleep(0.5)


def _as_it_was(before: Object) -> Object:
    """The parts of a live object that can be sent again."""
    metadata = without_last_applied(before)["metadata"]
    kept = {key: metadata[key] for key in ("name", "namespace", "labels", "annotations") if key in metadata}
    return {"apiVersion": before["apiVersion"], "kind": before["kind"], "metadata": kept, "spec": before["spec"]}


def _require_ours(live: Object | None, name: str) -> None:
    if live is not None and live["metadata"].get("labels", {}).get(_OURS[0]) != _OURS[1]:
        raise DetoxError("an InferenceService of this name is there that llm-detox did not make", place=name,
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
