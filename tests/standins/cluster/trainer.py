"""Kubeflow Trainer and JobSet at work in one namespace, as `tests.standins.trainer` measured them.

The kind JobSet is not installed: its Job and its Service are made at once. Kubernetes' own controller makes the pods.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from tests.standins.cluster.api import Api
from tests.standins.cluster.worker import Worker
from tests.standins.trainer import Ids, job_of, job_set_of, service_of, train_job_status

Object = dict[str, Any]
_SET_BY_THE_SERVER = ("controller-uid", "job-name", "batch.kubernetes.io/controller-uid",
                      "batch.kubernetes.io/job-name")


class Trainer(Worker):
    """The controllers."""

    kinds = ("TrainJob", "Job")

    def __init__(self, api: Api, namespace: str) -> None:
        super().__init__(api, namespace)
        self._written: dict[str, Object] = {}

    def look(self) -> None:
        for train_job in self.api.list("TrainJob", self.namespace):
            if "deletionTimestamp" not in train_job["metadata"]:
                self._reconcile(train_job)

    def _reconcile(self, train_job: Object) -> None:
        given = train_job["metadata"]
        job_set = job_set_of(train_job, self.namespace)
        wanted = job_of(job_set, Ids(given["uid"], given["uid"], "0" * 40))
        live = self.api.get("Job", self.namespace, wanted["metadata"]["name"])
        if live is None:
            service = service_of(job_set)
            service["spec"]["clusterIP"] = "None"  # the recordings are without addresses
            for one in (service, _as_sent(wanted)):
                one["metadata"]["ownerReferences"] = [{
                    "apiVersion": train_job["apiVersion"], "kind": train_job["kind"], "name": given["name"],
                    "uid": given["uid"], "controller": True, "blockOwnerDeletion": True}]
                self.api.apply(one)
            return
        status = train_job_status(live)
        if self._written.get(given["uid"]) != status:
            self.api.replace({**train_job, "status": _with_times(status)}, sub="status")
            self._written[given["uid"]] = status


def _with_times(status: Object) -> Object:
    """With what the recordings are without and the schema asks for: times, and the count of suspended jobs."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    conditions = [{**one, "lastTransitionTime": now} for one in status.get("conditions", ())]
    return {"jobsStatus": [{**one, "suspended": 0} for one in status["jobsStatus"]],
            **({"conditions": conditions} if conditions else {})}


def _as_sent(job: Object) -> Object:
    """Without what the API server writes: the selector, and the labels that it is made of."""
    del job["spec"]["selector"]
    labels = job["spec"]["template"]["metadata"]["labels"]
    for key in _SET_BY_THE_SERVER:
        labels.pop(key, None)
    return job
