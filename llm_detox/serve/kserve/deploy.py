"""The KServe target: a published model behind an InferenceService, replaced in place or tried beside the old one.

Done means that a generation has come back from the version that was published. A version that does not get there is
taken back where one that worked was there before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from llm_detox.cluster.api import Cluster, Conflict, NoRight
from llm_detox.cluster.objects import InferenceService
from llm_detox.errors import DetoxError, UsageError
from llm_detox.processes import interrupted_by_sigterm
from llm_detox.progress import say
from llm_detox.recipe.cluster import ConnectionSection
from llm_detox.recipe.deploy import DeploySection, KserveSection
from llm_detox.runs.artifacts import DeploymentFolder
from llm_detox.runs.folders import step_folder
from llm_detox.serve.deployment import KserveDeployment
from llm_detox.serve.kserve.apply import apply, put_back, wait_while_leaving
from llm_detox.serve.kserve.probe import addresses, require_answers
from llm_detox.serve.kserve.render import (
    ADDRESS,
    CANARY,
    RUN,
    SPEC,
    STACKS,
    PublishedAddress,
    Wanted,
    inference_service,
)
from llm_detox.serve.kserve.status import Patience, noted_warnings, wait_until_ready
from llm_detox.serve.kserve.typed import require_known_fields

_OURS = ("app.kubernetes.io/part-of", "llm-detox")
_CONFLICTS = 8
Probe = Callable[[Mapping[str, str], str, DeploySection], None]


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
        roll_out = _RollOut(settings, connection, address, cluster, patience, probe or require_answers, run)
        with interrupted_by_sigterm():  # a pod that is told to end puts back what it has not verified
            deployed = roll_out.deploy()
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


def plan(settings: DeploySection, connection: ConnectionSection, address: str, *, namespace: str) -> list[Wanted]:
    """What `deploy_kserve` would want, without a cluster: the canary first, where the recipe wants one."""
    both = (True, False) if settings.kserve.rollout == "canary" else (False,)
    return [inference_service(settings, connection, address, namespace=namespace, canary=canary) for canary in both]


def dry_run(settings: DeploySection, connection: ConnectionSection, *, address: str,
            cluster: Cluster | None = None) -> str:
    """What `deploy_kserve` would send, as YAML, after the API server has checked it without keeping it."""
    import yaml

    cluster = cluster or Cluster.connect(settings.namespace)
    wishes = plan(settings, connection, address, namespace=cluster.namespace)
    for wanted in wishes:
        apply(cluster, wanted, dry_run=True)
    return yaml.safe_dump_all((wanted.first() for wanted in wishes), sort_keys=False)


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
        with suppress(NoRight):  # KServe will say
            require_runtime(self.cluster, self.settings.kserve)
        before = wait_while_leaving(self.cluster, self.name)
        _require_ours(before, self.name)
        previous = before.annotations.get(ADDRESS) if before else None
        rollout = "replaced" if before else "created"
        if before and previous != self.address and self.settings.kserve.rollout == "canary":
            with self._taking_back_the_pointer(previous), self._canary():
                self._bring_up(self._wanted(before, canary=True))
            rollout = "promoted"
        wanted = self._wanted(before)
        require_known_fields(wanted.first())
        with self._taking_back_the_pointer(previous), self._taking_back(before, wanted):
            live, changed = self._bring_up(wanted)
        urls = addresses(live, self.settings.kserve)
        say(f"{self.name} answers at {', '.join(urls.values())}")
        rest = (urls.get("rest") or urls["openai"]).removeprefix("openai+")
        return KserveDeployment(self.name, rest, urls.get("grpc"), urls, self.address, self.version,
                                self.cluster.namespace, rollout if changed else "unchanged", previous)

    def _wanted(self, before: InferenceService | None, *, canary: bool = False) -> Wanted:
        wanted = inference_service(
            self.settings, self.connection, self.address, namespace=self.cluster.namespace, canary=canary,
            protected=before is not None and before.is_protected, exposed=before is not None and before.is_exposed)
        if canary and self.run:
            wanted.meant["metadata"]["annotations"][RUN] = self.run
        return wanted

    def _bring_up(self, wanted: Wanted) -> tuple[InferenceService, bool]:
        """The service when the version has answered, and whether anything changed for it."""
        name, kserve = wanted.name, self.settings.kserve
        known = noted_warnings(self.cluster, name)
        changed = apply(self.cluster, wanted)
        live = wait_until_ready(self.cluster, name, wanted.digest, self.patience, known)
        if name != self.name:  # the recipe's addresses are those of the model, not of its canary
            kserve = kserve.model_copy(update={"rest_url": None, "grpc_url": None})
        self.probe(addresses(live, kserve), name, self.settings)
        return live, changed

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
    def _taking_back(self, before: InferenceService | None, wanted: Wanted) -> Iterator[None]:
        """Put back what was served, if it worked, and what was stopped."""
        try:
            yield
        except (DetoxError, KeyboardInterrupt) as error:
            if before is None or not (before.ready or before.is_stopped):
                raise
            say(f"{self.name}: restoring the version served before")
            outcome = self._put_back(before, wanted, wait=isinstance(error, DetoxError))
            if isinstance(error, KeyboardInterrupt):
                raise
            raise DetoxError(f"{error.message}\n  {self.name} {outcome}", place=error.place,
                             remedy=error.remedy) from error

    def _put_back(self, before: InferenceService, wanted: Wanted, *, wait: bool) -> str:
        """What came of it, in words: the failure that led here is the one to report."""
        try:
            known = noted_warnings(self.cluster, self.name)
            put_back(self.cluster, before, wanted)
            if before.is_stopped:
                return "is stopped again"
            if wait:
                wait_until_ready(self.cluster, self.name, before.pod_annotations.get(SPEC), self.patience, known)
        except DetoxError as error:
            return f"was put back to what it served before, but that is not ready: {error.message}"
        return "serves again what it served before"

    @contextmanager
    def _taking_back_the_pointer(self, previous: str | None) -> Iterator[None]:
        """In the store, too, the version that failed is not the current one any more."""
        try:
            yield
        except (DetoxError, KeyboardInterrupt):
            if previous and previous != self.address and os.environ.get("AWS_ACCESS_KEY_ID"):
                _restore_pointer(self.address, previous)
            raise


def require_runtime(cluster: Cluster, kserve: KserveSection) -> str:
    """Before anything is made: is the runtime there, and does it take the model's format?

    Returns:
        Its name.

    Raises:
        DetoxError: it is not there, or takes other formats.
        NoRight: the recipe names one that is not in the project, and this account may not look whether the cluster has
            it.
    """
    stack, place = STACKS[kserve.serving], f"namespace {cluster.namespace}"
    name = kserve.runtime or stack.runtime
    try:
        runtime = cluster.runtime(name)
    except NoRight:
        if kserve.runtime is not None:
            raise
        runtime = None  # ours is applied with the project's overlay
    if runtime is None:
        raise DetoxError(f"there is no ServingRuntime {name}", place=place, remedy=_remedy(kserve))
    if stack.model_format not in runtime.formats:
        raise UsageError(f"the runtime {name} does not take the format {stack.model_format}, but "
                         f"{', '.join(runtime.formats) or 'none'}", place=place,
                         remedy="set deploy.kserve.serving to the stack of this runtime, or take another one")
    return name


def _remedy(kserve: KserveSection) -> str:
    if kserve.runtime:
        return "set deploy.kserve.runtime to one of: oc get servingruntimes,clusterservingruntimes"
    component = " with the component vllm" if kserve.serving == "vllm" else ""
    return f"an administrator runs: kubectl apply -k manifests/overlays/{kserve.platform}{component}"


def _require_ours(live: InferenceService | None, name: str) -> None:
    if live is not None and live.labels.get(_OURS[0]) != _OURS[1]:
        raise DetoxError("llm-detox did not create the InferenceService of this name", place=name,
                         remedy=f"choose another deploy.name, or label it {_OURS[0]}={_OURS[1]}")


def _restore_pointer(failed: str, previous: str) -> None:
    """Best effort: the cluster serves the right version already, and the message of the failure matters more."""
    from llm_detox.storage.publishing import rollback

    prefix, _, digest = previous.rpartition("/")
    if PublishedAddress.parse(previous).is_image or prefix != failed.rpartition("/")[0]:
        return
    try:
        rollback(prefix, digest)
    except DetoxError as error:
        say(f"the pointer in the store still names the version that failed: {error.message}")
