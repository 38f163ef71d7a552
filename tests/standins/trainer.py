"""A stand-in for Kubeflow Trainer 2.3 and JobSet 0.12: what they make of a TrainJob of ours, measured on a recording.

Kubernetes' own controllers make the pods of the Job. Ids and the hash `job-key` are given by the caller.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from tests.standins import Unmeasured
from tests.standins.kubernetes import admit_pod, fill_pod_spec

Object = dict[str, Any]
_PORT = 29500
_INDEX = "batch.kubernetes.io/job-completion-index"
_PREFIX = "jobset.sigs.k8s.io"


@dataclass(frozen=True)
class Ids:
    """What differs from run to run."""

    job_set: str
    job: str
    job_key: str


def job_set_of(train_job: Object, namespace: str) -> Object:
    """The JobSet of a TrainJob that runs with `torch-distributed`."""
    spec, name = train_job["spec"], train_job["metadata"]["name"]
    if spec["runtimeRef"]["name"] != "torch-distributed":
        raise Unmeasured("a runtime other than torch-distributed")
    trainer = spec["trainer"]
    nodes, processes = trainer["numNodes"], trainer["numProcPerNode"]
    rank = {"valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{_INDEX}']"}}}
    container = {
        "name": "node", "image": trainer["image"], "command": trainer["command"], "args": trainer["args"],
        "ports": [{"containerPort": _PORT, "protocol": "TCP"}], "resources": _amounts(trainer["resourcesPerNode"]),
        "env": [*trainer["env"], {"name": "PET_NNODES", "value": str(nodes)},
                {"name": "PET_NPROC_PER_NODE", "value": str(processes)}, {"name": "PET_NODE_RANK", **rank},
                {"name": "PET_MASTER_ADDR", "value": f"{name}-node-0-0.{name}"},
                {"name": "PET_MASTER_PORT", "value": str(_PORT)}]}
    pod: Object = {"restartPolicy": "OnFailure", "containers": [container]}
    _patch(pod, spec.get("runtimePatches", ()))
    job = {"metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
           "spec": {"completionMode": "Indexed", "completions": nodes, "parallelism": nodes,
                    "template": {"metadata": {}, "spec": pod}}}
    return deepcopy({
        "apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet",
        "metadata": {"name": name, "namespace": namespace, "generation": 1},
        "spec": {"network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
                 "replicatedJobs": [{"groupName": "default", "name": "node", "replicas": 1, "template": job}],
                 "startupPolicy": {"startupPolicyOrder": "AnyOrder"}, "successPolicy": {"operator": "All"},
                 "suspend": False}})


def job_of(job_set: Object, ids: Ids) -> Object:
    """The one Job of the JobSet, with the defaults of the API server."""
    [replicated] = job_set["spec"]["replicatedJobs"]
    template, given = deepcopy(replicated["template"]), job_set["metadata"]
    name = f"{given['name']}-{replicated['name']}-0"
    marks = _marks(job_set, ids)
    own = {"controller-uid": ids.job, "job-name": name}
    spec = template["spec"]
    spec["template"]["metadata"] = {
        "annotations": dict(marks),
        "labels": marks | own | {f"batch.kubernetes.io/{key}": value for key, value in own.items()}}
    spec["template"]["spec"]["subdomain"] = given["name"]
    fill_pod_spec(spec["template"]["spec"])
    spec = {"backoffLimit": 6, "manualSelector": False, "podReplacementPolicy": "TerminatingOrFailed",
            "selector": {"matchLabels": {"batch.kubernetes.io/controller-uid": ids.job}}, "suspend": False, **spec}
    return {"apiVersion": "batch/v1", "kind": "Job", "spec": spec, "metadata": {
        "name": name, "namespace": given["namespace"], "generation": 1, "annotations": dict(marks),
        "labels": marks | template["metadata"]["labels"]}}


def service_of(job_set: Object) -> Object:
    """The Service without an address by which the nodes find each other."""
    given = job_set["metadata"]
    return {"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": given["name"], "namespace": given["namespace"]},
            "spec": {"internalTrafficPolicy": "Cluster", "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
                     "publishNotReadyAddresses": True, "sessionAffinity": "None", "type": "ClusterIP",
                     "selector": {f"{_PREFIX}/jobset-name": given["name"]}}}


def pod_of(job: Object, index: int) -> Object:
    """The pod of a node, as the Job's controller and JobSet's webhook make it."""
    template, given = deepcopy(job["spec"]["template"]), job["metadata"]
    metadata = template["metadata"]
    metadata["annotations"][_INDEX] = str(index)
    metadata["labels"] |= {_INDEX: str(index), f"{_PREFIX}/priority": "0"}
    prefix = f"{given['name']}-{index}-"
    metadata.update(finalizers=["batch.kubernetes.io/job-tracking"], generateName=prefix, name=f"{prefix}xxxxx",
                    namespace=given["namespace"])
    template["spec"]["hostname"] = f"{given['name']}-{index}"
    for container in template["spec"]["containers"]:
        container["env"].append({"name": "JOB_COMPLETION_INDEX", "valueFrom": {
            "fieldRef": {"apiVersion": "v1", "fieldPath": f"metadata.labels['{_INDEX}']"}}})
    return admit_pod({"apiVersion": "v1", "kind": "Pod", **template})


def train_job_status(job: Object) -> Object:
    """The TrainJob's status as it follows from its Job's: it has no condition while the Job runs or starts again."""
    state = job.get("status", {})
    ended = {one["type"] for one in state.get("conditions", ()) if one["status"] == "True"}
    name, nodes = job["metadata"]["name"], job["spec"]["parallelism"]
    counts = {"active": int(bool(state.get("active"))), "ready": int(state.get("ready", 0) == nodes),
              "succeeded": int("Complete" in ended), "failed": int("Failed" in ended)}
    status: Object = {"jobsStatus": [{"name": "node", **counts}]}
    if "Complete" in ended:
        status["conditions"] = [{"type": "Complete", "status": "True", "reason": "AllJobsCompleted",
                                 "message": "jobset completed successfully"}]
    elif "Failed" in ended:
        status["conditions"] = [{"type": "Failed", "status": "True", "reason": "FailedJobs", "message":
                                 f"jobset failed due to one or more job failures (first failed job: {name})"}]
    return status


def _marks(job_set: Object, ids: Ids) -> dict[str, str]:
    """What JobSet writes on each Job and pod, as labels and as annotations."""
    values = {"global-replicas": "1", "group-name": "default", "group-replicas": "1", "job-global-index": "0",
              "job-group-index": "0", "job-index": "0", "job-key": ids.job_key,
              "jobset-name": job_set["metadata"]["name"], "jobset-uid": ids.job_set, "replicatedjob-name": "node",
              "replicatedjob-replicas": "1", "restart-attempt": "0"}
    return {f"{_PREFIX}/{key}": value for key, value in values.items()}


def _amounts(resources: Object) -> Object:
    return {bound: {key: str(value) for key, value in amounts.items()} for bound, amounts in resources.items()}


def _patch(pod: Object, patches: Any) -> None:
    """Lay the patches of a TrainJob over the runtime's pod; of containers, only `node` is known."""
    for patch in patches:
        [job] = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
        extra = deepcopy(job["template"]["spec"]["template"]["spec"])
        [container] = extra.pop("containers")
        if set(extra) & set(pod) or set(container) & set(pod["containers"][0]) != {"name"}:
            raise Unmeasured("a patch of what the runtime or the trainer sets")
        pod.update(extra)
        pod["containers"][0].update(container)
