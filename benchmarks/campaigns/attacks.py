"""What somebody who reaches the ports of a served model can do to it; `benchmarks.campaigns.served_stack` does it."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import grpc

UNARY, STREAM = "/api/v1/task/text-generation", "/api/v1/task/server-streaming-text-generation"
_SERVICE = "caikit.runtime.Nlp.NlpService"
_CALL, _STREAMED = "TextGenerationTaskPredict", "ServerStreamingTextGenerationTaskPredict"
_REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
_TIMEOUT = 30.0
_MIB = 2**20


@dataclass
class Target:
    """Where the model is served, and under which name."""

    rest: int
    grpc: int
    name: str

    def channel(self) -> grpc.Channel:
        """A connection of its own."""
        return grpc.insecure_channel(f"127.0.0.1:{self.grpc}", [("grpc.use_local_subchannel_pool", 1),
                                                                ("grpc.max_metadata_size", 2**24)])

    @property
    def metadata(self) -> list[tuple[str, str]]:
        return [("mm-model-id", self.name)]

    @cached_property
    def kinds(self) -> dict[str, Any]:
        """Method -> class of its request, as the server's reflection tells."""
        from google.protobuf import message_factory
        from google.protobuf.descriptor_pool import DescriptorPool
        from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

        with self.channel() as channel:
            service = DescriptorPool(ProtoReflectionDescriptorDatabase(channel)).FindServiceByName(_SERVICE)
            return {name: message_factory.GetMessageClass(service.FindMethodByName(name).input_type)
                    for name in (_CALL, _STREAMED)}

    def message(self, method: str, **values: Any) -> bytes:
        data: bytes = self.kinds[method](**values).SerializeToString()
        return data


Attack = Callable[[Target, random.Random, float], None]
"""One go of it; ends at the latest a little behind the given time of `time.monotonic()`."""


def _body(target: Target, text: str = "the quick", **parameters: Any) -> bytes:
    return json.dumps({"model_id": target.name, "inputs": text, "parameters": parameters}).encode()


def _head(path: str, length: int, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {length}",
             "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


@contextlib.contextmanager
def _connected(target: Target) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", target.rest), _TIMEOUT) as connection, contextlib.suppress(OSError):
        yield connection


def _post(target: Target, body: bytes, *headers: str, path: str = UNARY) -> None:
    with _connected(target) as connection:
        with contextlib.suppress(OSError):  # refused before all of it was read
            connection.sendall(_head(path, len(body), *headers) + body)
        while connection.recv(65536):
            pass


def _call(target: Target, payload: bytes, metadata: list[tuple[str, Any]], method: str = _CALL) -> None:
    with target.channel() as channel, contextlib.suppress(grpc.RpcError):
        channel.unary_unary(f"/{_SERVICE}/{method}")(payload, timeout=_TIMEOUT, metadata=metadata)


def slow_clients(target: Target, rng: random.Random, until: float) -> None:
    """Heads and bodies that trickle, a byte or a line at a time."""
    body = rng.random() < 0.5
    with _connected(target) as connection:
        connection.sendall(_head(UNARY, 10_000) + b"{" if body else _head(UNARY, 0)[:-2])
        for number in range(10_000):
            if time.monotonic() > until:
                return
            connection.sendall(b" " if body else f"X-{number}: a\r\n".encode())
            time.sleep(0.2)


def huge_bodies(target: Target, rng: random.Random, until: float) -> None:
    """Texts of 15 MB, cut by the server or not, bodies over its limit, and lengths that are announced only."""
    text = "word " * (rng.choice((1, 15, 17)) * _MIB // 5)
    how = rng.randrange(4)
    if how == 0:
        _post(target, _body(target, text, max_new_tokens=1))
    elif how == 1:
        _post(target, _body(target, text, max_new_tokens=1, truncate_input_tokens=10), path=STREAM)
    elif how == 2:
        _call(target, target.message(_CALL, text=text, max_new_tokens=1, truncate_input_tokens=10), target.metadata)
    else:
        with _connected(target) as connection:
            connection.sendall(_head(UNARY, 2**40))
            while connection.recv(65536):
                pass


def deep_json(target: Target, rng: random.Random, until: float) -> None:
    """Lists and objects thousands of levels deep, closed or not."""
    depth = rng.choice((50, 900, 5_000, 100_000, 1_000_000))
    opened, closed = rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
    inner = opened * depth + (b"1" + closed * depth if rng.random() < 0.5 else b"")
    name = target.name.encode()
    _post(target, rng.choice((inner, b'{"model_id":"' + name + b'","inputs":' + inner + b"}",
                              b'{"model_id":"' + name + b'","inputs":"a","parameters":' + inner + b"}")),
          path=rng.choice((UNARY, STREAM)))


def invalid_utf8(target: Target, rng: random.Random, until: float) -> None:
    """Bytes that are no text, where text belongs: body, model id, heads, messages."""
    bad = rng.choice((b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\xaf", rng.randbytes(200)))
    how = rng.randrange(4)
    if how == 0:
        _post(target, b'{"model_id":"' + target.name.encode() + b'","inputs":"' + bad + b'"}')
    elif how == 1:
        _post(target, b'{"model_id":"' + bad + b'","inputs":"a"}')
    elif how == 2:
        _call(target, target.message(_CALL, text="a" * len(bad)).replace(b"a" * len(bad), bad), target.metadata)
    else:
        with _connected(target) as connection:
            connection.sendall(_head(UNARY, 2)[:-2] + b"X-A: " + bad.replace(b"\n", b" ") + b"\r\n\r\n{}")
            while connection.recv(65536):
                pass


def header_floods(target: Target, rng: random.Random, until: float) -> None:
    """Thousands of headers, one of a megabyte, and as much metadata."""
    how = rng.randrange(3)
    if how == 0:
        _post(target, _body(target, max_new_tokens=1), *(f"X-{number}: {'a' * 50}" for number in range(20_000)))
    elif how == 1:
        _post(target, _body(target, max_new_tokens=1), f"X-Long: {'a' * _MIB}")
    else:
        _call(target, target.message(_CALL, text="a"), [*target.metadata, *((f"x-{number}", "a" * 100)
                                                                            for number in range(2_000))])


class _Silent:
    """The request of a call, which does not come."""

    def __init__(self, until: float) -> None:
        self._until = until

    def __iter__(self) -> _Silent:
        return self

    def __next__(self) -> bytes:
        time.sleep(max(0.0, self._until - time.monotonic()))
        raise StopIteration


def half_open_streams(target: Target, rng: random.Random, until: float) -> None:
    """Calls that send nothing, and bodies that are announced and do not come."""
    method = rng.choice((f"/{_SERVICE}/{_CALL}", f"/{_SERVICE}/{_STREAMED}", _REFLECTION,
                         "/grpc.health.v1.Health/Check"))
    with target.channel() as channel, _connected(target) as connection:
        connection.sendall(_head(UNARY, 1000))
        calls = [channel.stream_stream(method)(_Silent(until), timeout=_TIMEOUT) for _ in range(10)]
        while time.monotonic() < until and any(call.is_active() for call in calls):
            time.sleep(0.1)


def cancelled_streams(target: Target, rng: random.Random, until: float) -> None:
    """Streams that are left before their first piece, or behind it."""
    if rng.random() < 0.5:
        message = target.message(_STREAMED, text="the quick brown", max_new_tokens=100, min_new_tokens=100)
        with target.channel() as channel, contextlib.suppress(grpc.RpcError, StopIteration):
            call = channel.unary_stream(f"/{_SERVICE}/{_STREAMED}")(message, timeout=_TIMEOUT, metadata=target.metadata)
            if rng.random() < 0.5:
                next(call)
            call.cancel()
    else:
        body = _body(target, "the quick brown", max_new_tokens=100, min_new_tokens=100)
        with _connected(target) as connection:
            connection.sendall(_head(STREAM, len(body)) + body)
            if rng.random() < 0.5:
                connection.recv(10)


def unread_streams(target: Target, rng: random.Random, until: float) -> None:
    """Streams whose answers nobody reads."""
    message = target.message(_STREAMED, text="☕ " * 40_000, truncate_input_tokens=8, max_new_tokens=5,
                             preserve_input_text=True)
    with target.channel() as channel:
        calls = [channel.unary_stream(f"/{_SERVICE}/{_STREAMED}")(message, timeout=_TIMEOUT, metadata=target.metadata)
                 for _ in range(10)]
        while time.monotonic() < until and any(call.is_active() for call in calls):
            time.sleep(0.1)


def wrong_metadata(target: Target, rng: random.Random, until: float) -> None:
    """Model ids that are missing, of other models, endless or odd, and metadata that Caikit knows."""
    ids: tuple[list[tuple[str, Any]], ...] = (
        [], [("mm-model-id", "")], [("mm-model-id", "other")], [("mm-model-id", "../../etc/passwd")],
        [("mm-model-id", "a" * 100_000)], [("mm-model-id-bin", rng.randbytes(50))], [*target.metadata] * 50,
        [("mm-vmodel-id", target.name)], [*target.metadata, ("grpc-accept-encoding", "x")])
    if rng.random() < 0.5:
        _call(target, target.message(_CALL, text="a", max_new_tokens=1), rng.choice(ids))
    else:
        name = rng.choice(("", "other", "a" * 100_000, "../../etc/passwd", "\u202e\x1b[2J"))
        _post(target, json.dumps({"model_id": name, "inputs": "a"}).encode(), path=rng.choice((UNARY, STREAM)))


def route_info(target: Target, rng: random.Random, until: float) -> None:
    """Headers that would send the request to another host."""
    host = rng.choice(("127.0.0.1:1", "169.254.169.254:80", "example.invalid:443", "", "a" * 5_000, "[::1]:22"))
    if rng.random() < 0.5:
        _call(target, target.message(_CALL, text="a", max_new_tokens=1), [*target.metadata, ("x-route-info", host)])
    else:
        _post(target, _body(target, max_new_tokens=1), f"x-route-info: {host}")


def reflection_floods(target: Target, rng: random.Random, until: float) -> None:
    """Hundreds of questions for descriptions in one call, many of them senseless."""
    from grpc_reflection.v1alpha import reflection_pb2

    asked = [reflection_pb2.ServerReflectionRequest(list_services=""),
             reflection_pb2.ServerReflectionRequest(file_containing_symbol=_SERVICE),
             reflection_pb2.ServerReflectionRequest(file_containing_symbol="a" * 1_000),
             reflection_pb2.ServerReflectionRequest(file_by_filename="../../etc/passwd")]
    payloads = [rng.choice(asked).SerializeToString() for _ in range(300)] + [rng.randbytes(20)]
    with target.channel() as channel, contextlib.suppress(grpc.RpcError):
        for _ in channel.stream_stream(_REFLECTION)(iter(payloads), timeout=_TIMEOUT):
            if time.monotonic() > until:
                return


ATTACKS: dict[str, tuple[Attack, int]] = {
    "slow clients": (slow_clients, 100), "huge bodies": (huge_bodies, 4), "deep JSON": (deep_json, 8),
    "invalid UTF-8": (invalid_utf8, 8), "header floods": (header_floods, 8),
    "half-open streams": (half_open_streams, 20),
    "cancelled streams": (cancelled_streams, 16), "streams that nobody reads": (unread_streams, 12),
    "wrong metadata": (wrong_metadata, 8), "x-route-info": (route_info, 8), "reflection floods": (reflection_floods, 8)}
"""Name -> what one client does, and how many do it at the same time."""


def attack(name: str, target: Target, seconds: float, seed: int) -> int:
    """Let all clients of an attack do it again and again for so long; returns how often it was done."""
    once, clients = ATTACKS[name]
    until = time.monotonic() + seconds

    def client(number: int) -> int:
        rng, done = random.Random(f"{seed}/{name}/{number}"), 0
        while time.monotonic() < until:
            with contextlib.suppress(OSError):  # nobody listens
                once(target, rng, until)
                done += 1
        return done

    with ThreadPoolExecutor(clients) as pool:
        return sum(pool.map(client, range(clients)))
