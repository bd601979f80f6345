"""
Listening sockets: opened once, by the main process, and handed down.

A worker that is started again binds nothing, so nobody is refused while it is
away: new connections wait in the kernel. A socket is known by a word such as
``smtp/127.0.0.1:25`` or ``qmtp/customer1``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from twisted.internet import tcp
from twisted.internet.unix import Port

from qmq.mail import Seconds, value
from qmq.paths import reachable

# Names the sockets that a parent process has opened for this one: "WORD=FD WORD=FD".
INHERITED = "QMQ_SOCKETS"
# What an earlier main process leaves to this one, as JSON: {WORD: [FD of the lock, path of the socket]}.
LOCKS = "QMQ_LOCKS"
# How long an address may stay in use by workers that leave.
PATIENCE: Seconds = 5.0
_PAUSE: Seconds = 0.1
# More than any burst of new clients between two turns of the loop.
_BACKLOG = 4096


@value
class Listener:
    """What is to be listened on: a TCP host and port, or the path of a unix socket."""

    word: str
    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def address(self) -> str:
        """For the line that says we are ready."""
        return self.path or (f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host or '*'}:{self.port}")


class CannotListen(Exception):
    """A socket could not be opened; the text says which and what to do."""


class Sockets:
    """
    The listening sockets of this process, by word.

    Of the unix sockets it owns those that it has opened, or that an earlier
    main process has left to it: it holds their locks, and removes them at the
    end. A worker, which inherits sockets alone, owns none.
    """

    def __init__(self) -> None:
        self._open: dict[str, socket.socket] = {}
        self._locks: dict[str, tuple[int, str]] = {}  # and the path that each is for
        self._shared: set[str] = set()  # with an earlier main process, which may go on with them
        self._ports: dict[str, list[Any]] = {}

    def inherit(self, environ: Mapping[str, str]) -> None:
        """Take over what the parent has opened, or an earlier main process; see ``hand_down``."""
        for item in environ.get(INHERITED, "").split():
            word, _, number = item.rpartition("=")
            self.take(word, int(number))
        for word, (number, path) in json.loads(environ.get(LOCKS) or "{}").items():
            os.set_inheritable(number, False)
            self._locks[word] = (number, path)
            self._shared.add(word)

    def open(self, listeners: Iterable[Listener], *, patience: Seconds = PATIENCE) -> None:
        """
        Bind and listen on all that are not open yet, or on none of them; raises CannotListen.

        An address in use is tried again for *patience*: the workers of a main
        process that was killed may not have left. That blocks; say 0 while
        connections are served.
        """
        opened: list[str] = []
        until = time.monotonic() + patience
        others = self._addresses()
        for listener in listeners:
            try:
                if listener.word in self._open and self._kept(listener):
                    continue
                opened.append(listener.word)
                if listener.path:
                    self._locks[listener.word] = (_lock(listener.path), listener.path)
                # A copy of what is open there for somebody else of ours, who is about to give it up.
                same = None if listener.path else others.get((listener.host or "0.0.0.0", listener.port))
                self._open[listener.word] = _patiently(listener, until) if same is None else same.dup()
            except OSError as error:
                self._drop_all(opened)
                raise CannotListen(_remedy(listener, error)) from error
            except CannotListen:
                self._drop_all(opened)
                raise

    def take(self, word: str, descriptor: int) -> None:
        """A socket that has come later; it is ours from now on. One of the same word is closed."""
        if word in self._open:
            self._open[word].close()
        taken = socket.socket(fileno=descriptor)
        taken.setblocking(False)
        taken.set_inheritable(False)
        self._open[word] = taken

    def drop(self, word: str) -> None:
        """Close the socket, here, and forget it, if there is one; a unix socket that is ours is removed."""
        for port in self._ports.pop(word, []):
            if port.connected and not port.disconnecting:
                port.stopListening()
        if (ours := self._open.pop(word, None)) is not None:
            ours.close()
        if word in self._locks:
            lock, path = self._locks.pop(word)
            if word not in self._shared:
                _remove(path)
            os.close(lock)
            self._shared.discard(word)

    def adopt(self, reactor: Any, word: str, factory: Any) -> Any:
        """
        Accept connections on the socket; a Twisted port.

        When the port stops, the socket stays: new connections wait in the
        kernel for the next port, here or in another process that has it.
        """
        ours = self._open[word]
        factory.noisy = False
        if ours.family != socket.AF_UNIX:
            port = reactor.adoptStreamPort(ours.fileno(), ours.family, factory)
        else:
            # As reactor.adoptStreamPort does it, but for the class.
            port = _KeptPort._fromListeningDescriptor(reactor, ours.fileno(), factory)  # noqa: SLF001 - no public way
            port.startListening()
        self._ports[word] = [*(p for p in self._ports.get(word, []) if p.connected), port]
        return port

    def close(self) -> None:
        """Remove the unix sockets that are ours; the kernel does the rest when the process ends."""
        for word, (_, path) in self._locks.items():
            if word not in self._shared:
                _remove(path)
        self.disown()

    def let_go(self) -> None:
        """Close everything here at once, ports and locks too: somebody else is to open it."""
        self._drop_all({*self._open, *self._locks})

    def hand_down(self, first: int) -> tuple[dict[int, int], dict[str, str]]:
        """
        For a new main process, which goes on with all that is here.

        The first are its descriptors, from *first* on, and which of ours they
        are; the second is for its environment, see ``inherit``. It keeps the
        locks if we end, and we if it does, until ``disown``
        here and ``own`` there.
        """
        numbers = itertools.count(first)
        descriptors: dict[int, int] = {}

        def give(ours: int) -> int:
            number = next(numbers)
            descriptors[number] = ours
            return number

        sockets = " ".join(f"{word}={give(ours.fileno())}" for word, ours in self._open.items())
        locks = {word: (give(lock), path) for word, (lock, path) in self._locks.items()}
        return descriptors, {INHERITED: sockets, LOCKS: json.dumps(locks)}

    def own(self) -> None:
        """What an earlier main process has handed down is ours alone from now on; before, its paths are left alone."""
        for word in self._shared:
            _sign(self._locks[word][0])
        self._shared.clear()

    def disown(self) -> None:
        """Another process has taken all over: locks and paths are its own now. We may still listen."""
        for lock, _ in self._locks.values():
            os.close(lock)  # no LOCK_UN: that would be for both of us
        self._locks.clear()
        self._shared.clear()

    def words(self) -> Sequence[str]:
        """Of all that is open."""
        return list(self._open)

    def descriptor(self, word: str) -> int:
        """For handing it down; raises KeyError if there is none."""
        return self._open[word].fileno()

    def __contains__(self, word: str) -> bool:
        return word in self._open

    def _addresses(self) -> dict[tuple[str, int], socket.socket]:
        """The TCP sockets that are open, by their address."""
        return {ours.getsockname()[:2]: ours for ours in self._open.values() if ours.family != socket.AF_UNIX}

    def _kept(self, listener: Listener) -> bool:
        """Whether what is open under the listener's word is what is wanted; if it is at another path, it is dropped."""
        if self._locks.get(listener.word, (0, listener.path))[1] == listener.path:
            return True
        self.drop(listener.word)
        return False

    def _drop_all(self, words: Iterable[str]) -> None:
        for word in words:
            self.drop(word)


class _KeptPort(Port):
    """A unix port that leaves the socket as it is, at its start and at its end: other processes listen on it too."""

    def startListening(self) -> None:
        """As a TCP port: Twisted's unix port lets all users in, shortens the backlog, ends by a shutdown for all."""
        tcp.Port.startListening(self)

    def connectionLost(self, reason: Any) -> None:
        """As a TCP port's."""
        tcp.Port.connectionLost(self, reason)


def sweep(folder: str, suffix: str) -> None:
    """Remove the unix sockets named so that killed processes have left: who comes to one would find nobody."""
    with os.scandir(folder) as entries:
        left = [entry.path for entry in entries if entry.name.endswith(suffix)]
    for path in left:
        try:
            lock = _lock(path, tries=1)
        except CannotListen:
            continue  # somebody is there
        _remove(path)
        os.close(lock)


def _lock(path: str, tries: int = 3) -> int:
    """
    A descriptor that holds the lock of the unix socket *path*; after *tries* raises CannotListen, naming the holder.

    Who holds it may replace the socket. That alone does not tell: one that was
    left by a killed process may still have a worker at its other end that is
    about to leave.
    """
    lock = os.open(reachable(path) + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if tries := tries - 1:
                time.sleep(0.01)  # who sweeps has it for a moment
                continue
            holder = os.read(lock, 20).decode("ascii", "replace").strip()
            os.close(lock)
            raise CannotListen(f"{path}: another qmq (process {holder}) uses this spool; stop it first") from None
    _sign(lock)
    return lock


def _sign(lock: int) -> None:
    os.ftruncate(lock, 0)
    os.pwrite(lock, b"%d\n" % os.getpid(), 0)


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(reachable(path))


def _patiently(listener: Listener, until: Seconds) -> socket.socket:
    while True:
        try:
            return _listen(listener)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() >= until:
                raise
        time.sleep(_PAUSE)


def _listen(listener: Listener) -> socket.socket:
    family = socket.AF_UNIX if listener.path else socket.AF_INET6 if ":" in listener.host else socket.AF_INET
    ours = socket.socket(family, socket.SOCK_STREAM)
    try:
        if listener.path:
            _bind_path(ours, listener.path)
        else:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                ours.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            ours.bind((listener.host, listener.port))
        ours.listen(_BACKLOG)
    except OSError:
        ours.close()
        raise
    ours.setblocking(False)
    return ours


def _bind_path(ours: socket.socket, path: str) -> None:
    _remove(path)  # left by a process that was killed
    old = os.umask(0o177)
    try:
        ours.bind(reachable(path))
    finally:
        os.umask(old)


def _remedy(listener: Listener, error: OSError) -> str:
    why = os.strerror(error.errno) if error.errno else str(error)
    if isinstance(error, PermissionError) and listener.port:
        return f"cannot listen on {listener.address}: {why}; start as root with `user =`, or take a port above 1023"
    if listener.port:
        return f"cannot listen on {listener.address}: {why}; is another mail server, or another qmq, running there?"
    return f"cannot listen on {listener.address}: {why}"
