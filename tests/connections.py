"""Real connections on a reactor that a test turns by hand."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet import tcp, unix
from twisted.internet.address import UNIXAddress
from twisted.internet.protocol import Protocol


def connected(reactor: Any, protocol: Protocol, kind: str) -> tuple[Any, socket.socket]:
    """The transport ("tcp" or "unix") on which *protocol* now is, and the peer's socket."""
    if kind == "unix":
        ours, peer = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as server:
            peer = socket.create_connection(server.getsockname())
            ours, _ = server.accept()
    ours.setblocking(False)
    transport: Any
    if kind == "unix":
        transport = unix.Server(ours, protocol, UNIXAddress(""), None, 1, reactor)
    else:
        transport = tcp.Server(ours, protocol, ("127.0.0.1", 1), None, 1, reactor)  # type: ignore[arg-type]  # no port
    protocol.makeConnection(transport)
    return transport, peer
