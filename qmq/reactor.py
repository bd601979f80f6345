"""
The reactor that `twistd qmq` runs on if no other is asked for: epoll, as Twisted's on Linux, with some differences.

Its clock is monotonic: Twisted's counts by the wall clock, and an hour's jump
back would stall every timer for an hour. It calls a connection directly,
without the log context that Twisted puts around each event: about 3 us of some
25 that an event costs; a connection that raises is logged all the same. Where
there is only something to read, it reads without asking what else there might be, and from
a unix socket as from any other: nobody sends descriptors to what Twisted reads here.
What is said to strangers leaves when all that a turn brings has been heard (`sends`), and
what a disk has done is heard within a turn (`spool.ring`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from select import EPOLLIN
from typing import Any

from twisted.internet import tcp, unix
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST, installReactor
from twisted.python.log import err

from qmq.mail import Octets
from qmq.sends import Sends

# Measured with one queue at full speed: 99th percentile of the others' delays 22 ms by Python's own 5 ms, 14 by this.
_SWITCH = 0.0005


_STREAMS = frozenset({tcp.Server, tcp.Client, unix.Server, unix.Client})


# Octets that one read may bring: Twisted's 65536, and less and less where these are not used, since to make room for
# them, and to give it back, takes half a microsecond.
_LONG: Octets = tcp.Connection.bufferSize
_SHORT: Octets = 16384
_STEP: Octets = 8192


def _read(transport: Any) -> BaseException | None:
    """Give its protocol what there is to read; why it is over, if it is."""
    room = transport.bufferSize
    try:
        data = transport.socket.recv(room)
    except (BlockingIOError, InterruptedError):
        return None
    except OSError:
        return CONNECTION_LOST
    if not data:
        return CONNECTION_DONE
    if len(data) == room:
        transport.bufferSize = _LONG
    elif room > _SHORT > len(data):
        transport.bufferSize = room - _STEP
    transport.protocol.dataReceived(data)
    return None


class MonotonicEPollReactor(EPollReactor):
    """
    Epoll on monotonic time; `sends` has what waits for the end of the turn.

    *between*, if anything, is called before each event of a turn: for what is cheap to
    ask, and may be over before the turn is.
    """

    seconds = staticmethod(time.monotonic)  # as it is: a message asks for it some ten times

    def __init__(self) -> None:
        self.sends = Sends()
        self.between: Callable[[], None] | None = None
        super().__init__()

    def doPoll(self, timeout: float | None) -> None:
        """One turn of the loop."""
        if self.sends.held:
            self.sends.flush()
            due = self.timeout()  # a connection that broke at it ends by a call that *timeout* does not know of
            if due is not None and (timeout is None or due < timeout):
                timeout = due
        try:
            events = self._poller.poll(-1 if timeout is None else timeout, len(self._selectables))
        except InterruptedError:
            return
        selectables = self._selectables
        for fd, event in events:
            if self.between is not None:
                self.between()
            # One that an earlier event of this turn has closed is not there any more.
            if (selectable := selectables.get(fd)) is None:
                continue
            if event != EPOLLIN:
                self._doReadOrWrite(selectable, fd, event)
                continue
            try:
                # One that connects, or was aborted, has a doRead of its own.
                if type(selectable) in _STREAMS and "doRead" not in selectable.__dict__:
                    why = _read(selectable)
                else:
                    why = selectable.doRead()
            except BaseException as error:  # noqa: BLE001 - as Twisted's: only this connection feels it
                err()
                why = error
            if why:
                self._disconnectSelectable(selectable, why, True)

    doIteration = doPoll

    def _disconnectSelectable(self, selectable: Any, *why: Any) -> None:
        """What was said to it in this turn is sent before it is closed."""
        self.sends.hurry(selectable)
        super()._disconnectSelectable(selectable, *why)

    def disconnectAll(self) -> None:
        """The end: there is no further turn."""
        self.sends.flush()
        super().disconnectAll()


def install() -> None:
    """
    Make it the process's reactor, unless there is one already (`twistd --reactor`, a test).

    Threads that write to disk hand the interpreter over ten times as soon as
    Python has them do: what waits for the loop meanwhile is everybody's mail.
    """
    sys.setswitchinterval(_SWITCH)
    if "twisted.internet.reactor" not in sys.modules:
        installReactor(MonotonicEPollReactor())
