"""What our own requests over HTTPS share: whom they trust, and what a failure to connect was about."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from pathlib import Path

from llm_detox.errors import DetoxError

# Whoever sets one of the others means all that this process connects to; in a pipeline all three name the same file.
CA_VARIABLES = ("LLM_DETOX_CA", "AWS_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_INSIDE = (".svc", ".svc.cluster.local")


def trusted(host: str) -> ssl.SSLContext:
    """The authorities that may sign the certificate of a host.

    Args:
        host: its name; a service of the cluster is signed by the cluster's own authority, which a pod finds.

    Raises:
        DetoxError: a variable names a file that is missing or is none of certificates.
    """
    named = next((os.environ[name] for name in CA_VARIABLES if os.environ.get(name)), None)
    if named and not Path(named).is_file():
        raise DetoxError("the file of authorities does not exist", place=named,
                         remedy=f"point {', '.join(CA_VARIABLES)} to a PEM file, or unset them")
    try:
        context = ssl.create_default_context(cafile=named)
        own = ACCOUNT / "service-ca.crt"
        if is_inside(host) and own.exists():
            context.load_verify_locations(own)
    except ssl.SSLError:
        raise DetoxError("this is no PEM file of certificates", place=named, remedy="name another one") from None
    return context


def is_inside(host: str) -> bool:
    """Whether a host is a service of the cluster: who is there may see the token of a pod's account."""
    return host.rstrip(".").endswith(_INSIDE)


def is_untrusted(error: BaseException) -> bool:
    """Whether the certificate was the reason."""
    return any(isinstance(one, ssl.SSLCertVerificationError) for one in _causes(error))


def speaks_no_tls(error: BaseException) -> bool:
    """Whether the other side answered something else than TLS."""
    return any(isinstance(one, ssl.SSLError) for one in _causes(error)) and not is_untrusted(error)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
