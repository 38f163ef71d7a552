"""Setting the fields of an InferenceService that a deployment means, and no others; and putting them back.

It is Kubernetes' server-side apply under a field manager of our own: what the dashboard, an administrator or an
autoscaler has set stays theirs.
"""

from __future__ import annotations

import time
from typing import Any

from llm_detox.cluster.api import FIELD_MANAGER, Cluster, Conflict, FieldConflict
from llm_detox.cluster.objects import STOP, InferenceService, Manifest
from llm_detox.errors import DetoxError
from llm_detox.progress import say
from llm_detox.serve.kserve.render import RUN, Wanted, merged

# Owns what is set once. Nobody applies under this name a second time, so that such fields stay until somebody else
# sets them, and nothing that we send later removes them.
_INITIAL_MANAGER = f"{FIELD_MANAGER}-initial"
# Ourselves, earlier releases of ours, and `kubectl apply -k` of the same YAML by hand.
_OURS = {FIELD_MANAGER, _INITIAL_MANAGER, "OpenAPI-Generator", "kubectl-client-side-apply", "kubectl"}
_CONFLICTS = 8
_GONE_SECONDS = 120.0
_IDENTITY = ("apiVersion", "kind")
_START: Manifest = {"metadata": {"annotations": {STOP: "false"}}}


def apply(cluster: Cluster, wanted: Wanted, *, dry_run: bool = False) -> bool:
    """Make the InferenceService, or set the fields that are meant; a stopped one is started.

    Returns:
        Whether anything is different from what it was.

    Raises:
        DetoxError: others have set some of the fields to other values, or it is still being removed.
    """
    live = wait_while_leaving(cluster, wanted.name)
    if live is None:
        _make(cluster, wanted, dry_run=dry_run)
        return True
    if not dry_run and merged(live.manifest, wanted.switches) != live.manifest:
        cluster.patch(wanted.name, wanted.switches)
    after = _set(cluster, wanted.meant, dry_run=dry_run)
    if live.is_stopped and not dry_run:
        say(f"{wanted.name}: it was stopped; starting it")
        cluster.patch(wanted.name, _START)
        return True
    return _content(after) != _content(live)


def put_back(cluster: Cluster, before: InferenceService, wanted: Wanted) -> None:
    """Give the fields that a deployment has set their values of before; those that were not there go.

    Raises:
        DetoxError: others have changed them meanwhile, or the cluster refuses.
    """
    fields = merged(_names_of(wanted.meant), _owned_by_us(before.manifest))
    identity = {key: before.manifest[key] for key in _IDENTITY}
    metadata = {"name": before.name, "namespace": before.namespace}
    _set(cluster, merged({**identity, "metadata": metadata}, _picked(before.manifest, fields)))
    switches = merged(wanted.switches, _START if before.is_stopped else {})
    if switches:
        cluster.patch(before.name, _values_of_before(switches, before.manifest))


def wait_while_leaving(cluster: Cluster, name: str) -> InferenceService | None:
    """The live object; one that is being removed is waited for, because a change to it would go with it."""
    until = time.monotonic() + _GONE_SECONDS
    while True:
        live = cluster.service(name)
        if live is None or not live.leaving:
            return live
        if time.monotonic() >= until:
            raise DetoxError("the InferenceService is still not removed", place=name,
                             remedy="see its finalizers: oc get inferenceservice -o yaml")
        time.sleep(0.5)


def _make(cluster: Cluster, wanted: Wanted, *, dry_run: bool) -> None:
    """Make it whole, and then let go of what is only the beginning."""
    first = wanted.first()
    _set(cluster, first, dry_run=dry_run)
    if dry_run:
        return
    initial = {**{key: first[key] for key in _IDENTITY}, **_with_name(merged(wanted.initial, wanted.switches), first)}
    _set(cluster, initial, manager=_INITIAL_MANAGER)
    _set(cluster, wanted.meant)


def _set(cluster: Cluster, manifest: Manifest, *, manager: str = FIELD_MANAGER,
         dry_run: bool = False) -> InferenceService:
    """Apply; fields of our own earlier ways are taken over, those of strangers are a failure that names them."""
    name = manifest["metadata"]["name"]
    for _ in range(_CONFLICTS):
        try:
            return cluster.apply(manifest, manager=manager, dry_run=dry_run)
        except FieldConflict as conflict:
            others = [owner for owner in conflict.owners if owner.manager not in _OURS]
            if others:
                raise _refusal(name, conflict, others) from None
            return cluster.apply(manifest, manager=manager, force=True, dry_run=dry_run)
        except Conflict:
            say(f"{name}: somebody else changed it at the same time; trying again")
    raise DetoxError("others keep changing the InferenceService", place=name,
                     remedy="see who does: oc get inferenceservice --show-managed-fields -o yaml")


def _refusal(name: str, conflict: FieldConflict, others: list[Any]) -> DetoxError:
    owners = "; ".join(f"{owner.manager}: {owner.field.lstrip('.')}" for owner in others)
    return DetoxError(
        f"the recipe sets fields that others have set to other values ({owners})", place=f"InferenceService {name}",
        remedy="write their values into the recipe's deploy.kserve (null leaves a field to others), or have them let "
               "go of the fields")


def _content(service: InferenceService) -> tuple[Any, ...]:
    """What somebody wanted of it, without its status and its bookkeeping."""
    annotations = {key: value for key, value in service.annotations.items() if key != RUN}
    return service.manifest.get("spec"), dict(service.labels), annotations


def _with_name(manifest: Manifest, named: Manifest) -> Manifest:
    metadata = {key: named["metadata"][key] for key in ("name", "namespace")}
    return merged({"metadata": metadata}, manifest)


def _names_of(manifest: Manifest) -> Manifest:
    """The names of the fields, down to what is no mapping."""
    return {key: _names_of(value) if isinstance(value, dict) else True for key, value in manifest.items()}


def _owned_by_us(manifest: Manifest) -> Manifest:
    """The names of the fields that our last apply named, by `metadata.managedFields` (format FieldsV1)."""
    fields: Manifest = {}
    for one in manifest["metadata"].get("managedFields") or ():
        if one.get("manager") == FIELD_MANAGER and one.get("operation") == "Apply":
            fields = merged(fields, _from_fields_v1(one["fieldsV1"]))
    return fields


def _from_fields_v1(fields: Manifest) -> Manifest:
    """`f:name` is a field; `k:`, `v:` and `.` belong to lists and to the mapping itself, which count as a whole."""
    return {key[2:]: _from_fields_v1(value) or True for key, value in fields.items() if key.startswith("f:")}


def _picked(manifest: Manifest, names: Manifest) -> Manifest:
    """The fields of these names, as far as they are there."""
    return {key: _picked(manifest[key], below) if isinstance(below, dict) and isinstance(manifest[key], dict)
            else manifest[key] for key, below in names.items() if key in manifest}


def _values_of_before(patch: Manifest, before: Manifest) -> Manifest:
    """A merge patch of the same fields, with the values of before."""
    return {key: _values_of_before(value, before.get(key) or {}) if isinstance(value, dict) else before.get(key)
            for key, value in patch.items()}
