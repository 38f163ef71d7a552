"""What to send so that a live object becomes what is wanted, and what others set stays: the rule of kubectl apply.

Three states take part: what was wanted last time (kept in an annotation, the one that kubectl uses, so that the two
can take turns), what is live, and what is wanted now.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llm_detox.cluster.objects import Manifest

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


def with_last_applied(wanted: Mapping[str, Any]) -> Manifest:
    """The object with the annotation that says what was wanted."""
    plain = without_last_applied(wanted)
    note = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
    metadata = plain["metadata"]
    annotations = {**metadata.get("annotations", {}), LAST_APPLIED: note}
    return {**plain, "metadata": {**metadata, "annotations": annotations}}


def without_last_applied(thing: Mapping[str, Any]) -> Manifest:
    """The object without that annotation."""
    metadata = dict(thing["metadata"])
    if "annotations" in metadata:
        metadata["annotations"] = {key: value for key, value in metadata["annotations"].items() if key != LAST_APPLIED}
    return {**thing, "metadata": metadata}


def last_applied(live: Mapping[str, Any]) -> Manifest:
    """What was wanted last time; empty where nobody noted it."""
    try:
        noted = json.loads(live["metadata"].get("annotations", {}).get(LAST_APPLIED, "{}"))
    except ValueError:
        return {}
    return noted if isinstance(noted, dict) else {}


def merge_patch(last: Mapping[str, Any], live: Mapping[str, Any], wanted: Mapping[str, Any]) -> Manifest:
    """A JSON merge patch (RFC 7386); empty where nothing is to do.

    Fields that are wanted are set; those wanted last time and no more are removed; all others are left alone. Lists
    are replaced as a whole.
    """
    patch: Manifest = {}
    for key, value in wanted.items():
        if isinstance(value, Mapping) and isinstance(live.get(key), Mapping):
            older = last.get(key)
            inner = merge_patch(older if isinstance(older, Mapping) else {}, live[key], value)
            if inner:
                patch[key] = inner
        elif key not in live or live[key] != value:
            patch[key] = value
    patch.update({key: None for key in last if key not in wanted and key in live})
    return patch
