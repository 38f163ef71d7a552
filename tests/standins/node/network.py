"""The way from this machine to the Services of a namespace: each gets an address in 127.0.0.0/8 with its own ports.

The addresses are of a range that this process has for itself, so that several may run beside each other.

`hosts` is a file with their names, for programs that are started with it as their /etc/hosts. Kubernetes' own
controllers say which pods stand behind a port (EndpointSlices); NetworkPolicies say who gets in.
"""

from __future__ import annotations

import itertools
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.standins.cluster.api import Api
from tests.standins.cluster.worker import Worker
from tests.standins.node.policy import Caller, admits
from tests.standins.node.sandbox import Refused

Object = dict[str, Any]
Connect = Callable[[str, int], socket.socket]
_CHUNK = 2**16
_numbers = itertools.count(1)


class Network(Worker):
    """Listens for each Service of the namespace.

    Args:
        api: the administrator's.
        namespace: where.
        connect: gives a connection to a pod's address (`ProcessKubelet.connect`).
        folder: for the file `hosts`.
        caller: whose connections these are, for NetworkPolicies; None: a pod of the same namespace without labels.
    """

    kinds = ("Service",)

    def __init__(self, api: Api, namespace: str, connect: Connect, folder: Path, caller: Caller | None = None) -> None:
        super().__init__(api, namespace)
        self._connect, self.hosts = connect, folder / "hosts"
        self.caller = caller or Caller(namespace)
        self.addresses: dict[str, str] = {}
        self._listening: dict[tuple[str, int], socket.socket] = {}
        self.hosts.write_text("127.0.0.1 localhost\n", "utf-8")

    def look(self) -> None:
        wanted = {(one["metadata"]["name"], port["port"])
                  for one in self.api.list("Service", self.namespace) for port in one["spec"].get("ports", ())}
        for name, port in wanted - set(self._listening):
            self._listen(name, port)
        for key in set(self._listening) - wanted:
            self._close(self._listening.pop(key))

    def end(self) -> None:
        for server in self._listening.values():
            self._close(server)

    def url(self, service: str, port: int, scheme: str = "http") -> str:
        """Where this machine reaches a Service's port."""
        return f"{scheme}://{self.addresses[service]}:{port}"

    def _listen(self, name: str, port: int) -> None:
        server = socket.create_server((self._address(name), port), backlog=64)
        self._listening[name, port] = server
        threading.Thread(target=self._accept, args=(server, name, port), daemon=True).start()

    def _address(self, name: str) -> str:
        if name not in self.addresses:
            self.addresses[name] = _own_address(next(_numbers))
            plain = f"{name}.{self.namespace}"
            with self.hosts.open("a", encoding="utf-8") as hosts:
                hosts.write(f"{self.addresses[name]} {name} {plain} {plain}.svc {plain}.svc.cluster.local\n")
        return self.addresses[name]

    @staticmethod
    def _close(server: socket.socket) -> None:
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        server.close()

    def _accept(self, server: socket.socket, name: str, port: int) -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection, name, port), daemon=True).start()

    def _serve(self, connection: socket.socket, name: str, port: int) -> None:
        """Pass the connection on to one of the ready pods; refused is closed at once."""
        for address, target, pod in self._endpoints(name, port):
            policies = self.api.list("NetworkPolicy", self.namespace)
            if not admits(policies, pod, target, self.caller):
                continue
            with suppress(Refused):
                other = self._connect(address, target)
                threading.Thread(target=pump, args=(connection, other), daemon=True).start()
                pump(other, connection)
                return
        connection.close()

    def _endpoints(self, name: str, port: int) -> list[tuple[str, int, Object]]:
        """Address, port and pod of each ready endpoint."""
        service = self.api.get("Service", self.namespace, name)
        names = {one["port"]: one.get("name", "") for one in (service or {}).get("spec", {}).get("ports", ())}
        result = []
        for piece in self.api.list("EndpointSlice", self.namespace, f"kubernetes.io/service-name={name}"):
            targets = [one["port"] for one in piece.get("ports") or ()
                       if "port" in one and one.get("name", "") == names.get(port)]
            for endpoint in piece.get("endpoints") or () if targets else ():
                pod = self.api.get("Pod", self.namespace, endpoint["targetRef"]["name"])
                if pod and endpoint.get("conditions", {}).get("ready"):
                    result.append((endpoint["addresses"][0], targets[0], pod))
        return result


def _own_address(number: int) -> str:
    """One of 254 addresses that belong to no other process: of 127.128.0.0 and up, by its process id."""
    assert number <= 254, "a process has 254 addresses for Services"
    process = os.getpid() % 2**15
    return f"127.{128 + process // 256}.{process % 256}.{number}"


def pump(source: socket.socket, sink: socket.socket) -> None:
    """Copy until the source ends, then say so to the sink."""
    with suppress(OSError):
        while data := source.recv(_CHUNK):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
