"""The few calls to a cluster that a deployment needs: repeated while the API server is away, and clear when refused."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from llm_detox.cluster.objects import (
    Deployment,
    Event,
    InferenceService,
    Manifest,
    Pod,
    Runtime,
    TrainJob,
)
from llm_detox.errors import DetoxError
from llm_detox.progress import say

GROUP = "serving.kserve.io"
JOB_SET_LABEL = "jobset.sigs.k8s.io/jobset-name"  # of the pods of a TrainJob
FIELD_MANAGER = "llm-detox"  # whose fields those are that a deployment sets
_SERVICES, _RUNTIMES = (GROUP, "v1beta1", "inferenceservices"), (GROUP, "v1alpha1", "servingruntimes")
_CLUSTER_RUNTIMES = (GROUP, "v1alpha1", "clusterservingruntimes")
_TRAIN_JOBS = ("trainer.kubeflow.org", "v1alpha1", "trainjobs")
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TIMEOUT = (5, 30)
_AWAY = {429, 500, 502, 503, 504}
_UNKNOWN_FIELD = "failed to create typed patch object"  # told with 500: the kind has no such field here
# An API server that has just come back knows neither its roles nor its custom kinds for a moment.
_WAKING, _WAKING_SECONDS = {401, 403, 404}, 30.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0
T = TypeVar("T")


class Conflict(DetoxError):
    """Somebody else changed or made the object meanwhile; read it again."""


@dataclass(frozen=True)
class FieldOwner:
    """A field of an object, and the field manager that set it."""

    manager: str
    field: str


class NoRight(DetoxError):
    """This login may not do it."""


class UnknownKind(DetoxError):
    """The cluster does not know this kind of object."""


class FieldConflict(Conflict):
    """An apply names fields that others have set to other values."""

    def __init__(self, message: str, owners: Sequence[FieldOwner]) -> None:
        super().__init__(message)
        self.owners = tuple(owners)


class Cluster:
    """One namespace of a cluster.

    Args:
        api: a `kubernetes.client.ApiClient`.
        namespace: the project.
        away_seconds: how long the API server may be away (a restart, an upgrade) before a call is given up.
    """

    def __init__(self, api: Any, namespace: str, *, away_seconds: float = 180.0) -> None:
        from kubernetes import client

        self._core, self._custom = client.CoreV1Api(api), client.CustomObjectsApi(api)
        self._api, self._errors = api, client.exceptions.ApiException
        self.namespace, self._away_seconds, self._awake_at = namespace, away_seconds, 0.0

    @classmethod
    def connect(cls, namespace: str | None = None, *, away_seconds: float = 180.0) -> Cluster:
        """From inside a pod by its account, else by the kubeconfig.

        Args:
            namespace: the project; None takes the pod's own or that of the kubeconfig's context.
            away_seconds: see the class.

        Raises:
            DetoxError: no cluster is configured, or no namespace is known.
        """
        try:
            from kubernetes import client, config
        except ImportError:
            raise DetoxError("the Kubernetes client is not installed",
                             remedy="pip install 'llm-detox[deploy]'") from None
        if "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
            try:
                config.load_incluster_config()
            except config.ConfigException as error:
                raise DetoxError(f"this pod has no account for the cluster: {error}", place=str(_ACCOUNT),
                                 remedy="let the pod mount the token of its account") from None
            own = _ACCOUNT / "namespace"
            known = _known(namespace or (own.read_text("utf-8") if own.exists() else None))
            return cls(client.ApiClient(), known, away_seconds=away_seconds)
        try:
            config.load_kube_config()
            context = config.list_kube_config_contexts()[1]["context"]
        except (config.ConfigException, OSError) as error:
            raise DetoxError(f"no cluster is configured: {error}", place=os.environ.get("KUBECONFIG", "~/.kube/config"),
                             remedy="log in (oc login), or set KUBECONFIG; --set deploy.target=local needs no cluster"
                             ) from None
        return cls(client.ApiClient(), _known(namespace or context.get("namespace")), away_seconds=away_seconds)

    def service(self, name: str) -> InferenceService | None:
        """An InferenceService, or None."""
        live = self._get(_SERVICES, name)
        return InferenceService.of(live) if live else None

    def deployment(self, name: str) -> Deployment | None:
        """The Deployment behind an InferenceService, or None while there is none."""
        from kubernetes import client

        live = self._call("get", "deployments", lambda **options: client.AppsV1Api(
            self._api).read_namespaced_deployment(f"{name}-predictor", self.namespace, **options), missing=None)
        return Deployment.of(self._api.sanitize_for_serialization(live)) if live else None

    def runtime(self, name: str) -> Runtime | None:
        """The ServingRuntime of this name, else the ClusterServingRuntime; None where neither is there.

        Raises:
            NoRight: the first is not there, and this login may not look for the second.
        """
        live = self._get(_RUNTIMES, name)
        if live is None:
            group, version, plural = _CLUSTER_RUNTIMES
            live = self._call("get", plural, lambda **options: self._custom.get_cluster_custom_object(
                group, version, plural, name, **options), missing=None)
        return Runtime.of(live) if live else None

    def train_job(self, name: str) -> TrainJob | None:
        """A TrainJob, or None."""
        live = self._get(_TRAIN_JOBS, name)
        return TrainJob.of(live) if live else None

    def train_jobs(self, selector: str) -> list[TrainJob]:
        """The TrainJobs with these labels."""
        group, version, plural = _TRAIN_JOBS
        answer = self._call("list", plural, lambda **options: self._custom.list_namespaced_custom_object(
            group, version, self.namespace, plural, label_selector=selector, **options))
        return [TrainJob.of(one) for one in answer["items"]]

    def apply(self, service: Manifest, *, manager: str = FIELD_MANAGER, force: bool = False,
              dry_run: bool = False) -> InferenceService:
        """Make an InferenceService, or set the fields that are named, and drop those that this manager named before.

        That is Kubernetes' server-side apply: what others set stays. A field that does not exist is refused.

        Args:
            service: the fields that are meant, no others.
            manager: whose they become.
            force: take fields from others who have set them to other values.
            dry_run: the API server checks it and keeps nothing.

        Raises:
            FieldConflict: others have set some of them to other values, and `force` is not set.
        """
        group, version, plural = _SERVICES
        path = f"/apis/{group}/{version}/namespaces/{self.namespace}/{plural}/{service['metadata']['name']}"
        query = [("fieldManager", manager), ("fieldValidation", "Strict"), ("force", str(force).lower()),
                 *([("dryRun", "All")] if dry_run else [])]
        headers = {"Content-Type": "application/apply-patch+yaml", "Accept": "application/json"}
        live: Manifest = self._call("patch", plural, lambda **options: self._api.call_api(
            path, "PATCH", query_params=query, header_params=headers, body=service, response_type="object",
            auth_settings=["BearerToken"], _return_http_data_only=True, **options))
        return InferenceService.of(live)

    def create_train_job(self, job: Manifest, *, dry_run: bool = False) -> None:
        """Make a TrainJob.

        Raises:
            Conflict: it is there already.
        """
        group, version, plural = _TRAIN_JOBS
        self._call("create", plural, lambda **options: self._custom.create_namespaced_custom_object(
            group, version, self.namespace, plural, job, **options), dry_run=dry_run)

    def patch(self, name: str, patch: Manifest) -> None:
        """Send a merge patch to an InferenceService: the fields are set, whoever has set them before."""
        group, version, plural = _SERVICES
        self._call("patch", plural, lambda **options: self._custom.patch_namespaced_custom_object(
            group, version, self.namespace, plural, name, patch, field_manager=FIELD_MANAGER, **options))

    def delete(self, name: str, *, as_read: InferenceService | None = None) -> None:
        """Remove an InferenceService; it is fine if it is not there.

        Raises:
            Conflict: it is not any more as it was read.
        """
        self._delete(_SERVICES, name, as_read)

    def delete_train_job(self, name: str) -> None:
        """Remove a TrainJob with its pods; it is fine if it is not there."""
        self._delete(_TRAIN_JOBS, name)

    def pods(self, name: str) -> list[Pod]:
        """The pods of an InferenceService."""
        return self._pods(f"{GROUP}/inferenceservice={name}")

    def pods_of_train_job(self, name: str) -> list[Pod]:
        """The pods of a TrainJob's nodes, those that have failed too."""
        return self._pods(f"{JOB_SET_LABEL}={name}")

    def pods_of_run(self, run: str) -> list[Pod]:
        """The pods of a pipeline run, those that have ended too."""
        return self._pods(f"pipeline/runid={run}")

    def warnings(self, name: str) -> list[Event]:
        """Events of kind Warning about an InferenceService and what was made for it."""
        answer = self._call("list", "events", lambda **options: self._core.list_namespaced_event(
            self.namespace, field_selector="type=Warning", **options))
        owned = (f"{name}-predictor", f"{name}-transformer")
        events = [Event.of(one) for one in self._items(answer)]
        return [event for event in events if event.about == name or event.about.startswith(owned)]

    def read(self, path: str, plural: str) -> Manifest | None:
        """Any object of the API, by its path; None where it is not there.

        Args:
            path: as `/api/v1/namespaces/project/secrets/name`.
            plural: what it is, for messages.

        Raises:
            NoRight: this login may not look.
        """
        read: Manifest | None = self._call("get", plural, lambda **options: self._api.call_api(
            path, "GET", response_type="object", auth_settings=["BearerToken"], _return_http_data_only=True,
            **options), missing=None)
        return read

    def send(self, path: str, plural: str, body: Manifest) -> Manifest:
        """Post to the API, for reviews, which keep nothing."""
        answer: Manifest = self._call("create", plural, lambda **options: self._api.call_api(
            path, "POST", body=body, response_type="object", auth_settings=["BearerToken"],
            _return_http_data_only=True, **options))
        return answer

    def _pods(self, selector: str) -> list[Pod]:
        answer = self._call("list", "pods", lambda **options: self._core.list_namespaced_pod(
            self.namespace, label_selector=selector, **options))
        return [Pod.of(one) for one in self._items(answer)]

    def _items(self, answer: Any) -> list[Manifest]:
        """The objects of the client's answer, as their YAML has them."""
        return list(self._api.sanitize_for_serialization(answer)["items"])

    def _get(self, kind: tuple[str, str, str], name: str) -> Manifest | None:
        group, version, plural = kind
        live: Manifest | None = self._call("get", plural, lambda **options: self._custom.get_namespaced_custom_object(
            group, version, self.namespace, plural, name, **options), missing=None)
        return live

    def _delete(self, kind: tuple[str, str, str], name: str, as_read: InferenceService | None = None) -> None:
        group, version, plural = kind
        seen = {"preconditions": {"resourceVersion": as_read.resource_version}} if as_read else {}
        self._call("delete", plural, lambda **options: self._custom.delete_namespaced_custom_object(
            group, version, self.namespace, plural, name, body=seen, **options), missing=None)

    def _call(self, verb: str, plural: str, call: Callable[..., Any], *, dry_run: bool = False,
              missing: Any = Ellipsis) -> Any:
        from urllib3.exceptions import HTTPError

        options = {"_request_timeout": _TIMEOUT, **({"dry_run": "All"} if dry_run else {})}
        until, pause, said = time.monotonic() + self._away_seconds, _FIRST_PAUSE, False
        while True:
            try:
                return call(**options)
            except self._errors as error:
                if error.status == 404 and missing is not Ellipsis and not _is_unknown_kind(error):
                    return missing
                if error.status == 409:
                    raise _conflict(error) from None
                waking = error.status in _WAKING and time.monotonic() < self._awake_at
                away = error.status in _AWAY and _UNKNOWN_FIELD not in _message(error)
                if not (away or waking) or time.monotonic() >= until:
                    raise self._explain(verb, plural, error) from None
            except HTTPError as error:
                if "certificate" in str(error).lower() or time.monotonic() >= until:
                    raise self._unreachable(error) from None
                self._awake_at = time.monotonic() + _WAKING_SECONDS
            if not said:
                say("the cluster does not answer; trying again")
                said = True
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _unreachable(self, error: Exception) -> DetoxError:
        host = self._api.configuration.host
        if "certificate" in str(error).lower():
            return DetoxError("the cluster's certificate is not trusted", place=host,
                              remedy="log in again with the right CA (oc login --certificate-authority)")
        return DetoxError(f"the cluster does not answer ({type(error).__name__})", place=host,
                          remedy="check the network and the login")

    def _explain(self, verb: str, plural: str, error: Any) -> DetoxError:
        place, message = f"namespace {self.namespace}", _message(error)
        if error.status == 401:
            return DetoxError("the cluster does not know this login", place=self._api.configuration.host,
                              remedy="log in again (oc login); tokens expire")
        if error.status == 403 and "exceeded quota" not in message:
            overlay, role = (
                ("an overlay with the component trainjob-rights", "llm-detox-train") if plural == "trainjobs"
                else ("manifests/overlays/openshift-ai (or overlays/kserve)", "llm-detox-deploy"))
            return NoRight(f"no right to {verb} {plural}", place=place,
                              remedy=f"an administrator of the project runs: kubectl apply -k {overlay}, and binds the "
                                     f"Role {role} to this account. The cluster said: {message}")
        if error.status == 404 and _is_unknown_kind(error):
            return _unknown_kind(plural, self._api.configuration.host)
        return DetoxError(f"the cluster refuses to {verb} {plural}: {message}", place=place,
                          remedy="correct what it names" if error.status < 500 or _UNKNOWN_FIELD in message
                          else "try again later")


def _unknown_kind(plural: str, host: str) -> UnknownKind:
    if plural == "trainjobs":
        return UnknownKind("Kubeflow Trainer is not installed in this cluster", place=host,
                           remedy="install it (DataScienceCluster, trainer: Managed), or --set training.job.nodes=1")
    if plural in ("inferenceservices", "servingruntimes", "clusterservingruntimes"):
        return UnknownKind("KServe is not installed in this cluster", place=host,
                           remedy="install it, or enable it in OpenShift AI (DataScienceCluster, kserve: Managed)")
    return UnknownKind(f"the cluster does not know {plural}", place=host)


def _conflict(error: Any) -> Conflict:
    """A 409: of server-side apply, with the owners of the fields, or of an object that has changed."""
    try:
        causes = (json.loads(error.body).get("details") or {}).get("causes") or ()
    except (TypeError, ValueError):
        causes = ()
    owners = [FieldOwner(cause["message"].partition('conflict with "')[2].partition('"')[0], cause["field"])
              for cause in causes if cause.get("reason") == "FieldManagerConflict"]
    return FieldConflict(_message(error), owners) if owners else Conflict(_message(error))


def _is_unknown_kind(error: Any) -> bool:
    """A 404 for the whole kind, not for one object, is plain text."""
    return "page not found" in str(error.body)


def _message(error: Any) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason)


def _known(namespace: str | None) -> str:
    if not namespace:
        raise DetoxError("no namespace is given", remedy="--set deploy.namespace=<project>, or oc project <project>")
    return namespace.strip()
