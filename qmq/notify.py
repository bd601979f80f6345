"""
What whoever supervises us is told, and what sockets it gives us: sd_notify(3), sd_listen_fds(3).

systemd speaks it, podman and others too. A fact is one datagram to the socket
that NOTIFY_SOCKET names. Both take their variables out of the environment, so
that no worker and no filter program speaks in our name by mistake; a new main
process gets *heirloom*.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from ipaddress import ip_address
from typing import Any

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from qmq.mail import Seconds

# The text that `systemctl status` shows is as old as this at most.
_STATUS: Seconds = 10.0
# SD_LISTEN_FDS_START
_FIRST = 3
_LISTEN = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")

log = Logger()


class Notifier:
    """
    Tells the supervisor of *environ* how we are; without one, does nothing.

    *status* is one line for `systemctl status`, asked for every 10 s, so it
    has to be cheap. From ready() on, the watchdog is fed by *clock*, which is
    the reactor's: what it sees is that the reactor's thread turns. Nothing here
    waits, and nothing is raised: a supervisor that does not listen is not our
    trouble.
    """

    def __init__(
        self, environ: MutableMapping[str, str], clock: Any, status: Callable[[], str], pid: int | None = None
    ) -> None:
        self._address = _address(environ.pop("NOTIFY_SOCKET", ""))
        usec = environ.pop("WATCHDOG_USEC", "")
        whose = environ.pop("WATCHDOG_PID", "")
        self._clock = clock
        self._status = status
        self._unsaid = ""  # a fact that found no room; said again with the next status
        # The environment in which a new main process finds the same supervisor. Without
        # WATCHDOG_PID: that would be ours.
        self.heirloom: Mapping[str, str] = {}
        self._loops: list[tuple[LoopingCall, Seconds]] = []
        if not self._address:
            return
        self.heirloom = {"NOTIFY_SOCKET": self._address.replace("\0", "@", 1)}
        self._loops = [(self._loop(self._tell), _STATUS)]
        if _number(usec) and whose in {"", str(os.getpid() if pid is None else pid)}:
            self.heirloom |= {"WATCHDOG_USEC": usec}
            self._loops.append((self._loop(self._ping), _number(usec) / 2e6))

    def ready(self) -> None:
        """We serve, for the first time or again after reloading(); from now on the watchdog is fed."""
        self._say("READY=1")
        for loop, every in self._loops:
            if not loop.running:
                loop.start(every).addErrback(lambda failure: log.failure("the supervisor is told no more", failure))

    def reloading(self) -> None:
        """The configuration is being read; say ready() afterwards, whatever became of it."""
        self._say(f"RELOADING=1\nMONOTONIC_USEC={int(self._clock.seconds() * 1e6)}")

    def stopping(self) -> None:
        """No new mail is taken. The last word."""
        self._say("STOPPING=1")
        self._end()

    def main_pid(self, pid: int) -> bool:
        """
        Process *pid*, one that was given *heirloom*, is the gateway now, and ready. Our last word.

        In one datagram, so that it holds with NotifyAccess=main: until it is
        read the supervisor hears us alone, and from then on the other alone,
        whose time for feeding the watchdog begins anew. False if it found no
        room: say it again in a moment, before leaving.
        """
        taken = self._send(f"MAINPID={pid}\nREADY=1\nWATCHDOG=1")
        if taken:
            self._end()
        return taken

    def _loop(self, what: Callable[[], None]) -> LoopingCall:
        loop = LoopingCall(what)
        loop.clock = self._clock
        return loop

    def _end(self) -> None:
        for loop, _ in self._loops:
            if loop.running:
                loop.stop()
        self._address = ""

    def _ping(self) -> None:
        self._send("WATCHDOG=1")

    def _tell(self) -> None:
        if self._unsaid:
            self._say(self._unsaid)
        self._send(f"STATUS={' '.join(self._status().split())}")

    def _say(self, fact: str) -> None:
        self._unsaid = "" if self._send(fact) else fact

    def _send(self, fact: str) -> bool:
        """Whether it was taken; what nobody listens to counts as taken, for there is no sense in saying it again."""
        if not self._address:
            return True
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as ours:
                ours.sendto(fact.encode(), self._address)
        except BlockingIOError:
            return False
        except OSError:  # gone, or no right to it
            return True
        return True


def _address(text: str) -> str:
    """As the kernel wants it; "" for what is no unix socket."""
    if text.startswith("@"):
        return "\0" + text[1:]
    return text if text.startswith("/") else ""


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0


def listen_fds(environ: MutableMapping[str, str], pid: int, first: int = _FIRST) -> dict[int, str]:
    """
    The listening sockets that were opened for process *pid*: descriptors and their names in the unit, in its order.

    From here on they are close-on-exec and do not block. None, if the variables
    are another process's, or make no sense. To be asked once in a process's life.
    """
    given = _first_environment() | {name: value for name in _LISTEN if (value := environ.pop(name, ""))}
    whose, number, names = (given.get(name, "") for name in _LISTEN)
    return _passed(_number(number), names.split(":"), first) if whose == str(pid) else {}


def _first_environment() -> dict[str, str]:
    """
    The variables with which this process was begun.

    twisted.internet.endpoints takes LISTEN_PID and LISTEN_FDS away when it is
    imported, by which time nobody has asked us yet.
    """
    try:
        with open("/proc/self/environ", encoding="utf-8", errors="replace") as begun:
            pairs = (item.partition("=") for item in begun.read().split("\0"))
            return {name: value for name, _, value in pairs if name in _LISTEN}
    except OSError:
        return {}


def _passed(number: int, names: Sequence[str], first: int) -> dict[int, str]:
    found: dict[int, str] = {}
    for n in range(number):
        try:
            os.set_inheritable(first + n, False)
            os.set_blocking(first + n, False)
        except OSError:
            break  # fewer than were promised
        found[first + n] = names[n] if n < len(names) else ""
    return found


def matched(descriptors: Iterable[int], wanted: Mapping[tuple[str, int], str]) -> tuple[dict[str, int], dict[int, str]]:
    """
    Which of the sockets is which listener of ours, and those that are none, with what they are.

    *wanted* has the listeners' words by host and port ("" is all of IPv4, "::" all
    of IPv6). A socket for both at once is nobody's: it shows IPv4 clients by
    addresses that no rule names.
    """
    listeners = {(_canonical(host), port): word for (host, port), word in wanted.items()}
    ours: dict[str, int] = {}
    others: dict[int, str] = {}
    for descriptor in descriptors:
        where, what = _listening(descriptor)
        word = listeners.get(where)
        if word is None or word in ours:
            others[descriptor] = what
        else:
            ours[word] = descriptor
    return ours, others


def _canonical(host: str) -> str:
    try:
        return str(ip_address(host or "0.0.0.0"))
    except ValueError:
        return host


def _listening(descriptor: int) -> tuple[tuple[str, int], str]:
    """The address of a listening TCP socket and how to name it; no address for anything else."""
    nowhere = ("", 0)
    try:
        with socket.socket(fileno=os.dup(descriptor)) as peek:
            if peek.type != socket.SOCK_STREAM or not peek.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return nowhere, "no listening stream socket"
            if peek.family == socket.AF_INET6:
                host, port = peek.getsockname()[:2]
                if not peek.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) and host == "::":
                    return nowhere, f"[::]:{port} for IPv4 too (BindIPv6Only=ipv6-only is missing)"
                return (host, port), f"[{host}]:{port}"
            if peek.family == socket.AF_INET:
                host, port = peek.getsockname()
                return (host, port), f"{host}:{port}"
            return nowhere, "no TCP socket"
    except OSError as error:
        return nowhere, f"no socket: {error.strerror}"
