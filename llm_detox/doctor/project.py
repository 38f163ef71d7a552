"""What a deployment needs of the project: the runtime, the account, the connection to S3, its authority, admitted pods
and images."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

from llm_detox.cluster.api import Cluster, NoRight
from llm_detox.cluster.inspection import Account, Inspection, Keys
from llm_detox.doctor.finding import Finding
from llm_detox.errors import DetoxError
from llm_detox.recipe.cluster import ConnectionSection
from llm_detox.recipe.deploy import KserveSection
from llm_detox.serve.kserve.deploy import require_runtime

_CONNECTION = "kubectl apply -k manifests/connection"
# By these the dashboard, and the webhook that injects a connection, know a Secret for one to S3.
_CONNECTION_LABELS = {"opendatahub.io/dashboard": "true"}
_CONNECTION_ANNOTATIONS = ("opendatahub.io/connection-type", "opendatahub.io/connection-type-protocol",
                           "opendatahub.io/connection-type-ref")
_STORAGE_CONFIG = "storage-config"
_CA_ANNOTATION, _CA_KEY = "serving.kserve.io/s3-cabundle-configmap", "cabundle.crt"
_STEPS_CA_KEY, _PLATFORM_CA = "ca-bundle.crt", "odh-kserve-custom-ca-bundle"
_PULL = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
T = TypeVar("T")


def examine_project(cluster: Cluster, inspection: Inspection, kserve: KserveSection,
                    connection: ConnectionSection) -> Iterator[Finding]:
    """All checks of the namespace that the model is to run in."""
    yield _runtime(cluster, kserve)
    yield from _account(inspection, kserve, connection)
    yield from _connection(inspection, kserve, connection)
    yield from _authority(inspection, kserve, connection)
    yield _pod_security(inspection, kserve)
    yield _images(inspection)


def _runtime(cluster: Cluster, kserve: KserveSection) -> Finding:
    try:
        return Finding("runtime", "ok", f"{require_runtime(cluster, kserve)} for {kserve.serving}")
    except NoRight as error:
        return Finding("runtime", "unknown", f"not in the project, and {error.message}", "ask an administrator")
    except DetoxError as error:
        return Finding("runtime", "missing", error.message, error.remedy)


def _account(inspection: Inspection, kserve: KserveSection, connection: ConnectionSection) -> Iterator[Finding]:
    account = yield from _seen("serviceaccounts", kserve.account, lambda: inspection.account(kserve.account),
                               f"kubectl apply -k manifests/overlays/{kserve.platform}")
    if account is None:
        return
    # Behind a URI the storage initializer takes the keys from the account's Secrets; a connection brings its own.
    if kserve.platform == "kserve" and connection.s3_secret not in account.secrets:
        yield Finding("serviceaccounts", "missing", f"{kserve.account} does not name the Secret {connection.s3_secret}",
                      f"oc secrets link {kserve.account} {connection.s3_secret}")
        return
    yield from _pull_secrets(inspection, kserve.account, account)


def _pull_secrets(inspection: Inspection, name: str, account: Account) -> Iterator[Finding]:
    try:
        absent = [one for one in account.pull_secrets if inspection.secret(one) is None]
    except NoRight:
        absent = []
    if absent:
        yield Finding("serviceaccounts", "missing", f"{name} pulls images with Secrets that are not there: "
                      f"{', '.join(absent)}", "make them, or take them from the account's imagePullSecrets")
    else:
        yield Finding("serviceaccounts", "ok", name)


def _connection(inspection: Inspection, kserve: KserveSection, connection: ConnectionSection) -> Iterator[Finding]:
    name = connection.s3_secret
    secret = yield from _seen("secrets", name, lambda: inspection.secret(name), _CONNECTION)
    if secret is None:
        return
    absent = [f"the key {key}" for key in connection.s3_keys if key not in secret.keys]
    if kserve.platform == "openshift-ai":
        absent += [f"the label {key}={value}" for key, value in _CONNECTION_LABELS.items()
                   if secret.labels.get(key) != value]
        absent += [f"the annotation {key}" for key in _CONNECTION_ANNOTATIONS if key not in secret.annotations]
        absent += [] if "AWS_S3_BUCKET" in secret.keys else ["the key AWS_S3_BUCKET"]
    elif "serving.kserve.io/s3-endpoint" not in secret.annotations:
        absent.append("the annotation serving.kserve.io/s3-endpoint")
    if absent:
        yield Finding("secrets", "missing", f"{name} lacks {', '.join(absent)}", _CONNECTION)
        return
    yield Finding("secrets", "ok", name)
    if kserve.platform == "openshift-ai":
        yield _storage_config(inspection, name)


def _storage_config(inspection: Inspection, name: str) -> Finding:
    """The platform copies connections into it; the storage initializer reads only there."""
    secret = inspection.secret(_STORAGE_CONFIG)
    if secret is None or name not in secret.keys:
        return Finding(_STORAGE_CONFIG, "missing", f"the platform has not taken up the connection {name}",
                       "label the Secret opendatahub.io/managed=true, and check odh-model-controller")
    return Finding(_STORAGE_CONFIG, "ok", f"has the connection {name}")


def _authority(inspection: Inspection, kserve: KserveSection, connection: ConnectionSection) -> Iterator[Finding]:
    """An own certificate authority: of the pipeline's steps, and of the storage initializer."""
    own = connection.ca_config_map
    if own is None:
        return
    component = "apply an overlay with the component custom-ca"
    bundle = yield from _seen("authority", own, lambda: inspection.config_map(own), component)
    if bundle is None:
        return
    if _STEPS_CA_KEY not in bundle.keys:
        yield Finding("authority", "missing", f"{own} has no key {_STEPS_CA_KEY}, which the steps read", component)
    elif kserve.platform == "openshift-ai":
        if inspection.config_map(_PLATFORM_CA) is None:
            yield Finding("authority", "missing", f"the storage initializer trusts only {_PLATFORM_CA}, which is not "
                          "there", "an administrator adds the authority to the platform: DSCInitialization, "
                                   "trustedCABundle")
        else:
            yield Finding("authority", "ok", f"{own}, and {_PLATFORM_CA} of the platform")
    else:
        yield _initializer_authority(inspection, connection.s3_secret, own, bundle)


def _initializer_authority(inspection: Inspection, secret_name: str, own: str, bundle: Keys) -> Finding:
    secret = inspection.secret(secret_name)
    named = secret.annotations.get(_CA_ANNOTATION) if secret else None
    if named != own:
        return Finding("authority", "missing", f"{secret_name} names {named or 'no authority'}, not {own}",
                       f"annotate the Secret: {_CA_ANNOTATION}={own}")
    if _CA_KEY not in bundle.keys:
        return Finding("authority", "missing", f"{own} has no key {_CA_KEY}, which the storage initializer reads",
                       "add it: the same PEM under both keys")
    return Finding("authority", "ok", own)


def _pod_security(inspection: Inspection, kserve: KserveSection) -> Finding:
    try:
        standard = inspection.pod_security()
    except NoRight:
        return Finding("pod security", "unknown", "this login may not see the namespace",
                       f"ask an administrator: oc get namespace {inspection.namespace} -o yaml")
    if standard == "restricted" and kserve.platform == "kserve":
        return Finding("pod security", "missing", "the namespace enforces restricted, which admits no pod of KServe: "
                       "its storage initializer says nothing about privileges",
                       "an administrator sets the label pod-security.kubernetes.io/enforce=baseline (warn and audit "
                       "may stay restricted)")
    return Finding("pod security", "ok", standard or "no standard is enforced")


def _images(inspection: Inspection) -> Finding:
    """The API shows only what has been tried: pods that wait for an image."""
    try:
        pods = inspection.pods()
    except NoRight:
        return Finding("images", "unknown", "this login may not list pods")
    waiting = sorted({f"{pod.name}, {one.name}: {one.waiting_message or one.waiting_reason}" for pod in pods
                      for one in (*pod.init_containers, *pod.containers) if one.waiting_reason in _PULL})
    if waiting:
        return Finding("images", "missing", "; ".join(waiting),
                       "correct the image in manifests/settings, or give the account a pull secret")
    return Finding("images", "ok", "no pod waits for one")


def _seen(check: str, name: str, look: Callable[[], T | None], remedy: str) -> Generator[Finding, None, T | None]:
    """What is there; a finding where it is not, or where this login may not look."""
    try:
        there = look()
    except NoRight:
        yield Finding(check, "unknown", f"this login may not look for {name}")
        return None
    if there is None:
        yield Finding(check, "missing", f"no {name}", remedy)
    return there
