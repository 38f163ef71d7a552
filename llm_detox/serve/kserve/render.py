"""The InferenceService as a value: the YAML that `kubectl apply -k` sends, with the recipe's choices in it.

`rendered/*.yaml` is what kustomize makes of `manifests/overlays/*/model`; a test keeps the two the same.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

from llm_detox.cluster.objects import Manifest
from llm_detox.errors import UsageError
from llm_detox.recipe.cluster import GPU_RESOURCE, LABEL_PATTERN, ConnectionSection, toleration
from llm_detox.recipe.deploy import DeploySection, KserveSection

VERSION = "llm-detox/version"
ADDRESS = "llm-detox/address"
RUN = "llm-detox/run"
CANARY = "-canary"
_LONGEST_NAME = 53
_LONGEST_LABEL = 63
_ADDRESS = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(?P<path>(?:[\w!.*'()-]+/)*"
                      r"(?P<version>[\w.-]{1,128}))")


@dataclass(frozen=True)
class PublishedAddress:
    """`s3://bucket/path`; the path's last part is the version, the digest of the content."""

    bucket: str
    path: str
    version: str

    @classmethod
    def parse(cls, address: str) -> PublishedAddress:
        """Read what `publish` returned.

        Raises:
            UsageError: it is no such address.
        """
        match = _ADDRESS.fullmatch(address)
        if not match:
            raise UsageError("not the address of a published model", place=address,
                             remedy="pass what `llm-detox publish` printed: s3://bucket/prefix/version")
        return cls(**match.groupdict())

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.path}"


def inference_service(settings: DeploySection, connection: ConnectionSection, address: str, *, namespace: str,
                      canary: bool = False) -> Manifest:
    """The InferenceService that serves a published model.

    Args:
        settings: the recipe's `deploy` section.
        connection: the recipe's `cluster` section.
        address: `s3://bucket/prefix/version`, as `publish` returned it.
        namespace: the project.
        canary: the one that is tried first, beside the model of that name.

    Raises:
        UsageError: a name or the address cannot work in a cluster.
    """
    name = settings.name + (CANARY if canary else "")
    check_names(name, namespace)
    published = PublishedAddress.parse(address)
    thing = copy.deepcopy(_rendered(settings.kserve.platform))
    metadata, predictor = thing["metadata"], thing["spec"]["predictor"]
    metadata["name"], metadata["namespace"] = name, namespace
    metadata["annotations"][ADDRESS] = address
    # KServe copies these to the pods: that is how a ready pod says which version it holds.
    predictor.setdefault("annotations", {})[VERSION] = published.version
    _set_model(metadata, predictor["model"], connection, published)
    predictor["serviceAccountName"] = settings.kserve.account
    predictor["model"]["runtime"] = settings.kserve.runtime
    _set_sizes(predictor, settings.kserve)
    return thing


def check_names(name: str, namespace: str) -> None:
    """Refuse names that Kubernetes or a router would refuse later, or cut.

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
    host = f"{name}-{namespace}"  # what KServe and OpenShift make the first label of the host name of
    if len(host) > _LONGEST_LABEL:
        raise UsageError(f"name and namespace have {len(host)} characters together, a host name takes {_LONGEST_LABEL}",
                         place=host, remedy="--set deploy.name=<a shorter one>")


@lru_cache
def _rendered(platform: str) -> Manifest:
    import yaml

    text = resources.files("llm_detox.serve.kserve").joinpath("rendered", f"{platform}.yaml").read_text("utf-8")
    thing: Manifest = yaml.safe_load(text)
    return thing


def _set_model(metadata: Manifest, model: Manifest, connection: ConnectionSection,
               published: PublishedAddress) -> None:
    """The address, in the form that the platform's YAML uses: a connection of the dashboard, or a URI.

    Behind a URI the account says which Secret is used, see `manifests/base/serviceaccount.yaml`.
    """
    if "storage" in model:
        model["storage"]["key"] = connection.s3_secret
        metadata["annotations"]["opendatahub.io/connections"] = connection.s3_secret
        model["storage"]["path"] = published.path
        model["storage"]["parameters"] = {"bucket": published.bucket}
        metadata["annotations"]["opendatahub.io/connection-path"] = published.path
    else:
        model["storageUri"] = str(published)


def _set_sizes(predictor: Manifest, kserve: KserveSection) -> None:
    predictor["minReplicas"] = predictor["maxReplicas"] = kserve.replicas
    if kserve.replicas > 1:
        predictor["deploymentStrategy"] = {"type": "RollingUpdate"}
    for amounts in predictor["model"]["resources"].values():
        amounts.pop(GPU_RESOURCE, None)
        amounts.update({name: value for name, value in (("cpu", kserve.cpu), ("memory", kserve.memory)) if value})
        if kserve.gpus:
            amounts[kserve.gpu_resource] = str(kserve.gpus)
    if kserve.tolerations is not None:
        predictor["tolerations"] = [toleration(one) for one in kserve.tolerations]
    if not kserve.tolerations and (kserve.tolerations is not None or not kserve.gpus):
        predictor.pop("tolerations", None)
    if kserve.node_selector:
        predictor["nodeSelector"] = dict(kserve.node_selector)
