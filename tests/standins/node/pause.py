"""Holds a pod's network namespace, and lets the node in: `pause.py SOCKET ADDRESS`, started in the namespace.

Who connects to the socket sends a port on a line, gets `ok` or why not on a line, and talks to the pod's address from
then on. Ends with its standard input. Runs without site-packages.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from contextlib import suppress

_CHUNK = 2**16


def main() -> None:
    path, address = sys.argv[1:]
    for command in ("link set lo up", f"addr add {address}/32 dev lo"):
        subprocess.run(["ip", *command.split()], check=True)
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(128)
    threading.Thread(target=_accept, args=(server, address), daemon=True).start()
    sys.stdin.read()


def _accept(server: socket.socket, address: str) -> None:
    while True:
        connection, _ = server.accept()
        threading.Thread(target=_serve, args=(connection, address), daemon=True).start()


def _serve(connection: socket.socket, address: str) -> None:
    port = b""
    while not port.endswith(b"\n"):
        port += connection.recv(1)
    try:
        target = socket.create_connection((address, int(port)), timeout=10)
    except OSError as error:
        connection.sendall(f"dial tcp {address}:{int(port)}: connect: {error.strerror or error}\n".lower().encode())
        connection.close()
        return
    target.settimeout(None)
    connection.sendall(b"ok\n")
    threading.Thread(target=_pump, args=(connection, target), daemon=True).start()
    _pump(target, connection)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(_CHUNK):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    main()
