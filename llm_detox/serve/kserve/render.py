"""The InferenceService as a value: the YAML that `kubectl apply -k` sends, with the recipe's choices in it.

`rendered/*.yaml` is what kustomize makes of `manifests/overlays/*/model`; a test keeps the two the same.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

from llm_detox.cluster.objects import AUTH, EXPOSED, VISIBILITY, Manifest
from llm_detox.errors import UsageError
from llm_detox.recipe.addresses import OCI, ImageName
from llm_detox.recipe.cluster import GPU_RESOURCE, LABEL_PATTERN, QUEUE_LABEL, ConnectionSection, toleration
from llm_detox.recipe.deploy import DeploySection, KserveSection

VERSION = "llm-detox/version"
ADDRESS = "llm-detox/address"
RUN = "llm-detox/run"
# On the model's pods: the digest of all that a deployment wants of them. By it a pod tells whose wish it follows.
SPEC = "llm-detox/spec"
# On the pods of a model that asks for tokens: its network policy then shuts the ports that ask for none.
PROTECTED = "llm-detox/protected"
CANARY = "-canary"
_DISPLAY_NAME = "openshift.io/display-name"
_CONNECTION = ("opendatahub.io/connections", "opendatahub.io/connection-path")
_MOUNTED = "/mnt/models"  # where a pod finds the model
_PROFILE, _PROFILE_NAMESPACE = "opendatahub.io/hardware-profile-name", "opendatahub.io/hardware-profile-namespace"
_LONGEST_NAME = 53
_LONGEST_LABEL = 63
_ADDRESS = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(?P<path>(?:[\w!.*'()-]+/)*"
                      r"(?P<version>[\w.-]{1,128}))")


@dataclass(frozen=True)
class Stack:
    """What serves a model: the format's name in KServe, our runtime for it, and the part of the published folder."""

    model_format: str
    runtime: str
    folder: str


STACKS = {
    "caikit-tgis": Stack("caikit", "llm-detox-caikit-tgis", ""),
    # vLLM reads a plain Hugging Face folder at /mnt/models, as the platform's own runtimes are told to.
    "vllm": Stack("vLLM", "llm-detox-vllm", "/artifacts"),
}


@dataclass(frozen=True)
class PublishedAddress:
    """`s3://bucket/path`; the path's last part is the version, the digest of the content.

    Of an image, `oci://registry/repository@sha256:...`, the version is its digest, and there is no bucket.
    """

    bucket: str
    path: str
    version: str

    @classmethod
    def parse(cls, address: str) -> PublishedAddress:
        """Read what `publish` returned.

        Raises:
            UsageError: it is no such address, or an image by its tag, which may be another one tomorrow.
        """
        if address.startswith(OCI):
            try:
                image = ImageName.parse(address)
            except ValueError as error:
                raise UsageError(str(error), place=address, remedy="pass what `llm-detox publish` printed") from None
            if not image.digest:
                raise UsageError("an image is served by its digest: its tag can be moved to another one", place=address,
                                 remedy="pass what `llm-detox publish` printed: oci://registry/repository@sha256:...")
            return cls("", f"{image.registry}/{image.repository}", image.digest)
        match = _ADDRESS.fullmatch(address)
        if not match:
            raise UsageError("not the address of a published model", place=address,
                             remedy="pass what `llm-detox publish` printed: s3://bucket/prefix/version, or "
                                    "oci://registry/repository@sha256:...")
        return cls(**match.groupdict())

    @property
    def is_image(self) -> bool:
        return not self.bucket

    def __str__(self) -> str:
        return f"{OCI}{self.path}@{self.version}" if self.is_image else f"s3://{self.bucket}/{self.path}"


@dataclass(frozen=True)
class Wanted:
    """What a deployment wants of an InferenceService.

    Args:
        meant: the fields that every deployment sets; it owns them.
        initial: the fields that are set when the model is made, and then belong to whoever changes them.
        switches: a merge patch that protects and exposes the model, or the reverse, where the recipe says so.
    """

    meant: Manifest
    initial: Manifest
    switches: Manifest

    @property
    def name(self) -> str:
        return str(self.meant["metadata"]["name"])

    @property
    def digest(self) -> str:
        """What the pods of this wish carry as the annotation `SPEC`."""
        return str(self.meant["spec"]["predictor"]["annotations"][SPEC])

    def first(self) -> Manifest:
        """The whole object, as it is made."""
        return merged(merged(self.meant, self.initial), self.switches)


def inference_service(settings: DeploySection, connection: ConnectionSection, address: str, *, namespace: str,
                      canary: bool = False, protected: bool = False, exposed: bool = False) -> Wanted:
    """The InferenceService that serves a published model.

    Args:
        settings: the recipe's `deploy` section.
        connection: the recipe's `cluster` section.
        address: `s3://bucket/prefix/version` or `oci://registry/repository@sha256:...`, as `publish` returned it.
        namespace: the project.
        canary: the one that is tried first, beside the model of that name.
        protected: whether the live model asks for tokens, which counts where the recipe says `auth: keep`.
        exposed: whether a Route leads to the live model, which counts where the recipe says `expose: keep`.

    Raises:
        UsageError: a name or the address cannot work in a cluster, or the recipe would expose a model to everybody.
    """
    kserve, name = settings.kserve, settings.name + (CANARY if canary else "")
    check_names(name, namespace, kserve.platform)
    _check_switches(kserve, protected, exposed)
    protected = kserve.auth == "on" or (kserve.auth == "keep" and protected)
    published, stack = PublishedAddress.parse(address), STACKS[kserve.serving]
    thing = copy.deepcopy(_rendered(kserve.platform))
    metadata, predictor = thing["metadata"], thing["spec"]["predictor"]
    metadata["name"], metadata["namespace"] = name, namespace
    metadata["annotations"][ADDRESS] = address
    if _DISPLAY_NAME in metadata["annotations"]:
        metadata["annotations"][_DISPLAY_NAME] = name
    predictor["serviceAccountName"] = kserve.account
    predictor["model"].update(modelFormat={"name": stack.model_format}, runtime=kserve.runtime or stack.runtime)
    _set_source(metadata, predictor["model"], connection, published, stack)
    _set_sizes(predictor, kserve)
    _set_place(thing, kserve)
    if protected:
        predictor.setdefault("labels", {})[PROTECTED] = "true"
    initial = _take_out(thing, _initial_paths(kserve))
    switches = _switches_of_canary(protected) if canary else _switches(kserve)
    predictor["annotations"] = {VERSION: published.version, SPEC: _digest(thing)}
    return Wanted(thing, initial, switches)


def check_names(name: str, namespace: str, platform: str = "openshift-ai") -> None:
    """Refuse names that Kubernetes, KServe or a router would refuse later, or cut.

    Raises:
        UsageError: with the name and the limit.
    """
    if len(name) > _LONGEST_NAME:
        raise UsageError(f"the name has {len(name)} characters, KServe takes {_LONGEST_NAME}", place=name,
                         remedy="--set deploy.name=<a shorter one>")
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        raise UsageError("not a name for a Kubernetes object", place=name,
                         remedy="begin with a letter; small letters, digits and hyphens")
    if not re.fullmatch(LABEL_PATTERN, namespace):
        raise UsageError("not a name of a namespace", place=namespace, remedy="--set deploy.namespace=<project>")
    # What OpenShift's router makes the first label of the host name of, and what KServe does.
    host = f"{name}-{namespace}" if platform == "openshift-ai" else f"{name}-predictor-{namespace}"
    if len(host) > _LONGEST_LABEL:
        raise UsageError(f"name and namespace make a host name of {len(host)} characters, of {_LONGEST_LABEL}",
                         place=host, remedy="--set deploy.name=<a shorter one>")


def merged(first: Manifest, second: Manifest) -> Manifest:
    """The first with the fields of the second in it; None there removes a field (RFC 7386, JSON merge patch)."""
    result = dict(first)
    for key, value in second.items():
        if value is None:
            result.pop(key, None)
        else:
            below = result.get(key)
            result[key] = merged(below if isinstance(below, dict) else {}, value) if isinstance(value, dict) else value
    return result


def _check_switches(kserve: KserveSection, protected: bool, exposed: bool) -> None:
    """Refuse what would open a model to everybody; `protected` and `exposed` say how it is now."""
    if kserve.platform == "kserve":
        if kserve.auth == "on":
            raise UsageError("plain KServe asks nobody for a token", place="deploy.kserve.auth",
                             remedy="put a gateway that does in front of the model, or use OpenShift AI")
        return
    if kserve.expose == "on" and (kserve.auth == "off" or (kserve.auth == "keep" and not protected)):
        raise UsageError("an exposed model would answer everybody", place="deploy.kserve.expose",
                         remedy="--set deploy.kserve.auth=on")
    if kserve.auth == "off" and kserve.expose == "keep" and protected and exposed:
        raise UsageError("an exposed model would answer everybody: a Route leads to it", place="deploy.kserve.auth",
                         remedy="--set deploy.kserve.expose=off")


def _set_source(metadata: Manifest, model: Manifest, connection: ConnectionSection, published: PublishedAddress,
                stack: Stack) -> None:
    """The address, in the form that the platform's YAML uses: a connection of the dashboard, or a URI.

    Behind a URI the account says which Secret is used, see `manifests/base/serviceaccount.yaml`. A connection names the
    bucket itself; a bucket beside the path is dropped by the platform.

    An image needs no connection. It is mounted whole: vLLM, which wants the folder inside, is told where that is, and
    takes the last of two arguments of one name.
    """
    if published.is_image:
        model.pop("storage", None)
        model["storageUri"] = str(published)
        if stack.folder:
            model["args"] = [f"--model={_MOUNTED}{stack.folder}"]
        for name in _CONNECTION:
            metadata["annotations"].pop(name, None)
        return
    if "storage" not in model:
        model["storageUri"] = f"{published}{stack.folder}"
        return
    bucket = os.environ.get("AWS_S3_BUCKET", published.bucket)
    if bucket != published.bucket:
        raise UsageError(f"the connection is to the bucket {bucket}, the model was published to {published.bucket}",
                         place=connection.s3_secret, remedy="publish to the connection's bucket: --set "
                                                            f"publish.url=s3://{bucket}/<prefix>")
    path = f"{published.path}{stack.folder}"
    model["storage"] = {"key": connection.s3_secret, "path": path}
    metadata["annotations"].update(dict(zip(_CONNECTION, (connection.s3_secret, path), strict=True)))


def _set_sizes(predictor: Manifest, kserve: KserveSection) -> None:
    if kserve.replicas is not None:
        predictor["minReplicas"] = predictor["maxReplicas"] = kserve.replicas
        if kserve.replicas > 1:
            predictor["deploymentStrategy"] = {"type": "RollingUpdate"}
    for amounts in predictor["model"]["resources"].values():
        amounts.update({name: value for name, value in (("cpu", kserve.cpu), ("memory", kserve.memory)) if value})
        if kserve.gpus is not None:
            amounts.pop(GPU_RESOURCE, None)
            if kserve.gpus:
                amounts[kserve.gpu_resource] = str(kserve.gpus)
    if kserve.tolerations is not None:
        predictor["tolerations"] = [toleration(one) for one in kserve.tolerations]
    if not predictor["tolerations"] or (kserve.tolerations is None and kserve.gpus == 0):
        del predictor["tolerations"]
    if kserve.node_selector:
        predictor["nodeSelector"] = dict(kserve.node_selector)


def _set_place(thing: Manifest, kserve: KserveSection) -> None:
    """Who decides where the pods run. What a hardware profile brings in is not named here, so it stays."""
    metadata, predictor = thing["metadata"], thing["spec"]["predictor"]
    if kserve.queue:
        metadata.setdefault("labels", {})[QUEUE_LABEL] = kserve.queue
    if kserve.hardware_profile:
        namespace, _, name = kserve.hardware_profile.rpartition("/")
        metadata["annotations"][_PROFILE] = name
        if namespace:
            metadata["annotations"][_PROFILE_NAMESPACE] = namespace
        predictor["model"]["resources"] = {}
        for key in ("tolerations", "nodeSelector"):
            predictor.pop(key, None)


def _initial_paths(kserve: KserveSection) -> list[tuple[str, ...]]:
    """The fields that the recipe leaves to others once the model is made."""
    predictor = ("spec", "predictor")
    paths: list[tuple[str, ...]] = [("metadata", "annotations", _DISPLAY_NAME), ("metadata", "labels", VISIBILITY)]
    if kserve.replicas is None:
        paths += [(*predictor, key) for key in ("minReplicas", "maxReplicas", "deploymentStrategy")]
    left = [name for name, value in (("cpu", kserve.cpu), ("memory", kserve.memory), (GPU_RESOURCE, kserve.gpus))
            if value is None]
    paths += [(*predictor, "model", "resources", bound, name) for bound in ("requests", "limits") for name in left]
    if kserve.tolerations is None:
        paths.append((*predictor, "tolerations"))
    return paths


def _take_out(thing: Manifest, paths: Sequence[tuple[str, ...]]) -> Manifest:
    """Move fields out of an object, into one that has nothing else."""
    result: Manifest = {}
    for *parents, name in paths:
        source, target = thing, result
        for key in parents:
            source = source.get(key, {})
        if name in source:
            for key in parents:
                target = target.setdefault(key, {})
            target[name] = source.pop(name)
    _drop_empty(thing["spec"]["predictor"]["model"]["resources"])
    if not thing["spec"]["predictor"]["model"]["resources"]:
        del thing["spec"]["predictor"]["model"]["resources"]
    return result


def _drop_empty(mapping: Manifest) -> None:
    """Naming an empty mapping would say that nothing shall be in it."""
    for key in [key for key, value in mapping.items() if value == {}]:
        del mapping[key]


def _switches(kserve: KserveSection) -> Manifest:
    """The label and the annotation that the dashboard's two check boxes set."""
    metadata: Manifest = {}
    if kserve.auth != "keep":
        metadata["annotations"] = {AUTH: "true" if kserve.auth == "on" else "false"}
    if kserve.expose != "keep":
        openshift = kserve.platform == "openshift-ai"
        # Plain KServe publishes every model that is not said to be local; OpenShift AI only those that are exposed.
        value = {"on": EXPOSED, "off": None} if openshift else {"on": None, "off": "cluster-local"}
        metadata["labels"] = {VISIBILITY: value[kserve.expose]}
    return {"metadata": metadata} if metadata else {}


def _switches_of_canary(protected: bool) -> Manifest:
    """As protected as the model that it is to become, and never exposed."""
    return {"metadata": {"annotations": {AUTH: "true"}}} if protected else {}


def _digest(meant: Manifest) -> str:
    """Of all that the pods follow; protection is in it by the label, exposure is no matter of theirs."""
    text = json.dumps(meant, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@lru_cache
def _rendered(platform: str) -> Manifest:
    import yaml

    text = resources.files("llm_detox.serve.kserve").joinpath("rendered", f"{platform}.yaml").read_text("utf-8")
    thing: Manifest = yaml.safe_load(text)
    return thing
