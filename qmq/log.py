"""
The event log: one line for each fact about a message, written in batches.

    2026-11-23T18:07:02.123Z delivered id=q1-2a queue=customer1 to=<u@example.org> delay=0.4 reply="250 2.0.0 ok"

A line is the time (UTC) and the fact, in one of two forms: qmq.lines.plain, in
which what happens at the front door is SPAMCONTROL's classic line, or
qmq.lines.structured, which is JSON. A log that can't be written never stops
mail: lines wait up to a bound, then are dropped, counted in *dropped*, and
owned up to when writing works again.
"""

# ruff: noqa: A002 - a message has an id, here as everywhere
from __future__ import annotations

import errno
import functools
import os
import select
import socket
import stat
import time
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from qmq.lines import plain, structured
from qmq.mail import Address, Clock, Octets, Reply, Seconds
from qmq.session import Session, Transaction

# A pipe that is writable takes this much at once (POSIX PIPE_BUF on Linux).
_PIECE: Octets = 4096

# TAI64 counts from 2**62 seconds before 1970, and is ten seconds ahead of UTC by multilog's reckoning.
_TAI = 2**62 + 10

Write = Callable[[bytes], None]
_Fact = tuple[Seconds, Callable[..., str], tuple[Any, ...]]  # when, how it is written, and what is to be said


class EventLog:
    """
    Gathers facts; gives *write* many lines at once: *lines* of them, or what came in *delay* seconds.

    They are rendered then, not before. *json*: each is a JSON object;
    *tai64n*: each has the stamp that multilog would have put before it.

    *write* may raise BlockingIOError (characters_written says how much was
    taken): the rest waits, up to *room* octets. After any other OSError the
    batch is gone. Nothing is ever raised to whoever logs.
    """

    def __init__(
        self,
        write: Write,
        clock: IReactorTime,
        wall: Clock,
        *,
        json: bool = False,
        tai64n: bool = False,
        lines: int = 64,
        delay: Seconds = 0.2,
        room: Octets = 1 << 20,
    ) -> None:
        self.dropped = 0
        self._write = write
        self._clock = clock
        self._wall = wall
        self._form = structured if json else plain
        self._tai64n = tai64n and not json
        self._lines = lines
        self._delay = delay
        self._room = room
        self._facts: list[_Fact] = []
        self._waiting = b""  # written in part, or not at all, by a write that would have blocked
        self._owned_up = 0  # how many of *dropped* the log itself knows of
        self._timer: IDelayedCall | None = None
        self._second = self._moment = -1  # of the latest line
        self._date = self._stamp = ""

    def accepted(
        self, id: bytes, session: Session, sender: Address, recipients: Sequence[Address], size: Octets
    ) -> None:
        """The primary said 250: the message is safe somewhere."""
        self._log(self._form.accepted, id, session, sender, recipients, size)

    def passed(
        self, session: Session, transaction: Transaction, recipient: Address, reason: str, info: str = ""
    ) -> None:
        """A recipient was accepted; *reason* is the log's word, as in Verdict."""
        self._log(self._form.passed, session, transaction, recipient, reason, info)

    def refused(
        self,
        session: Session,
        transaction: Transaction | None,
        recipient: Address | None,
        reply: Reply,
        reason: str = "",
        info: str = "",
    ) -> None:
        """A client was told 4yz or 5yz; *reason* and *info* are for us alone."""
        self._log(self._form.refused, session, transaction, recipient, reply, reason, info)

    def noted(
        self,
        session: Session,
        transaction: Transaction | None,
        recipient: Address | None,
        reason: str,
        info: str = "",
    ) -> None:
        """Something of a client that got no answer: a delay, a list that only informs, a checker that failed."""
        self._log(self._form.noted, session, transaction, recipient, reason, info)

    def handed(self, id: bytes, instance: str, recipients: Sequence[Address]) -> None:
        """An instance took the message for these recipients."""
        self._log(self._form.handed, id, instance, recipients)

    def kept(self, id: bytes, reason: str) -> None:
        """The primary's own store took it, because..."""
        self._log(self._form.kept, id, reason)

    def delivered(self, id: bytes, queue: str, recipient: Address, reply: Reply, seconds: Seconds) -> None:
        """The next host took it, *seconds* after it came."""
        self._log(self._form.delivered, id, queue, recipient, reply, seconds)

    def moved(self, id: bytes, queue: str, recipient: Address, to: str, seconds: Seconds) -> None:
        """The queue *to* of this gateway took it, *seconds* after it came."""
        self._log(self._form.moved, id, queue, recipient, to, seconds)

    def deferred(self, id: bytes, queue: str, recipient: Address, due: Seconds, reply: Reply) -> None:
        """It is tried again at *due* (wall clock)."""
        self._log(self._form.deferred, id, queue, recipient, due, reply)

    def failed(self, id: bytes, queue: str, recipient: Address, reply: Reply) -> None:
        """No further attempt."""
        self._log(self._form.failed, id, queue, recipient, reply)

    def deleted(self, id: bytes, queue: str, recipient: Address) -> None:
        """An operator threw it away; nobody is told."""
        self._log(self._form.deleted, id, queue, recipient)

    def bounced(self, id: bytes, bounce_id: bytes, queue: str, to: Address) -> None:
        """A notice about it was taken over."""
        self._log(self._form.bounced, id, bounce_id, queue, to)

    def dropped_bounce(self, id: bytes, queue: str, why: str) -> None:
        """Nobody will be told of its failure."""
        self._log(self._form.dropped_bounce, id, queue, why)

    def warning(self, text: str) -> None:
        """For the operator."""
        self._log(self._form.warning, text)

    def _log(self, render: Callable[..., str], *facts: Any) -> None:
        if len(self._facts) >= self._lines and self._waiting:
            self.dropped += 1  # the batch is full, and the one before can't be written
            return
        self._facts.append((self._wall(), render, facts))
        if len(self._facts) >= self._lines:
            self.flush()
        elif self._timer is None:
            self._timer = self._clock.callLater(self._delay, self.flush)

    def flush(self) -> None:
        """Write what there is."""
        if self._timer is not None:
            if self._timer.active():
                self._timer.cancel()
            self._timer = None
        facts = self._facts
        if len(self._waiting) < self._room:
            self._facts = []
            batch = self._waiting + self._text(facts)
        else:
            batch = self._waiting
        self._waiting = b""
        if self.dropped > self._owned_up:
            told = f"{self.dropped} log lines dropped until now"
            batch += self._text([(self._wall(), self._form.warning, (told,))])
            self._owned_up = self.dropped
        again = bool(self._facts)
        try:
            if batch:
                self._write(batch)
        except BlockingIOError as full:
            self._waiting = batch[getattr(full, "characters_written", 0) :]
            again = True
        except (OSError, ValueError):  # disk full, pipe broken, file closed: the mail goes on
            self.dropped += batch.lstrip(b"\n").count(b"\n")
            self._waiting = b"\n"  # what was written may end within a line
        if again:
            self._timer = self._clock.callLater(self._delay, self.flush)

    def _text(self, facts: Sequence[_Fact]) -> bytes:
        """These facts as lines."""
        form, lines = self._form, []
        for at, render, of in facts:
            if self._tai64n:
                second = int(at)
                lines.append(f"@{_TAI + second:016x}{int((at - second) * 1e9):08x} {render(*of)}\n")
                continue
            if (moment := int(at * 1000)) != self._moment:
                self._moment = moment
                self._stamp = self._stamped(moment)
            lines.append(f"{self._stamp}{render(*of)}{form.CLOSE}")
        return "".join(lines).encode("ascii")

    def _stamped(self, moment: int) -> str:
        """What stands in front of a fact of that millisecond: made once for all of it, its date once a second."""
        second, thousandths = divmod(moment, 1000)
        if second != self._second:
            self._second = second
            self._date = self._form.OPEN + time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._date}.{thousandths:03d}{self._form.THEN}"


def to_descriptor(fd: int) -> Write:
    """
    A *write* for EventLog to a file, pipe or socket that others may share; it never waits.

    Others may share it, so it is not set to O_NONBLOCK: we look before each
    piece. A reader that is stuck is BlockingIOError.
    """
    put: Callable[[bytes], int]
    if stat.S_ISSOCK(os.fstat(fd).st_mode):
        stream = socket.socket(fileno=os.dup(fd))
        put = functools.partial(_send, stream)
    else:
        put = functools.partial(_write, fd)

    def write(batch: bytes) -> None:
        done = 0
        while done < len(batch):
            end = done + _PIECE
            if end < len(batch):
                # Others write to it as well: a piece ends with a line, if it can.
                end = batch.rfind(b"\n", done, end) + 1 or end
            try:
                done += put(batch[done:end])
            except BlockingIOError as full:
                raise BlockingIOError(full.errno, full.strerror, done) from full

    return write


class LogFile:
    """
    A *write* for EventLog that appends to the file at *path*, made with mode 0600; raises OSError if it can't.

    Several processes may append to one file. A named pipe needs a reader.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = _append(path)
        self._write = to_descriptor(self._fd)

    def __call__(self, batch: bytes) -> None:
        """As to_descriptor's."""
        self._write(batch)

    def reopen(self) -> None:
        """
        After it was moved away (logrotate): go on in a new file of that name.

        Raises OSError if there can be none, as when root made the folder and
        we are root no more: then all goes on into the one that is open.
        """
        fd, old = _append(self._path), self._fd
        self._fd, self._write = fd, to_descriptor(fd)
        os.close(old)


def _append(path: str) -> int:
    # O_NONBLOCK: to open a pipe without a reader is an error, not a wait for ever.
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o600)


def _write(fd: int, piece: bytes) -> int:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    if not poll.poll(0):
        raise BlockingIOError(errno.EAGAIN, "the log's reader is stuck")
    return os.write(fd, piece)


def _send(stream: socket.socket, piece: bytes) -> int:
    return stream.send(piece, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
