"""
Messages handed over to a running instance by QMTP, over its unix socket, as the primary does it.

Under their tokens: what the instance has already it takes again without a
second copy. So whoever was cut off begins anew.
"""

from __future__ import annotations

import socket
import tarfile
from collections import deque
from collections.abc import Iterable, Iterator
from typing import IO, cast

import click

from qmq.mail import Envelope, FileBody, Message, Octets, Replies, Reply, Seconds
from qmq.paths import reachable
from qmq.wire.qmtp_client import QMTPClientWire

_PATIENCE: Seconds = 120  # as the primary waits for an instance
_WINDOW = 32  # messages unanswered; the instance commits them together
_UNKNOWN = Reply(451, "4.4.2", "no answer: the connection broke off")


class _Text:
    """A body that is read from a file once, while it is sent."""

    __slots__ = ("_file", "size")

    data: None = None
    path: None = None

    def __init__(self, file: IO[bytes], size: Octets) -> None:
        self._file = file
        self.size = size

    def chunks(self, octets: Octets = 65536) -> Iterator[bytes]:
        """The text in pieces. Raises ValueError if the file breaks off."""
        try:
            while chunk := self._file.read(octets):
                yield chunk
        except tarfile.TarError as error:
            raise ValueError(f"the archive breaks off ({error})") from None


def message(envelope: Envelope, file: IO[bytes], octets: Octets) -> Message:
    """A message whose text is read from *file* as it leaves."""
    # What a file's body promises beside its path, which the wire never looks at.
    return Message(envelope, b"", cast("FileBody", _Text(file, octets)))


def hand_over(path: str, messages: Iterable[tuple[str, Message]]) -> Iterator[tuple[str, Message, Replies]]:
    """
    Each message with what became of each recipient, in order; one is taken when those before have left.

    After a cut connection what was not answered has a 4yz, and nothing more is
    taken. Raises click's error if the instance cannot be reached.
    """
    wire = QMTPClientWire(extension=True, mta="")
    pending: deque[tuple[str, Message]] = deque()
    with _connected(path) as instance:
        try:
            for name, one in messages:
                try:
                    # The lowest number in doubt is 0: what the archive brought is remembered for a second time.
                    package = wire.send(one, 0)
                except ValueError as error:
                    yield name, one, [Reply(554, "5.6.0", str(error))] * len(one.envelope.recipients)
                    continue
                pending.append((name, one))
                instance.sendall(b"".join(package))
                while wire.streaming:
                    instance.sendall(wire.next_chunk())
                if len(pending) >= _WINDOW:
                    yield from _answers(instance, wire, pending)
            while pending:
                yield from _answers(instance, wire, pending)
        except (OSError, EOFError, ValueError) as error:
            unknown = _UNKNOWN if isinstance(error, OSError | EOFError) else Reply(451, "4.3.0", str(error))
            for replies in wire.cut(unknown):
                yield *pending.popleft(), replies


def _connected(path: str) -> socket.socket:
    ours = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.settimeout(_PATIENCE)
    try:
        ours.connect(reachable(path))
    except PermissionError:
        raise click.ClickException(f"{path}: permission denied; use the gateway's user, or root") from None
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror}; is the gateway running, and the queue here?") from None
    return ours


def _answers(
    instance: socket.socket, wire: QMTPClientWire, pending: deque[tuple[str, Message]]
) -> Iterator[tuple[str, Message, Replies]]:
    """At least one."""
    found: list[Replies] = []
    while not found:
        data = instance.recv(65536)
        if not data:
            raise EOFError
        found = wire.receive(data)
        if wire.broken and not found:
            raise EOFError
    for replies in found:
        yield *pending.popleft(), replies
