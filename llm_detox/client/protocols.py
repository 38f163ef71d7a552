"""Addresses: which protocol speaks to which server, and the address of one model at a server."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from llm_detox.client.types import AsyncTransport, Server, Transport
from llm_detox.errors import UsageError

_SCHEMES = ("http:// or https:// (Caikit REST), grpc:// or grpcs:// (Caikit gRPC), fmaas:// or fmaass:// (TGIS gRPC), "
            "openai+http:// or openai+https://")
_ADDRESS = re.compile(r"(https?|grpcs?|fmaass?|openai\+https?)://")


def is_address(source: str) -> bool:
    """Whether a model source is the address of a served one."""
    return bool(_ADDRESS.match(source))


def split_address(address: str) -> tuple[str, str]:
    """`grpc://host:port/org/model` -> (`grpc://host:port`, `org/model`)."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}", parts.path.strip("/")


def open_transport(server: Server) -> Transport:
    """The transport that blocks.

    Raises:
        UsageError: the address has another form.
    """
    over_http, dialect, tls = _protocol(server)
    if over_http:
        from llm_detox.client.http import HttpTransport

        return HttpTransport(server, dialect)
    from llm_detox.client.grpc import GrpcTransport

    return GrpcTransport(server, dialect, tls=tls)


def open_async_transport(server: Server) -> AsyncTransport:
    """The transport that is awaited; called in the event loop that will use it.

    Raises:
        UsageError: the address has another form.
    """
    over_http, dialect, tls = _protocol(server)
    if over_http:
        from llm_detox.client.http import AsyncHttpTransport

        return AsyncHttpTransport(server, dialect)
    from llm_detox.client.grpc import AsyncGrpcTransport

    return AsyncGrpcTransport(server, dialect, tls=tls)


def check_address(server: Server) -> None:
    """Raises UsageError if the address has another form."""
    parts = urlsplit(server.url)
    if "://" not in server.url:
        raise UsageError("the address names no protocol", place=server.url,
                         remedy=f"http://{server.url}? {_SCHEMES}")
    if not parts.netloc or "@" in parts.netloc:
        raise UsageError("not the address of a server", place=server.url, remedy=_SCHEMES)
    if not is_address(server.url):
        raise UsageError(f"unknown protocol {parts.scheme!r}", place=server.url, remedy=_SCHEMES)


def _protocol(server: Server) -> tuple[bool, Any, bool]:
    """(whether it is spoken over HTTP, its dialect, whether over TLS); each library is loaded only where it is used.
    """
    check_address(server)
    scheme = urlsplit(server.url).scheme
    if scheme.startswith("openai+"):
        from llm_detox.client.openai import OpenAi

        return True, OpenAi(), scheme.endswith("https")
    if scheme.startswith("http"):
        from llm_detox.client.rest import CaikitRest

        return True, CaikitRest(), scheme == "https"
    if scheme.startswith("grpc"):
        from llm_detox.client.caikit import CaikitGrpc

        return False, CaikitGrpc(), scheme == "grpcs"
    from llm_detox.client.fmaas import FmaasGrpc

    return False, FmaasGrpc(), scheme == "fmaass"
