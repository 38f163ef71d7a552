"""The Trainer stand-in makes of the recorded TrainJob what Kubeflow Trainer, JobSet and Kubernetes made of it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.standins.recordings import ROOT, differences, documents, documents_of, needs_recordings, only
from tests.standins.trainer import Ids, job_of, job_set_of, pod_of, service_of, train_job_status

Object = dict[str, Any]
pytestmark = needs_recordings
RANDOM = ((re.compile(r"kube-api-access-[a-z0-9]{5}\b"), "kube-api-access-xxxxx"),
          (re.compile(r"(node-0-\d)-[a-z0-9]{5}\b"), r"\1-xxxxx"))


def recording() -> list[Object]:
    text = (ROOT / "trainer" / "made.yaml").read_text("utf-8")
    for pattern, plain in RANDOM:
        text = pattern.sub(plain, text)
    return documents_of(text)


def ids() -> Ids:
    labels = only(recording(), "Job")["spec"]["template"]["metadata"]["labels"]
    return Ids(labels["jobset.sigs.k8s.io/jobset-uid"], labels["controller-uid"], labels["jobset.sigs.k8s.io/job-key"])


def results() -> list[Object]:
    [train_job] = documents(ROOT / "trainer" / "given.yaml")
    job_set = job_set_of(train_job, "llm-detox")
    job = job_of(job_set, ids())
    return [job_set, job, service_of(job_set), *(pod_of(job, index) for index in range(2))]


@pytest.mark.parametrize("kind", ["JobSet", "Job", "Service", "Pod"])
def test_each_object_of_a_trainjob_is_made_field_by_field_as_recorded(kind: str) -> None:
    theirs, ours = ({one["metadata"]["name"]: one for one in objects if one["kind"] == kind}
                    for objects in (recording(), results()))
    assert theirs
    assert differences(theirs, ours) == []


def test_a_training_that_runs_or_starts_again_has_no_condition_and_an_ended_one_says_how() -> None:
    job = only(results(), "Job")
    job["status"] = {"active": 2, "ready": 2, "failed": 5}
    running = train_job_status(job)
    assert "conditions" not in running
    assert (running["jobsStatus"][0]["active"], running["jobsStatus"][0]["ready"]) == (1, 1)
    job["status"] = {"conditions": [{"type": "Failed", "status": "True"}]}
    [failed] = train_job_status(job)["conditions"]
    assert (failed["type"], failed["reason"]) == ("Failed", "FailedJobs")
    assert failed["message"].endswith("(first failed job: llm-detox-sft-0123456789ab-node-0)")
    job["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}
    [complete] = train_job_status(job)["conditions"]
    assert (complete["type"], complete["reason"]) == ("Complete", "AllJobsCompleted")
