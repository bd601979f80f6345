"""What a checker's factory may use of the house."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any, Protocol, TypeVar

from twisted.internet.interfaces import IReactorTime

from qmq.mail import Address, Octets, value
from qmq.rules.watched import Files, Watched

T = TypeVar("T")


class Owner(Protocol):
    """What a checker sees of the instance that a recipient belongs to: its section of conf-qmq."""

    name: str
    databytes: Octets
    recipients: str  # path of its own recipients file; "": the primary's counts
    badmailfrom: str  # path of its own badmailfrom, asked beside the primary's; "": none
    spf: int | None  # its own SPF level; None: the client's counts
    spam_threshold: float | None  # its spamdomains entry; None: the file's counts; -1: not scanned
    callout: str  # "no", "open" (accept if nobody answers) or "closed" (450)


Some = Callable[[Callable[[Owner], bool]], bool]  # whether there is an instance of which that is true


def _nobody(_: bytes) -> None:
    """There are no instances."""


def perhaps(_: object) -> bool:
    """Nobody knows what instances there are."""
    return True


def _nowhere(_: Address) -> bytes:
    """There are no sites."""
    return b""


@value
class Context:
    """
    What a checker's factory may use of the house.

    While a configuration is only being checked, *reactor*, *resolver* and *mx*
    are None: `make` may keep them, not use them.
    """

    knows: Callable[[bytes], bool]  # is there a route for this domain (in lower case)
    databytes: Octets  # the longest message we take; 0: any
    clock: IReactorTime
    says: Callable[[bytes], bool] | None = None  # likewise, whatever control/rcpthosts says; None: it is not asked
    me: str = "localhost"
    folder: str = ""  # conf-qmq's: relative paths of options are meant from here
    control: str = ""  # qmail's control folder, whether it is there or not
    spool: str = ""  # a folder of the primary's own, for files that live as long as a check
    files: Files = field(default_factory=Files, hash=False, compare=False)
    owner: Callable[[bytes], Owner | None] = _nobody  # whose this domain (in lower case) is
    some: Some = perhaps  # of the instances there are now; for ISelective: to be asked with functions that stay
    site: Callable[[Address], bytes] = (
        _nowhere  # where a recipient's mail is delivered to, as qmq.deliver.dial wants it
    )
    reactor: Any = None  # IReactorProcess, IReactorTCP, IReactorThreads
    resolver: Any = None  # qmq.dns.resolver.Resolver
    mx: Any = None  # qmq.deliver.mx.MX

    def path(self, name: str, options: Mapping[str, str], option: str = "file") -> str:
        """The path that *option* says, else that of the control file *name*."""
        said = options.get(option)
        return os.path.join(self.folder, said) if said else os.path.join(self.control, name)

    def watch(self, path: str, read: Callable[[str], T], missing: T) -> Watched[T]:
        """The rules in a file that may be edited while we run; raises BadLine."""
        return self.files.watch(path, read, missing)
