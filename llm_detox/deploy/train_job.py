"""Training on several nodes: a Kubeflow Trainer job as a value, and running it.

Inputs and outcome go through the store, so the nodes need no shared volume: every node fetches the inputs by their
content address, `torchrun` (Trainer's PET_* variables tell it who else there is) starts `llm-detox sft|dpo` in each of
its processes, and the first node publishes the finished folder.
"""

from __future__ import annotations

import shlex
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from llm_detox.deploy.kserve_api import Cluster, Conflict
from llm_detox.deploy.kserve_render import toleration
from llm_detox.errors import DetoxError
from llm_detox.folders import digest_of, input_digest
from llm_detox.progress import human_seconds, say
from llm_detox.recipe import Recipe

Object = dict[str, Any]

JOB_FILE = "trainjob.yaml"
_INPUTS, _OUTCOME = "inputs", "outcome"  # in a folder of the pod that is its own
_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_S3_ENDPOINT", "AWS_DEFAULT_REGION")
_NODE = "node"  # what Trainer's torch runtimes call the replicated job
_LONGEST_NAME = 63


def train_job(recipe: Recipe, step: str, files: Mapping[str, str], *, name: str, inputs: str, outcome: str) -> Object:
    """The TrainJob of a step.

    Args:
        recipe: its `training.job` section says how many nodes, with what.
        step: "sft" or "dpo".
        files: option of the step -> file or folder among the inputs.
        name: of the job.
        inputs: the published inputs, `s3://bucket/prefix/digest`; `recipe.json` is one of them.
        outcome: where the first node publishes to.
    """
    job = recipe.training.job
    given = " ".join(f"--{option} {_INPUTS}/{file}" for option, file in files.items())
    script = "\n".join((
        "set -eu",
        'cd "$(mktemp -d)"',
        f"llm-detox models fetch {shlex.quote(inputs)} {_INPUTS}",
        f"torchrun --no-python llm-detox {step} --recipe {_INPUTS}/recipe.json {given} --output {_OUTCOME}",
        f'if [ "${{PET_NODE_RANK:-0}}" = 0 ]; then llm-detox publish {_OUTCOME} {shlex.quote(outcome)}; fi'))
    amounts: Object = {"cpu": job.cpu, "memory": job.memory, **({job.gpu_resource: job.gpus} if job.gpus else {})}
    secret = [{"name": key, "valueFrom": {"secretKeyRef": {"name": job.s3_secret, "key": key}}} for key in _KEYS]
    pod = {"nodeSelector": job.node_selector, "tolerations": [toleration(one) for one in job.tolerations]}
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "llm-detox"}},
        "spec": {
            "runtimeRef": {"apiGroup": "trainer.kubeflow.org", "kind": "ClusterTrainingRuntime", "name": job.runtime},
            "activeDeadlineSeconds": job.deadline_seconds,
            "trainer": {
                "image": job.image, "command": ["/bin/sh", "-c"], "args": [script], "env": secret,
                "numNodes": job.nodes, "numProcPerNode": max(1, job.gpus),
                "resourcesPerNode": {"requests": amounts, "limits": amounts}},
            **_patches({key: value for key, value in pod.items() if value})}}


def _patches(pod: Object) -> Object:
    """What the job changes in the pods of its runtime."""
    if not pod:
        return {}
    node = {"name": _NODE, "template": {"spec": {"template": {"spec": pod}}}}
    return {"runtimePatches": [{"manager": "llm-detox.dev/pipeline",
                                "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [node]}}}}]}


def train_on_nodes(recipe: Recipe, step: str, inputs: Mapping[str, Path], *, output: Path,
                   cluster: Cluster | None = None, poll_seconds: float = 10.0) -> dict[str, Any]:
    """Run a training step as a TrainJob and bring its folder back.

    A step that is tried again finds the job of its recipe and inputs, and waits for it instead of training twice.

    Args:
        recipe: what to train; `publish.url` is the store.
        step: "sft" or "dpo".
        inputs: option of the step -> file or folder, such as "input" -> texts.jsonl.
        output: the folder to make: what the step would have written here, and the job as `trainjob.yaml`.
        cluster: instead of the configured one.

    Returns:
        the figures of the step, as its manifest has them.

    Raises:
        DetoxError: the cluster has no Trainer, the job fails or takes too long, or the store fails.
    """
    from llm_detox.folders import read_manifest
    from llm_detox.storage import fetch_model, publish

    digest = digest_of([recipe.model_dump(mode="json"), step, *(input_digest(path) for path in inputs.values())])
    name = f"{recipe.deploy.name}-{step}-{digest[:12]}"[-_LONGEST_NAME:].lstrip("-0123456789")
    place = f"{recipe.publish.url.rstrip('/')}/training/{name}"
    with tempfile.TemporaryDirectory() as folder:
        files = _gather(recipe, inputs, Path(folder))
        address = publish(Path(folder), f"{place}/inputs")["address"]
    job = train_job(recipe, step, files, name=name, inputs=address, outcome=f"{place}/outcome")
    job_yaml = yaml.safe_dump(job, sort_keys=False)
    say(job_yaml)
    cluster = cluster or Cluster.connect()
    try:
        cluster.create_train_job(job)
        say(f"{name}: created, {recipe.training.job.nodes} nodes")
    except Conflict:
        say(f"{name}: is there already; waiting for it")
    _wait(cluster, name, recipe.training.job.deadline_seconds, poll_seconds)
    fetch_model(f"{place}/outcome", output)
    (output / JOB_FILE).write_text(job_yaml, "utf-8")
    result: dict[str, Any] = read_manifest(output)["result"]
    return result


def _gather(recipe: Recipe, inputs: Mapping[str, Path], folder: Path) -> dict[str, str]:
    (folder / "recipe.json").write_text(recipe.model_dump_json(), "utf-8")
    files = {}
    for option, path in inputs.items():
        files[option] = option if path.is_dir() else f"{option}{path.suffix}"
        if path.is_dir():
            shutil.copytree(path, folder / option)
        else:
            shutil.copyfile(path, folder / files[option])
    return files


def _wait(cluster: Cluster, name: str, deadline: float, poll: float) -> None:
    """Until the job is complete; what its nodes do is told when it changes."""
    started, told = time.monotonic(), ""
    while True:
        status = (cluster.train_job(name) or {}).get("status") or {}
        ended = {one["type"]: one for one in status.get("conditions", ()) if one.get("status") == "True"}
        now = ", ".join(f"{count} {what}" for one in status.get("jobsStatus", ()) if one["name"] == _NODE
                        for what in ("active", "ready", "succeeded", "failed") if (count := one.get(what)))
        if now and now != told:
            told = now
            say(f"{name}: nodes {now} ({human_seconds(time.monotonic() - started)})")
        if "Complete" in ended:
            return
        if "Failed" in ended or time.monotonic() - started > deadline:
            why = ended.get("Failed", {}).get("message") or f"not complete after {human_seconds(deadline)}"
            raise DetoxError(f"the training on {name}'s nodes failed: {why}", place=f"namespace {cluster.namespace}",
                             remedy=f"read its log: oc logs -l jobset.sigs.k8s.io/jobset-name={name}; then "
                                    f"oc delete trainjob {name}, and run the pipeline again")
        time.sleep(poll)
