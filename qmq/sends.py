"""
What goes out to a peer, and when: what is said to strangers in a turn of the loop leaves together, at its end.

A reply wakes the client that waits for it. Were it sent at once, the kernel would
put us aside for that client, once a message on a busy core; at the end of the turn
all who wait are woken by one call (io_submit, which sends on any number of
sockets), and find what they wait for when they run. Between our own processes
nothing is held back: what one says early gives the other work.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from caio import linux_aio  # None where the kernel, or what confines us, does not let us
from twisted.internet import tcp, unix
from twisted.internet.interfaces import ITransport
from twisted.python.log import err

from qmq.mail import Octets, Seconds

# Transports whose buffer and socket we know. Anything else, TLS's own transport too, is written to as it likes.
_STRANGERS = frozenset({tcp.Server, tcp.Client})
_PLAIN = _STRANGERS | {unix.Server, unix.Client}

# Bounds of what is held, 16 MiB in all: for so many connections, for each less than so much.
_MOST = 256
_LONG: Octets = 65536

_PATIENCE: Seconds = 1  # with a kernel that has taken sends and not told yet what came of them; Linux always has


def fast_writer(transport: ITransport) -> Callable[[bytes], None]:
    """
    A function that sends sooner than ``transport.write``: at once, to a stranger at the end of this turn.

    The latter on a reactor that has `Sends`; there call `hurry` before anything
    else writes to the transport, or it is to speak TLS. Saves a registration for
    writing, and its epoll calls, per write. Nothing is overtaken: as soon as the
    transport holds anything back, or speaks TLS, it gets the bytes. Sets
    TCP_NODELAY, for a small reply must not wait for an ACK.
    """
    if type(transport) not in _PLAIN:
        return transport.write
    plain: Any = transport  # one of _PLAIN: tcp.Connection's attributes
    if type(plain) in _STRANGERS:
        plain.setTcpNoDelay(True)
        if (sends := getattr(plain.reactor, "sends", None)) is not None:
            return cast("Sends", sends).writer(plain)
    return partial(_send, plain)


def hurry(transport: Any) -> None:
    """Send now what is held for it. Not to be called by a producer that is told to pause."""
    if (sends := getattr(getattr(transport, "reactor", None), "sends", None)) is not None:
        sends.hurry(transport)


class Sends:
    """What the connections of a reactor say to strangers in a turn; the reactor flushes it before it waits."""

    def __init__(self) -> None:
        self.held: dict[Any, bytes] = {}  # by transport
        self._flushing = False
        # The kernel's, made by the process that sends, after it became a daemon. None: not yet; False: not to be had.
        self._aio: Any = None if linux_aio is not None else False

    def writer(self, plain: Any) -> Callable[[bytes], None]:
        """A function that holds what is for *plain*, one of Twisted's TCP transports, until `flush`."""
        held = self.held

        def hold(data: bytes) -> None:
            before = held.get(plain)
            if before is not None:
                data = before + data
            # While flush is at it, one that is not ready may have something in flush's hands: it must not be overtaken.
            elif not _ready(plain) and not self._flushing:
                plain.write(data)
                return
            if (len(data) < _LONG and len(held) < _MOST) or self._flushing:
                held[plain] = data
            else:
                held.pop(plain, None)
                _send(plain, data)

        return hold

    def hurry(self, transport: Any) -> None:
        """Send now what is held for this one."""
        if (data := self.held.pop(transport, None)) is not None:
            _send(transport, data)

    def flush(self) -> None:
        """Send what is held. A connection that breaks at it is cut, and the others go on."""
        self._flushing = True
        try:
            # Again, if a producer that was told to pause has said something.
            while held := list(self.held.items()):
                self.held.clear()
                try:
                    for plain, data in self._together(held):
                        _guarded(plain, data)
                except BaseException:
                    # Nobody knows any more who has heard what: a reply that is missing would shift all that follow.
                    for plain, _ in held:
                        plain.abortConnection()
                    raise
        finally:
            self._flushing = False

    def _together(self, held: list[tuple[Any, bytes]]) -> list[tuple[Any, bytes]]:
        """Send in one call what can be; what is left to be sent one by one."""
        if len(held) == 1 or not (aio := self._kernel()):
            return held
        ready, left = [], []
        operations: list[Any] = []
        for item in held:
            plain, data = item
            if _ready(plain):
                ready.append(item)
                operations.append(linux_aio.Operation.write(data, plain.socket.fileno(), 0))
            else:
                left.append(item)
        taken = 0
        try:
            # A send to a socket that does not block is over when submit returns: its result is there.
            taken = aio.submit(*operations)
            aio.process_events(2 * _MOST, taken, _PATIENCE)
        except Exception:  # noqa: BLE001 - of submit: nothing was sent; of process_events: get_value raises below
            err()
            self._aio = False
        for (plain, data), operation in zip(ready, operations[:taken], strict=False):
            try:
                sent = operation.get_value()
            except SystemError:  # EAGAIN, or worse, as in _send
                sent = 0
            except RuntimeError:  # there is no result: nobody knows where the rest begins
                self._aio = False
                plain.abortConnection()
                continue
            if sent < len(data):
                left.append((plain, data[sent:]))
        return left + ready[taken:]

    def _kernel(self) -> Any:
        if self._aio is None:
            try:
                self._aio = linux_aio.Context(_MOST)
                os.set_inheritable(self._aio.fileno, False)
            except (OSError, SystemError):  # all that fs.aio-max-nr allows are in use
                self._aio = False
        return self._aio


def _ready(plain: Any) -> bool:
    """Whether its socket may be given bytes past the transport."""
    return not (
        plain.TLS
        or plain.dataBuffer
        or plain._tempDataLen  # noqa: SLF001 - there is no public way to ask whether anything is buffered
        or not plain.connected
    )


def _send(plain: Any, data: bytes) -> None:
    if not _ready(plain):
        plain.write(data)
        return
    try:
        sent = plain.socket.send(data)
    except OSError:  # EAGAIN: the kernel's buffer is full; anything worse Twisted finds out and reports
        sent = 0
    if sent < len(data):
        plain.write(data[sent:] if sent else data)


def _guarded(plain: Any, data: bytes) -> None:
    try:
        _send(plain, data)
    except Exception:  # noqa: BLE001 - whatever a producer does that is told to pause
        err()
        plain.abortConnection()
