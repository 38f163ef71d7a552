"""Schemas that refuse unknown fields: Kubernetes' own, and those in the CRDs (which prune instead of refusing)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jsonschema
import kubernetes_validate

from tests.conftest import SHARED
from tests.manifests import kustomize

KUBERNETES = "1.34"
_METADATA = {"type": "object", "additionalProperties": False, "required": ["name"], "properties": {
    "name": {"type": "string", "maxLength": 53, "pattern": r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"},
    "namespace": {"type": "string"},
    "labels": {"type": "object", "additionalProperties": {"type": "string", "maxLength": 63}},
    "annotations": {"type": "object", "additionalProperties": {"type": "string"}}}}
_ANY = {"x-kubernetes-preserve-unknown-fields": True, "type": "object"}

# OpenShift's and the Prometheus operator's kinds, as far as they are used here; their CRDs are not at hand.
_ELSEWHERE: dict[tuple[str, str], dict[str, Any]] = {
    ("template.openshift.io/v1", "Template"): {"properties": {
        "objects": {"type": "array", "items": _ANY}, "parameters": {"type": "array"}}, "required": ["objects"]},
    ("route.openshift.io/v1", "Route"): {"required": ["spec"], "properties": {"spec": {
        "type": "object", "required": ["to"], "properties": {
            "to": {"type": "object", "required": ["kind", "name"], "properties": {
                "kind": {"enum": ["Service"]}, "name": {"type": "string"}, "weight": {"type": "integer"}}},
            "port": {"type": "object", "properties": {"targetPort": {"type": "string"}}},
            "tls": {"type": "object", "properties": {
                "termination": {"enum": ["edge", "passthrough", "reencrypt"]},
                "insecureEdgeTerminationPolicy": {"enum": ["None", "Redirect"]}}}}}}},
    ("monitoring.coreos.com/v1", "ServiceMonitor"): {"required": ["spec"], "properties": {"spec": {
        "type": "object", "required": ["selector", "endpoints"], "properties": {
            "selector": {"type": "object", "properties": {"matchLabels": {
                "type": "object", "additionalProperties": {"type": "string"}}}},
            "endpoints": {"type": "array", "items": {"type": "object", "properties": {
                "port": {"type": "string"}, "path": {"type": "string"}, "interval": {"type": "string"}}}}}}}},
}


class Refused(Exception):
    """An object does not fit its schema."""


def check(thing: dict[str, Any]) -> None:
    """Validate one object; the kind decides by which schema.

    Raises:
        Refused, kubernetes_validate.ValidationError: it does not fit, or has unknown fields.
    """
    key = (str(thing["apiVersion"]), str(thing["kind"]))
    if schema := _ELSEWHERE.get(key):
        _validate(thing, strict(_with_metadata(schema)))
        for inner in thing.get("objects", ()):
            check(inner)
    elif schema := custom_schemas().get(key):
        _validate(thing, schema)
    else:
        kubernetes_validate.validate(thing, KUBERNETES, strict=True)


def _validate(thing: dict[str, Any], schema: dict[str, Any]) -> None:
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(thing))
    if error is not None:  # a message of one line: these schemas have tens of thousands
        raise Refused(f"{thing['kind']} {thing['metadata'].get('name')}: {error.json_path}: {error.message[:500]}")


@lru_cache
def custom_schemas() -> dict[tuple[str, str], dict[str, Any]]:
    """(apiVersion, kind) -> strict schema, from the CRDs beside the checkout."""
    found = {}
    for path in sorted((SHARED / "crds").glob("*.yaml")):
        crd = kustomize.load(path)["spec"]
        for version in crd["versions"]:
            schema = version["schema"]["openAPIV3Schema"]
            found[f"{crd['group']}/{version['name']}", crd["names"]["kind"]] = strict(_with_metadata(schema))
    return found


def strict(schema: Any) -> Any:
    """A structural schema as JSON schema in which fields that are not declared are refused."""
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]} | ({"pattern": schema["pattern"]} if "pattern" in schema else {})
    out = {name: value for name, value in schema.items() if name not in ("properties", "items")}
    if "items" in schema:
        out["items"] = strict(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        out["additionalProperties"] = strict(schema["additionalProperties"])
    if "properties" in schema:
        out["properties"] = {name: strict(value) for name, value in schema["properties"].items()}
        if "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            out["additionalProperties"] = False
    return out


def _with_metadata(schema: dict[str, Any]) -> dict[str, Any]:
    properties = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, **schema["properties"]}
    return {"type": "object", **schema, "properties": properties | {"metadata": _METADATA}}
