"""What this process shows to a model server and whom it trusts, where nobody says so in the call.

In a pod both are at hand: the token of its account, which OpenShift AI's proxy in front of a protected model takes, and
the authority that signs the cluster's own services. They are for hosts of the cluster alone: a token that another host
was shown would be lost.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

TOKEN_VARIABLE, CA_VARIABLE = "LLM_DETOX_TOKEN", "LLM_DETOX_CA"
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TLS = {"https", "openai+https", "grpcs"}


@dataclass(frozen=True)
class Credentials:
    """A bearer token, never shown, and the PEM file of the authorities that are trusted; None takes the system's."""

    token: str | None
    ca_file: Path | None

    def options(self) -> dict[str, Any]:
        """For the clients."""
        return {"token": self.token, "ca_file": self.ca_file}

    def __repr__(self) -> str:
        return f"Credentials(token={'given' if self.token else None}, ca_file={self.ca_file})"


def credentials_for(url: str, *, ca_file: Path | None = None) -> Credentials:
    """The token and the authority for a server.

    Args:
        url: the server's address.
        ca_file: an authority that somebody named; it counts before all others.

    Returns:
        `LLM_DETOX_TOKEN` and `LLM_DETOX_CA` where they are set; else, over TLS to a service of the cluster that this
        pod runs in, the account's token and the service authority.
    """
    token, named = os.environ.get(TOKEN_VARIABLE) or None, ca_file or _path(os.environ.get(CA_VARIABLE))
    if not _is_inside(url):
        return Credentials(token, named)
    authority = ACCOUNT / "service-ca.crt"
    return Credentials(token or _text(ACCOUNT / "token"), named or (authority if authority.exists() else None))


def _is_inside(url: str) -> bool:
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    return parts.scheme in _TLS and host.endswith((".svc", ".svc.cluster.local"))


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _text(path: Path) -> str | None:
    """Read anew for each client: Kubernetes puts a new token there before the old one expires."""
    try:
        return path.read_text("utf-8").strip() or None
    except OSError:
        return None
