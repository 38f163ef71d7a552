"""What a deployment to a cluster needs: kinds, rights, the runtime, the account, GPUs and quota."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

from llm_detox.cluster.api import GROUP, Cluster, NoRight
from llm_detox.cluster.objects import Manifest, Quota
from llm_detox.doctor.finding import Finding
from llm_detox.errors import DetoxError
from llm_detox.recipe.cluster import ConnectionSection
from llm_detox.recipe.deploy import DeploySection, KserveSection
from llm_detox.serve.kserve.deploy import require_runtime
from llm_detox.serve.kserve.render import inference_service

# What the Role llm-detox-deploy in manifests/base/rights gives: (API group, resource, verb).
RIGHTS = (
    *((GROUP, "inferenceservices", verb) for verb in ("get", "create", "patch", "delete")),
    (GROUP, "servingruntimes", "get"), ("apps", "deployments", "get"), ("", "pods", "list"), ("", "events", "list"),
)
_KINDS = {f"{GROUP}/v1beta1": "inferenceservices", f"{GROUP}/v1alpha1": "servingruntimes"}
_PIPELINES = {"datasciencepipelinesapplications.opendatahub.io/v1": "datasciencepipelinesapplications"}
_TRAIN_JOBS = "trainer.kubeflow.org"
_TRAIN_RIGHTS = (*((_TRAIN_JOBS, "trainjobs", verb) for verb in ("get", "list", "create", "delete")),
                 ("", "pods", "list"))
_SUFFIXES = {"": Decimal(1), "m": Decimal("0.001"), **{
    f"{letter}{binary}": Decimal(1024 if binary else 1000) ** power
    for power, letter in enumerate("KMGTPE", 1) for binary in ("", "i")}, "k": Decimal(1000)}


def examine_cluster(
    settings: DeploySection, connection: ConnectionSection, cluster: Cluster | None = None, *, training_nodes: int = 1
) -> Iterator[Finding]:
    """All checks; where the cluster itself does not answer, only that.

    Args:
        settings: the recipe's `deploy` section.
        connection: its `cluster` section.
        cluster: instead of the configured one.
        training_nodes: with more than one, training needs the Trainer.
    """
    try:
        cluster = cluster or Cluster.connect(settings.namespace)
        version = cluster.version()
    except DetoxError as error:
        yield Finding("cluster", "missing", f"{error.place}: {error.message}", error.remedy)
        return
    yield Finding("cluster", "ok", f"Kubernetes {version}, namespace {cluster.namespace}")
    yield from _kinds(cluster, settings.kserve.platform)
    yield from _rights(cluster)
    if training_nodes > 1:
        yield _trainer(cluster)
    yield from _things(cluster, settings.kserve, connection)
    yield _gpus(cluster, settings.kserve)
    yield from _quota(cluster, settings, connection)


def _kinds(cluster: Cluster, platform: str) -> Iterator[Finding]:
    wanted = _KINDS | (_PIPELINES if platform == "openshift-ai" else {})
    missing = [f"{plural} ({version})" for version, plural in wanted.items() if plural not in cluster.kinds(version)]
    if missing:
        yield Finding("kinds", "missing", f"the cluster does not know {', '.join(missing)}",
                      "install KServe (OpenShift AI: DataScienceCluster with kserve and datasciencepipelines Managed)")
    else:
        yield Finding("kinds", "ok", ", ".join(wanted.values()))


def _rights(cluster: Cluster) -> Iterator[Finding]:
    missing = [f"{verb} {resource}" for group, resource, verb in RIGHTS if not cluster.may(verb, group, resource)]
    if missing:
        yield Finding("rights", "missing", f"this login may not {', '.join(missing)}",
                      "an administrator of the project runs kubectl apply -k manifests/overlays/openshift-ai (or "
                      "kserve), and binds the Role llm-detox-deploy to this account")
    else:
        yield Finding("rights", "ok", f"all {len(RIGHTS)} that the deploy step needs")


def _trainer(cluster: Cluster) -> Finding:
    if "trainjobs" not in cluster.kinds(f"{_TRAIN_JOBS}/v1alpha1"):
        return Finding("trainer", "missing", "the cluster does not know trainjobs",
                       "install Kubeflow Trainer (OpenShift AI: DataScienceCluster with trainer Managed), or set "
                       "training.job.nodes=1")
    missing = [f"{verb} {resource}" for group, resource, verb in _TRAIN_RIGHTS
               if not cluster.may(verb, group, resource)]
    if missing:
        return Finding("trainer", "missing", f"this login may not {', '.join(missing)}",
                       "an administrator of the project applies an overlay with the component trainjob-rights, and "
                       "binds the Role llm-detox-train to this account")
    return Finding("trainer", "ok", f"trainjobs, and all {len(_TRAIN_RIGHTS)} rights")


def _things(cluster: Cluster, kserve: KserveSection, connection: ConnectionSection) -> Iterator[Finding]:
    apply = f"kubectl apply -k manifests/overlays/{kserve.platform}"
    try:
        yield Finding("runtime", "ok", require_runtime(cluster, kserve))
    except NoRight as error:
        yield Finding("runtime", "unknown", error.message, error.remedy)
    except DetoxError as error:
        yield Finding("runtime", "missing", error.message, error.remedy)
    for kind, name, remedy in (("serviceaccounts", kserve.account, apply),
                               ("secrets", connection.s3_secret, "kubectl apply -k manifests/connection")):
        there = cluster.is_there(kind, name)
        if there is None:
            yield Finding(kind, "unknown", f"this login may not look for {name}", remedy=None)
        elif there:
            yield Finding(kind, "ok", name)
        else:
            yield Finding(kind, "missing", f"no {name} in {cluster.namespace}", remedy)


def _gpus(cluster: Cluster, kserve: KserveSection) -> Finding:
    if not kserve.gpus:
        return Finding("GPUs", "ok", "none wanted")
    nodes = cluster.nodes()
    if nodes is None:
        return Finding("GPUs", "unknown", "this login may not list nodes", "ask an administrator: oc describe nodes")
    resource = kserve.gpu_resource
    counts = [amount(node.allocatable.get(resource, "0")) for node in nodes if not node.unschedulable]
    able = sum(count >= kserve.gpus for count in counts)
    if able:
        return Finding("GPUs", "ok", f"{able} nodes with at least {kserve.gpus} {resource}")
    most = max(counts, default=0)
    return Finding("GPUs", "missing", f"no node has {kserve.gpus} {resource} (the most is {most})",
                   "add a GPU node (and the GPU operator), or set deploy.kserve.gpus and gpu_resource")


def _quota(cluster: Cluster, settings: DeploySection, connection: ConnectionSection) -> Iterator[Finding]:
    quotas = cluster.quotas()
    if quotas is None:
        yield Finding("quota", "unknown", "this login may not list resource quotas")
        return
    model = inference_service(settings, connection, "s3://bucket/models/version", namespace=cluster.namespace)
    short = [line for quota in quotas for line in _short(
        quota, model.first()["spec"]["predictor"]["model"]["resources"], settings.kserve.replicas or 1)]
    if short:
        yield Finding("quota", "missing", "; ".join(short),
                      "raise it, end something else, or set deploy.kserve.cpu, memory or gpus lower")
    else:
        yield Finding("quota", "ok", f"room in all {len(quotas)}" if quotas else "none set")


def _short(quota: Quota, resources: Manifest, replicas: int) -> Iterator[str]:
    """What of the pods' requests and limits has no room in a quota, in words."""
    for kind in ("requests", "limits"):
        for resource, wanted in resources[kind].items():
            name = f"{kind}.{resource}"
            hard, used = quota.hard.get(name), quota.used.get(name, "0")
            if hard is not None and amount(used) + amount(wanted) * replicas > amount(hard):
                yield f"{quota.name}: {name} {used} of {hard} used, {replicas} x {wanted} wanted"


def amount(quantity: str | int) -> Decimal:
    """A Kubernetes quantity as a number: `1500m`, `8Gi`, `2`."""
    text = str(quantity)
    digits = text.rstrip("KMGTPEimk")
    return Decimal(digits) * _SUFFIXES[text[len(digits):]]
