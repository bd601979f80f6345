"""
Listening sockets: opened once, by the main process, and handed down.

A worker that is started again binds nothing, so nobody is refused while it is
away: new connections wait in the kernel. A socket is known by a word such as
``smtp/127.0.0.1:25`` or ``qmtp/customer1``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterable, Mapping
from typing import Any

from twisted.internet import tcp
from twisted.internet.unix import Port

from qmq.mail import value

# Names the sockets that a parent process has opened for this one: "WORD=FD WORD=FD".
INHERITED = "QMQ_SOCKETS"
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


def reachable(path: str) -> str:
    """The path of a unix socket, short enough for the kernel (108 octets)."""
    if len(os.fsencode(path)) < 104:
        return path
    # Through a descriptor of the folder, which stays open for the process's life.
    folder, name = os.path.split(path)
    return f"/proc/self/fd/{_folder(folder)}/{name}"


_folders: dict[str, int] = {}


def _folder(path: str) -> int:
    if path not in _folders:
        _folders[path] = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    return _folders[path]


class Sockets:
    """The listening sockets of this process."""

    def __init__(self) -> None:
        self._open: dict[str, socket.socket] = {}
        self._paths: list[str] = []
        self._locks: list[int] = []  # held for the process's life

    def inherit(self, environ: Mapping[str, str]) -> None:
        """Take over what the parent opened."""
        for item in environ.get(INHERITED, "").split():
            word, _, number = item.rpartition("=")
            self._open[word] = socket.socket(fileno=int(number))

    def open(self, listeners: Iterable[Listener]) -> None:
        """Bind and listen on all that are not open yet; raises CannotListen."""
        for listener in listeners:
            if listener.word not in self._open:
                try:
                    if listener.path:
                        self._locks.append(_lock(reachable(listener.path)))
                    self._open[listener.word] = _listen(listener)
                except OSError as error:
                    raise CannotListen(_remedy(listener, error)) from error
                if listener.path:
                    self._paths.append(reachable(listener.path))

    def adopt(self, reactor: Any, word: str, factory: Any) -> Any:
        """Accept connections on the socket; a Twisted port."""
        ours = self._open[word]
        factory.noisy = False
        if ours.family != socket.AF_UNIX:
            return reactor.adoptStreamPort(ours.fileno(), ours.family, factory)
        # As reactor.adoptStreamPort does it, but for the class.
        port = _KeptPort._fromListeningDescriptor(reactor, ours.fileno(), factory)  # noqa: SLF001 - no public way
        port.startListening()
        return port

    def close(self) -> None:
        """Remove the unix sockets that this process opened."""
        for path in self._paths:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def descriptor(self, word: str) -> int:
        """For handing it down."""
        return self._open[word].fileno()

    def __contains__(self, word: str) -> bool:
        return word in self._open


class _KeptPort(Port):
    """A unix port whose end leaves the socket in its folder: another process, or the next one, listens on it."""

    def connectionLost(self, reason: Any) -> None:
        """As a TCP port's."""
        tcp.Port.connectionLost(self, reason)


def _lock(path: str) -> int:
    """
    Who holds the lock beside a unix socket may replace it; raises CannotListen, naming the holder.

    A socket alone does not tell: one that was left by a killed process may
    still have a worker at its other end that is about to leave.
    """
    lock = os.open(path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(lock, 20).decode("ascii", "replace").strip()
        os.close(lock)
        raise CannotListen(f"{path}: another qmq (process {holder}) uses this spool; stop it first") from None
    os.ftruncate(lock, 0)
    os.write(lock, b"%d\n" % os.getpid())
    return lock


def _listen(listener: Listener) -> socket.socket:
    if listener.path:
        path = reachable(listener.path)
        ours = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        if os.path.exists(path):
            os.unlink(path)  # left by a process that was killed
        old = os.umask(0o177)
        try:
            ours.bind(path)
        finally:
            os.umask(old)
    else:
        ours = socket.socket(socket.AF_INET6 if ":" in listener.host else socket.AF_INET, socket.SOCK_STREAM)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if ":" in listener.host:
            ours.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        ours.bind((listener.host, listener.port))
    ours.listen(_BACKLOG)
    ours.setblocking(False)
    return ours


def _remedy(listener: Listener, error: OSError) -> str:
    why = os.strerror(error.errno) if error.errno else str(error)
    if isinstance(error, PermissionError) and listener.port:
        return f"cannot listen on {listener.address}: {why}; start as root with `user =`, or take a port above 1023"
    if listener.port:
        return f"cannot listen on {listener.address}: {why}; is another mail server, or another qmq, running there?"
    return f"cannot listen on {listener.address}: {why}"
