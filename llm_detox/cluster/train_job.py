"""Training on several nodes: a Kubeflow Trainer job as a value, and running it.

Inputs and outcome go through the store, so the nodes need no shared volume: every node fetches the inputs by their
content address, `torchrun` (Trainer's PET_* variables tell it who else there is) starts `llm-detox sft|dpo` in each of
its processes, and the first node publishes the finished folder.
"""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from llm_detox.cluster.api import JOB_SET_LABEL, Cluster, Conflict
from llm_detox.cluster.objects import Manifest
from llm_detox.errors import DetoxError
from llm_detox.progress import human_seconds, say
from llm_detox.recipe import Recipe
from llm_detox.recipe.cluster import IMAGE_VARIABLE, QUEUE_LABEL, WORKBENCH_IMAGE, ConnectionSection, toleration
from llm_detox.recipe.training import TrainJobSection
from llm_detox.runs.folders import digest_of, input_digest

JOB_FILE = "trainjob.yaml"
_INPUTS, _OUTCOME = "inputs", "outcome"  # in a folder of the pod that is its own
# Where the pods of a job, and those of the pipeline's steps, have an own certificate authority.
CA_FOLDER = "/etc/llm-detox/ca"
CA_FILE = f"{CA_FOLDER}/ca-bundle.crt"
CA_VARIABLES = ("AWS_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
_NODE = "node"  # what Trainer's torch runtimes call the replicated job, and its container
_LONGEST_NAME = 48  # the names of its pods are 15 letters longer, and end at 63
_GONE_SECONDS = 120.0
RUN_VARIABLE = "LLM_DETOX_RUN"  # the pipeline's placement tells its training steps which run they belong to
RUN_LABEL = "llm-detox/run"
_HELD = "suspended, as a queue does until there is room"
_INDEX = "batch.kubernetes.io/job-completion-index"


def train_job(job: TrainJobSection, connection: ConnectionSection, step: str, files: Mapping[str, str], *, name: str,
              inputs: str, outcome: str) -> Manifest:
    """The TrainJob of a step.

    Args:
        job: how many nodes, with what.
        connection: the Secrets and the authority, by name.
        step: "sft" or "dpo".
        files: option of the step -> file or folder among the inputs.
        name: of the job.
        inputs: the published inputs, `s3://bucket/prefix/digest`; `recipe.json` is one of them.
        outcome: where the first node publishes to.
    """
    given = " ".join(f"--{option} {_INPUTS}/{file}" for option, file in files.items())
    script = "\n".join((
        "set -eu",
        'cd "$(mktemp -d)"',
        f"llm-detox models fetch {shlex.quote(inputs)} {_INPUTS}",
        f"torchrun --no-python llm-detox {step} --recipe {_INPUTS}/recipe.json {given} --output {_OUTCOME}",
        f'if [ "${{PET_NODE_RANK:-0}}" = 0 ]; then llm-detox publish {_OUTCOME} {shlex.quote(outcome)}; fi'))
    amounts: Manifest = {"cpu": job.cpu, "memory": job.memory, **({job.gpu_resource: job.gpus} if job.gpus else {})}
    run = os.environ.get(RUN_VARIABLE)
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob",
        "metadata": {"name": name, "labels": {
            "app.kubernetes.io/part-of": "llm-detox", **({RUN_LABEL: run} if run else {}),
            **({QUEUE_LABEL: job.queue} if job.queue else {})}},
        "spec": {
            "runtimeRef": {"apiGroup": "trainer.kubeflow.org", "kind": "ClusterTrainingRuntime", "name": job.runtime},
            "activeDeadlineSeconds": job.deadline_seconds,
            "trainer": {
                "image": job.image or os.environ.get(IMAGE_VARIABLE) or WORKBENCH_IMAGE,
                "command": ["/bin/sh", "-c"], "args": [script], "env": _environment(connection),
                "numNodes": job.nodes, "numProcPerNode": max(1, job.gpus),
                "resourcesPerNode": {"requests": amounts, "limits": amounts}},
            "runtimePatches": [{"manager": "llm-detox.dev/pipeline", "trainingRuntimeSpec": {"template": {"spec": {
                "replicatedJobs": [{"name": _NODE, "template": {"spec": {"template": {
                    "spec": _pod(job, connection)}}}}]}}}}]}}


def _environment(connection: ConnectionSection) -> list[Manifest]:
    """Secrets by name, and where an own authority is."""
    secrets: list[tuple[str, str, Manifest]] = [(connection.s3_secret, key, {}) for key in connection.s3_keys]
    if connection.hub_secret:
        secrets.append((connection.hub_secret, "HF_TOKEN", {"optional": True}))
    return [*({"name": key, "valueFrom": {"secretKeyRef": {"name": name, "key": key, **more}}}
              for name, key, more in secrets),
            *({"name": name, "value": CA_FILE} for name in CA_VARIABLES if connection.ca_config_map)]


def _pod(job: TrainJobSection, connection: ConnectionSection) -> Manifest:
    """What the job changes in the pods of its runtime: they meet the restricted standard, without a token."""
    volumes: list[Manifest] = []
    mounts: list[Manifest] = []
    if job.shm:  # NCCL passes tensors between the GPUs of a node through it; a container's own has 64 MiB
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": job.shm}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})  # noqa: S108
    if connection.ca_config_map:
        volumes.append({"name": "ca", "configMap": {"name": connection.ca_config_map}})
        mounts.append({"name": "ca", "mountPath": CA_FOLDER, "readOnly": True})
    container: Manifest = {"name": _NODE, "volumeMounts": mounts, "securityContext": {
        "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}}
    more: Manifest = {"nodeSelector": job.node_selector, "tolerations": [toleration(one) for one in job.tolerations],
                    "volumes": volumes}
    return {
        "serviceAccountName": job.account,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [_without_empty(container)], **_without_empty(more)}


def _without_empty(thing: Manifest) -> Manifest:
    return {key: value for key, value in thing.items() if value}


def train_on_nodes(recipe: Recipe, step: str, inputs: Mapping[str, Path], *, output: Path,
                   cluster: Cluster | None = None, poll_seconds: float = 10.0) -> dict[str, Any]:
    """Run a training step as a TrainJob and bring its folder back.

    A step that is tried again finds the job of its recipe and inputs, and waits for it instead of training twice; a job
    that failed is made anew, and one that takes too long is removed.

    Args:
        recipe: what to train; `publish.url` is the store.
        step: "sft" or "dpo".
        inputs: option of the step -> file or folder, such as "input" -> texts.jsonl.
        output: the folder to make: what the step would have written here, and the job as `trainjob.yaml`.
        cluster: instead of the configured one.

    Returns:
        the figures of the step, as its manifest has them.

    Raises:
        DetoxError: the cluster has no Trainer, the job fails, is removed or takes too long, or the store fails.
    """
    from llm_detox.runs.folders import read_manifest
    from llm_detox.storage import fetch_model, publish

    digest = digest_of([recipe.model_dump(mode="json"), step, *(input_digest(path) for path in inputs.values())])
    end = f"-{step}-{digest[:12]}"
    name = recipe.deploy.name[:_LONGEST_NAME - len(end)].rstrip("-") + end
    place = f"{recipe.publish.url.rstrip('/')}/training/{name}"
    with tempfile.TemporaryDirectory() as folder:
        files = _gather(recipe.model_dump_json(), inputs, Path(folder))
        address = publish(Path(folder), f"{place}/inputs").address
    job = train_job(recipe.training.job, recipe.cluster, step, files, name=name, inputs=address,
                    outcome=f"{place}/outcome")
    job_yaml = yaml.safe_dump(job, sort_keys=False)
    say(job_yaml)
    cluster = cluster or Cluster.connect()
    _create(cluster, job, poll_seconds)
    _wait(cluster, name, recipe.training.job, poll_seconds)
    fetch_model(f"{place}/outcome", output)
    (output / JOB_FILE).write_text(job_yaml, "utf-8")
    result: dict[str, Any] = read_manifest(output)["result"]
    return result


def remove_running(cluster: Cluster, run: str) -> list[str]:
    """Remove the jobs of a pipeline run that have not ended; their names."""
    running = [job.name for job in cluster.train_jobs(f"{RUN_LABEL}={run}") if not job.complete and not job.failed]
    for name in running:
        cluster.delete_train_job(name)
    return running


def _gather(recipe_json: str, inputs: Mapping[str, Path], folder: Path) -> dict[str, str]:
    """Copy all that the nodes read into a folder; option of the step -> name there."""
    (folder / "recipe.json").write_text(recipe_json, "utf-8")
    files = {}
    for option, path in inputs.items():
        files[option] = option if path.is_dir() else f"{option}{path.suffix}"
        if path.is_dir():
            shutil.copytree(path, folder / option)
        else:
            shutil.copyfile(path, folder / files[option])
    return files


def _create(cluster: Cluster, job: Manifest, poll: float) -> None:
    """Make the job, unless it is there and has not failed."""
    name, until = job["metadata"]["name"], time.monotonic() + _GONE_SECONDS
    while True:
        try:
            cluster.create_train_job(job)
            say(f"{name}: created, {job['spec']['trainer']['numNodes']} nodes")
            return
        except Conflict:
            there = cluster.train_job(name)
        leaving = there is None or there.leaving
        if there is not None and not leaving and not there.failed:
            say(f"{name}: exists already; waiting for it")
            return
        if time.monotonic() >= until:
            raise DetoxError("the job that failed before is still not removed", place=name,
                             remedy=f"see its finalizers: oc get trainjob {name} -o yaml")
        if not leaving:
            say(f"{name}: failed before; removing it to train again")
            cluster.delete_train_job(name)
        time.sleep(poll)


def _wait(cluster: Cluster, name: str, settings: TrainJobSection, poll: float) -> None:
    """Until the job is complete; what its nodes do is said when it changes.

    Trainer lets nobody set how often Kubernetes starts a node again, and six times is its habit: a training that fails
    for a reason of its own would hold its GPUs for nothing. So the nodes are counted here.
    """
    started, said, deadline = time.monotonic(), "", settings.deadline_seconds
    while True:
        job = cluster.train_job(name)
        if job is None:
            raise DetoxError(f"the training job {name} was removed", place=f"namespace {cluster.namespace}",
                             remedy="run the pipeline again, if the training is still wanted")
        if job.suspended:  # by a queue or by somebody: the time that the job may take has not begun
            if said != _HELD:
                say(f"{name}: {_HELD}")
            started, said = time.monotonic(), _HELD
        elif job.nodes and job.nodes != said:
            said = job.nodes
            say(f"{name}: nodes {said} ({human_seconds(time.monotonic() - started)})")
        if job.complete:
            return
        if not job.failed:
            _end_where_it_fails_again(cluster, name, settings.restarts)
        late = time.monotonic() - started > deadline
        if late and not job.failed:
            cluster.delete_train_job(name)
        if job.failed or late:
            raise _failure(cluster, name, job.message or f"not complete after {human_seconds(deadline)}")
        time.sleep(poll)


def _end_where_it_fails_again(cluster: Cluster, name: str, restarts: int) -> None:
    """Remove the job once a node has failed more often than it may be started again."""
    failures: dict[str, int] = {}
    causes: dict[str, str] = {}
    for pod in cluster.pods_of_train_job(name):
        node = pod.annotations.get(_INDEX, "0")
        failures[node] = failures.get(node, 0) + (pod.phase == "Failed") + sum(one.restarts for one in pod.containers)
        for one in pod.containers:
            if end := one.termination or one.last_termination:
                causes[node] = (end.message or end.reason).strip() + f" (exit code {end.exit_code})"
    node = max(failures, key=lambda key: failures[key], default="")
    if node and failures[node] > restarts:
        cluster.delete_train_job(name)
        raise _failure(cluster, name, f"node {node} ended {failures[node]} times: {causes.get(node, 'no message')}")


def _failure(cluster: Cluster, name: str, cause: str) -> DetoxError:
    return DetoxError(f"the training on {name}'s nodes failed: {cause}", place=f"namespace {cluster.namespace}",
                      remedy=f"read its log: oc logs -l {JOB_SET_LABEL}={name}; a repeated step creates the job again")
