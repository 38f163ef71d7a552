"""The protocols over gRPC share this: TLS, tokens, statuses in our words, and the server's own description of its
messages. Only the waiting differs between the two transports below."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Generator
from contextlib import suppress
from typing import Any, Protocol, cast

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool

from llm_detox.client.types import Chunk, Deadline, Generation, GenerationError, Parameters, Prompt, Server

_MAX_MESSAGE = 64 * 2**20
Question = dict[str, str]
Files = list[descriptor_pb2.FileDescriptorProto]
Methods = dict[str, tuple[Any, Any]]  # name -> (callable, class of its requests)


class GrpcDialect(Protocol):
    """What one protocol sends and answers."""

    service: str
    unary: str
    streaming: str
    described: bool  # whether the server has to describe its messages first

    def kinds(self, pool: Any) -> dict[str, tuple[Any, Any]]:
        """Method name -> (class of its requests, class of its answers); `pool` is None where none is needed."""

    def metadata(self, model_id: str) -> dict[str, str]: ...

    def request(self, kind: Any, model_id: str, text: str, parameters: Parameters) -> Any:
        """A request of a class of `kinds`; TypeError or ValueError where a parameter does not fit."""

    def generation(self, answer: Any) -> Generation:
        """ValueError if the answer has an unexpected form."""

    def chunk(self, answer: Any) -> Chunk: ...


class Connection:
    """What there is to know about one server, without any waiting."""

    def __init__(self, server: Server, tls: bool) -> None:
        self.server, self._tls = server, tls

    def open(self, library: Any) -> Any:
        """A channel of `grpc` or of `grpc.aio`."""
        server = self.server
        options = [("grpc.max_receive_message_length", _MAX_MESSAGE), ("grpc.max_send_message_length", _MAX_MESSAGE),
                   ("grpc.enable_http_proxy", 0 if server.is_local else 1)]
        if not self._tls:
            return library.insecure_channel(server.target, options)
        read = [file.read_bytes() if file else None for file in (server.ca_file, server.key_file, server.cert_file)]
        return library.secure_channel(server.target, grpc.ssl_channel_credentials(*read), options)

    def metadata(self, **values: str) -> list[tuple[str, str]]:
        token = [("authorization", f"Bearer {self.server.token}")] if self.server.token else []
        return [*token, *((name.replace("_", "-"), value) for name, value in values.items())]

    def error(self, error: grpc.RpcError, deadline: Deadline) -> GenerationError:
        code = error.code().name
        details = error.details() or "no reason given"
        if code == "DEADLINE_EXCEEDED":
            details = f"no answer within {deadline.seconds:g} s"
        return GenerationError(code, details, place=self.server.url)

    def bind(self, channel: Any, dialect: GrpcDialect, pool: Any) -> Methods:
        """The dialect's methods on a channel, as far as the server has them."""
        bound = {}
        for name, (request, answer) in dialect.kinds(pool).items():
            make = channel.unary_stream if name == dialect.streaming else channel.unary_unary
            bound[name] = make(f"/{dialect.service}/{name}", request_serializer=request.SerializeToString,
                               response_deserializer=answer.FromString), request
        return bound

    def choose(self, methods: Methods, name: str) -> tuple[Any, Any]:
        if name not in methods:
            raise GenerationError("UNIMPLEMENTED", f"the server has no {name}", place=self.server.url)
        return methods[name]

    def request(self, dialect: GrpcDialect, kind: Any, model_id: str, prompt: Prompt, parameters: Parameters) -> Any:
        try:
            return dialect.request(kind, model_id, cast(str, prompt), parameters)
        except (TypeError, ValueError) as error:
            raise GenerationError("INVALID_ARGUMENT", str(error), place=self.server.url) from None

    def generation(self, dialect: GrpcDialect, answer: Any) -> Generation:
        try:
            return dialect.generation(answer)
        except ValueError as error:
            raise GenerationError("INTERNAL", str(error), place=self.server.url) from None

    def description(self, symbol: str) -> Generator[Question, Files, descriptor_pool.DescriptorPool]:
        """The messages that the server speaks; field numbers differ between Caikit's releases.

        Yields questions to the server's reflection service and takes the files that it answers with.
        """
        files: dict[str, descriptor_pb2.FileDescriptorProto] = {}
        for file in (yield {"file_containing_symbol": symbol}):
            files[file.name] = file
        while missing := {name for file in files.values() for name in file.dependency} - set(files):
            for name in missing:
                for file in (yield {"file_by_filename": name}):
                    files[file.name] = file
        pool = descriptor_pool.DescriptorPool()
        added: set[str] = set()

        def add(name: str) -> None:
            if name not in added:
                added.add(name)
                for needed in files[name].dependency:
                    add(needed)
                pool.Add(files[name])

        for name in files:
            add(name)
        return pool

    def reflect(self, channel: Any, question: Question, deadline: Deadline) -> Any:
        """The call that asks the server's reflection service; without a deadline a half-dead server holds it for ever.
        """
        from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

        asked = reflection_pb2.ServerReflectionRequest(**question)
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        return stub.ServerReflectionInfo(iter([asked]), timeout=deadline.left(), metadata=self.metadata())

    def files(self, question: Question, answers: list[Any]) -> Files:
        found = []
        for answer in answers:
            if answer.HasField("error_response"):
                raise GenerationError("UNIMPLEMENTED", f"the server does not offer {next(iter(question.values()))}: "
                                      f"{answer.error_response.error_message}", place=self.server.url)
            found += [descriptor_pb2.FileDescriptorProto.FromString(raw)
                      for raw in answer.file_descriptor_response.file_descriptor_proto]
        return found


class GrpcTransport:
    """Blocks while it waits. Threads may share it."""

    takes_messages = False

    def __init__(self, server: Server, dialect: GrpcDialect, *, tls: bool) -> None:
        self._connection, self._dialect = Connection(server, tls), dialect
        self._channel = self._connection.open(grpc)
        self._methods: Methods = {}
        self._lock = threading.Lock()

    def generate(self, model_id: str, prompt: Prompt, parameters: Parameters, deadline: Deadline) -> Generation:
        connection, dialect = self._connection, self._dialect
        try:
            call, kind = self._method(dialect.unary, deadline)
            request = connection.request(dialect, kind, model_id, prompt, parameters)
            answer = call(request, timeout=deadline.left(), metadata=connection.metadata(**dialect.metadata(model_id)))
        except grpc.RpcError as error:
            raise connection.error(error, deadline) from error
        return connection.generation(dialect, answer)

    def stream(self, model_id: str, prompt: Prompt, parameters: Parameters, deadline: Deadline) -> Generator[Chunk]:
        connection, dialect = self._connection, self._dialect
        try:
            call, kind = self._method(dialect.streaming, deadline)
            request = connection.request(dialect, kind, model_id, prompt, parameters)
            answers = call(request, timeout=deadline.left(), metadata=connection.metadata(**dialect.metadata(model_id)))
            try:
                for answer in answers:
                    yield dialect.chunk(answer)
            finally:
                with suppress(Exception):
                    answers.cancel()
        except grpc.RpcError as error:
            raise connection.error(error, deadline) from error

    def close(self) -> None:
        self._channel.close()

    def _method(self, name: str, deadline: Deadline) -> tuple[Any, Any]:
        with self._lock:
            if not self._methods:
                pool = self._described(deadline) if self._dialect.described else None
                self._methods = self._connection.bind(self._channel, self._dialect, pool)
        return self._connection.choose(self._methods, name)

    def _described(self, deadline: Deadline) -> Any:
        steps = self._connection.description(self._dialect.service)
        question = next(steps)
        while True:
            answers = list(self._connection.reflect(self._channel, question, deadline))
            try:
                question = steps.send(self._connection.files(question, answers))
            except StopIteration as done:
                return done.value


class AsyncGrpcTransport:
    """Awaits. It belongs to the event loop in which it was made."""

    takes_messages = False

    def __init__(self, server: Server, dialect: GrpcDialect, *, tls: bool) -> None:
        self._connection, self._dialect = Connection(server, tls), dialect
        self._channel = self._connection.open(grpc.aio)
        self._methods: Methods = {}
        self._lock = asyncio.Lock()

    async def generate(self, model_id: str, prompt: Prompt, parameters: Parameters, deadline: Deadline) -> Generation:
        connection, dialect = self._connection, self._dialect
        try:
            call, kind = await self._method(dialect.unary, deadline)
            request = connection.request(dialect, kind, model_id, prompt, parameters)
            answer = await call(request, timeout=deadline.left(),
                                metadata=connection.metadata(**dialect.metadata(model_id)))
        except grpc.RpcError as error:
            raise connection.error(error, deadline) from error
        return connection.generation(dialect, answer)

    async def stream(self, model_id: str, prompt: Prompt, parameters: Parameters,
                     deadline: Deadline) -> AsyncGenerator[Chunk]:
        connection, dialect = self._connection, self._dialect
        try:
            call, kind = await self._method(dialect.streaming, deadline)
            request = connection.request(dialect, kind, model_id, prompt, parameters)
            answers = call(request, timeout=deadline.left(), metadata=connection.metadata(**dialect.metadata(model_id)))
            try:
                async for answer in answers:
                    yield dialect.chunk(answer)
            finally:
                answers.cancel()
        except grpc.RpcError as error:
            raise connection.error(error, deadline) from error

    async def close(self) -> None:
        await self._channel.close()

    async def _method(self, name: str, deadline: Deadline) -> tuple[Any, Any]:
        async with self._lock:
            if not self._methods:
                pool = await self._described(deadline) if self._dialect.described else None
                self._methods = self._connection.bind(self._channel, self._dialect, pool)
        return self._connection.choose(self._methods, name)

    async def _described(self, deadline: Deadline) -> Any:
        steps = self._connection.description(self._dialect.service)
        question = next(steps)
        while True:
            answers = [answer async for answer in self._connection.reflect(self._channel, question, deadline)]
            try:
                question = steps.send(self._connection.files(question, answers))
            except StopIteration as done:
                return done.value


def name_of(message: Any, field: str) -> str:
    """The name of an enum field's value."""
    kind = message.DESCRIPTOR.fields_by_name[field].enum_type
    value = kind.values_by_number.get(getattr(message, field))
    return value.name if value else str(getattr(message, field))
