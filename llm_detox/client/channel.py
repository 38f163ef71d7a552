"""gRPC connections: TLS, tokens, statuses in our words, and the server's own description of its messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool

from llm_detox.client.transport import Deadline, Server
from llm_detox.client.types import GenerationError

_MAX_MESSAGE = 64 * 2**20


class Connection:
    """A channel to one server."""

    def __init__(self, server: Server, tls: bool) -> None:
        self.server = server
        options = [("grpc.max_receive_message_length", _MAX_MESSAGE), ("grpc.max_send_message_length", _MAX_MESSAGE),
                   ("grpc.enable_http_proxy", 0 if server.is_local else 1)]
        if tls:
            read = [file.read_bytes() if file else None
                    for file in (server.ca_file, server.key_file, server.cert_file)]
            self.channel = grpc.secure_channel(server.target, grpc.ssl_channel_credentials(*read), options)
        else:
            self.channel = grpc.insecure_channel(server.target, options)

    def metadata(self, **values: str) -> list[tuple[str, str]]:
        token = [("authorization", f"Bearer {self.server.token}")] if self.server.token else []
        return [*token, *((name.replace("_", "-"), value) for name, value in values.items())]

    def error(self, error: grpc.RpcError, deadline: Deadline) -> GenerationError:
        code = error.code().name
        details = error.details() or "no reason given"
        if code == "DEADLINE_EXCEEDED":
            details = f"no answer within {deadline.seconds:g} s"
        return GenerationError(code, details, place=self.server.url)

    def describe(self, symbol: str, deadline: Deadline) -> descriptor_pool.DescriptorPool:
        """The messages that the server speaks, by reflection; field numbers differ between Caikit's releases.

        Raises:
            GenerationError: the server does not answer, or does not know the symbol.
        """
        files: dict[str, descriptor_pb2.FileDescriptorProto] = {}
        for file in self._reflect(deadline, file_containing_symbol=symbol):
            files[file.name] = file
        while missing := {name for file in files.values() for name in file.dependency} - set(files):
            for name in missing:
                for file in self._reflect(deadline, file_by_filename=name):
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

    def _reflect(self, deadline: Deadline, **question: str) -> Iterator[descriptor_pb2.FileDescriptorProto]:
        from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

        stub = reflection_pb2_grpc.ServerReflectionStub(self.channel)
        asked = reflection_pb2.ServerReflectionRequest(**question)
        try:
            # Without a deadline a half-dead server holds this call for ever.
            answers = list(stub.ServerReflectionInfo(iter([asked]), timeout=deadline.left(), metadata=self.metadata()))
        except grpc.RpcError as error:
            raise self.error(error, deadline) from error
        for answer in answers:
            if answer.HasField("error_response"):
                raise GenerationError("UNIMPLEMENTED", f"the server does not offer {next(iter(question.values()))}: "
                                      f"{answer.error_response.error_message}", place=self.server.url)
            for raw in answer.file_descriptor_response.file_descriptor_proto:
                yield descriptor_pb2.FileDescriptorProto.FromString(raw)

    def close(self) -> None:
        self.channel.close()


def name_of(message: Any, field: str) -> str:
    """The name of an enum field's value."""
    kind = message.DESCRIPTOR.fields_by_name[field].enum_type
    value = kind.values_by_number.get(getattr(message, field))
    return value.name if value else str(getattr(message, field))
