"""What a deployment needs of the cluster: KServe, the kinds, the rights, GPUs and quota."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

from llm_detox.cluster.api import GROUP, Cluster, NoRight
from llm_detox.cluster.inspection import Inspection, Node, Quota, Toleration
from llm_detox.cluster.objects import Manifest
from llm_detox.doctor.finding import Finding
from llm_detox.doctor.project import examine_project
from llm_detox.errors import DetoxError
from llm_detox.recipe.cluster import ConnectionSection
from llm_detox.recipe.deploy import DeploySection
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
_MODES = ("", "Standard", "RawDeployment")
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
        inspection = Inspection(cluster)
        version = inspection.version()
    except DetoxError as error:
        yield Finding("cluster", "missing", f"{error.place}: {error.message}", error.remedy)
        return
    yield Finding("cluster", "ok", f"Kubernetes {version}, namespace {cluster.namespace}")
    yield from _kinds(inspection, settings.kserve.platform)
    yield _kserve(inspection)
    yield from _rights(inspection)
    if training_nodes > 1:
        yield _trainer(inspection)
    yield from examine_project(cluster, inspection, settings.kserve, connection)
    predictor = inference_service(settings, connection, "s3://bucket/models/version",
                                  namespace=cluster.namespace).first()["spec"]["predictor"]
    yield _gpus(inspection, predictor, settings.kserve.gpu_resource)
    yield _quota(inspection, predictor)


def _kinds(inspection: Inspection, platform: str) -> Iterator[Finding]:
    wanted = _KINDS | (_PIPELINES if platform == "openshift-ai" else {})
    missing = [f"{plural} ({version})" for version, plural in wanted.items()
               if plural not in inspection.kinds(version)]
    if missing:
        yield Finding("kinds", "missing", f"the cluster does not know {', '.join(missing)}",
                      "install KServe (OpenShift AI: DataScienceCluster with kserve and datasciencepipelines Managed)")
    else:
        yield Finding("kinds", "ok", ", ".join(wanted.values()))


def _kserve(inspection: Inspection) -> Finding:
    """Models name their mode themselves, so another one by default is no failure."""
    try:
        installed = inspection.kserve()
    except NoRight:
        return Finding("KServe", "unknown", "this login may not see its controller",
                       "ask an administrator: oc get deployments -A | grep kserve-controller-manager")
    if installed is None:
        return Finding("KServe", "unknown", "its controller is in none of the usual namespaces")
    mode = "" if installed.mode in _MODES else f"; models of others run in the mode {installed.mode}"
    return Finding("KServe", "ok", f"{installed.version or 'of no version'} in {installed.namespace}{mode}")


def _rights(inspection: Inspection) -> Iterator[Finding]:
    missing = [f"{verb} {resource}" for group, resource, verb in RIGHTS if not inspection.may(verb, group, resource)]
    if missing:
        yield Finding("rights", "missing", f"this login may not {', '.join(missing)}",
                      "an administrator of the project runs kubectl apply -k manifests/overlays/openshift-ai (or "
                      "kserve), and binds the Role llm-detox-deploy to this account")
    else:
        yield Finding("rights", "ok", f"all {len(RIGHTS)} that the deploy step needs")


def _trainer(inspection: Inspection) -> Finding:
    if "trainjobs" not in inspection.kinds(f"{_TRAIN_JOBS}/v1alpha1"):
        return Finding("trainer", "missing", "the cluster does not know trainjobs",
                       "install Kubeflow Trainer (OpenShift AI: DataScienceCluster with trainer Managed), or set "
                       "training.job.nodes=1")
    missing = [f"{verb} {resource}" for group, resource, verb in _TRAIN_RIGHTS
               if not inspection.may(verb, group, resource)]
    if missing:
        return Finding("trainer", "missing", f"this login may not {', '.join(missing)}",
                       "an administrator of the project applies an overlay with the component trainjob-rights, and "
                       "binds the Role llm-detox-train to this account")
    return Finding("trainer", "ok", f"trainjobs, and all {len(_TRAIN_RIGHTS)} rights")


def _gpus(inspection: Inspection, predictor: Manifest, resource: str) -> Finding:
    """Is there a node that has the GPUs, the labels, and no taint that the pod does not tolerate?"""
    wanted = amount(predictor["model"].get("resources", {}).get("limits", {}).get(resource, "0"))
    if not wanted:
        return Finding("GPUs", "ok", "none wanted")
    try:
        nodes = inspection.nodes()
    except NoRight:
        return Finding("GPUs", "unknown", "this login may not list nodes", "ask an administrator: oc describe nodes")
    able = [node for node in nodes if not node.unschedulable and amount(node.allocatable.get(resource, "0")) >= wanted]
    if not able:
        most = max((amount(node.allocatable.get(resource, "0")) for node in nodes), default=Decimal(0))
        return Finding("GPUs", "missing", f"no node has {wanted} {resource} that is ready (the most is {most})",
                       "add a GPU node (and the GPU operator), or set deploy.kserve.gpus and gpu_resource")
    selector = predictor.get("nodeSelector", {}).items()
    labelled = [node for node in able if selector <= node.labels.items()]
    if not labelled:
        return Finding("GPUs", "missing", "no node with them has the labels "
                       + ", ".join(f"{key}={value}" for key, value in selector), "set deploy.kserve.node_selector")
    tolerations = [Toleration.of(one) for one in predictor.get("tolerations", ())]
    shut = {node.name: taints for node in labelled if (taints := _shutting(node, tolerations))}
    if len(shut) == len(labelled):
        names = ", ".join(sorted({taint for taints in shut.values() for taint in taints}))
        return Finding("GPUs", "missing", f"all nodes with them have taints that the pod does not tolerate: {names}",
                       "add them to deploy.kserve.tolerations")
    return Finding("GPUs", "ok", f"{len(labelled) - len(shut)} nodes with at least {wanted} {resource}")


def _shutting(node: Node, tolerations: list[Toleration]) -> list[str]:
    return [str(taint) for taint in node.taints if not any(taint.is_tolerated(one) for one in tolerations)]


def _quota(inspection: Inspection, predictor: Manifest) -> Finding:
    try:
        quotas = inspection.quotas()
    except NoRight:
        return Finding("quota", "unknown", "this login may not list resource quotas")
    short = [line for quota in quotas for line in _short(quota, predictor["model"].get("resources", {}),
                                                         predictor["minReplicas"])]
    if short:
        return Finding("quota", "missing", "; ".join(short),
                       "raise it, end something else, or set deploy.kserve.cpu, memory or gpus lower")
    return Finding("quota", "ok", f"room in all {len(quotas)}" if quotas else "none set")


def _short(quota: Quota, resources: Manifest, replicas: int) -> Iterator[str]:
    """What of the pods' requests and limits has no room in a quota, in words."""
    for kind, amounts in resources.items():
        for resource, wanted in amounts.items():
            name = f"{kind}.{resource}"
            hard, used = quota.hard.get(name), quota.used.get(name, "0")
            if hard is not None and amount(used) + amount(wanted) * replicas > amount(hard):
                yield f"{quota.name}: {name} {used} of {hard} used, {replicas} x {wanted} wanted"


def amount(quantity: str | int) -> Decimal:
    """A Kubernetes quantity as a number: `1500m`, `8Gi`, `2`."""
    text = str(quantity)
    digits = text.rstrip("KMGTPEimk")
    return Decimal(digits) * _SUFFIXES[text[len(digits):]]
