"""
Programs in base64: the content filter named Warlord (SPAMCONTROL 2.13).

A message is refused if one of its parts begins with a signature of
control/badmimetypes, has one of control/badloadertypes in it, or, in the mode
``!``, has blanks inside its base64. Each message is looked at afresh, the
second of a session too (SPAMCONTROL 2.20, 2). Of what was written by an
attacker no reading is taken for granted: see qmq.rules.mime.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping
from typing import TypeVar

from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from qmq.interfaces import Answer, ICheckerFactory, IMessageChecker, ISelective
from qmq.mail import Message, Octets
from qmq.receive.context import Context
from qmq.rules.filters import refused
from qmq.rules.mime import DEPTH, PARTS, Walk, steps
from qmq.rules.options import choice, count, known
from qmq.rules.signatures import LOADERS, TYPES, Hunt, Loaders, Signatures, read_loaders, read_types
from qmq.rules.watched import Watched
from qmq.session import Environment, Session, Transaction, Verdict
from qmq.slices import sliced

T = TypeVar("T")

# So short a text is searched for the word base64 first: most messages do not have it, and need no walk then.
_SHORT: Octets = 65_536
_BEYOND = {"depth": "nested too deeply", "parts": "too many parts", "field": "too long a field"}
_OPTIONS = {
    "mimetypes": "file of 9-character signatures; else badmimetypes, or badmimetypes.cdb, in the control folder",
    "loadertypes": "file of 5-character signatures; else badloadertypes, or badloadertypes.cdb",
    "builtin": "yes: SPAMCONTROL's own list, where there is no file (no)",
    "depth": f"multiparts within each other that are looked into ({DEPTH})",
    "parts": f"parts of a message that are looked into ({PARTS})",
    "beyond": "what has more than that: refuse, or pass (refuse)",
}


@implementer(IMessageChecker, ISelective)
class Warlord:
    """
    Looks into the base64 of messages, as BADMIMETYPE and BADLOADERTYPE of the client say.

    BADMIMETYPE: not set or ``-`` is off, ``!`` blanks and list, ``+`` likewise
    but off for relay clients, anything else, the empty text too, the list.
    BADLOADERTYPE: ``-`` is off, ``+`` all that are listed but off for relay
    clients, empty all that are listed, a character those that begin with it.
    Leaves in the session's notes, under "base64", the message's id and whether
    it has base64 in it.
    """

    def __init__(
        self, types: Callable[[], frozenset[bytes]], loaders: Callable[[], Loaders], clock: IReactorTime, *,
        depth: int = DEPTH, parts: int = PARTS, lenient: bool = False,
    ) -> None:  # fmt: skip
        self._types = types
        self._loaders = loaders
        self._clock = clock
        self._depth = depth
        self._parts = parts
        self._lenient = lenient  # what is beyond depth and parts passes

    def concerns(self, environment: Environment, phase: str) -> bool:
        """Clients for whom BADMIMETYPE or BADLOADERTYPE is set."""
        return environment.badmimetype is not None or environment.badloadertype is not None

    def message(self, session: Session, transaction: Transaction, message: Message) -> Answer:
        """A refusal, or nothing."""
        settings = session.environment
        if settings.badmimetype is None and settings.badloadertype is None:
            return None
        signatures = self._wanted(settings.badmimetype, settings.badloadertype, session.relay)
        if signatures is None:
            return None
        text = message.body.data
        if text is not None and len(text) <= _SHORT and b"base64" not in text.lower():
            session.conduct.notes["base64"] = transaction.id, False
            return None
        return sliced(self._look(session, transaction, message, Hunt(signatures)), self._clock)

    def _wanted(self, mime: str | None, loader: str | None, relay: bool) -> Signatures | None:
        look_mime = mime is not None and mime != "-" and not (mime == "+" and relay)
        look_loader = loader is not None and loader != "-" and not (loader == "+" and relay)
        if not (look_mime or look_loader):
            return None
        first = b"" if loader is None or loader == "+" else loader[:1].encode()
        return Signatures(
            self._types() if look_mime else frozenset(),
            self._loaders().finder(first) if look_loader else None,
            look_mime and mime in {"!", "+"},
        )

    def _look(
        self, session: Session, transaction: Transaction, message: Message, hunt: Hunt
    ) -> Generator[None, None, Verdict | None]:
        walk = Walk(hunt, self._depth, self._parts)
        yield from steps(walk, message.body, lambda: hunt.hit is not None)
        if hunt.hit is not None:
            kind, found = hunt.hit
            return refused(session, f"Bad_{kind}", found.decode("ascii"))
        if walk.beyond and not self._lenient:
            return refused(session, "Bad_MIME", _BEYOND[walk.beyond])
        session.conduct.notes["base64"] = transaction.id, walk.base64 or bool(walk.beyond)
        return None


@implementer(ICheckerFactory)
class Factory:
    """Makes Warlord."""

    name = "warlord"
    help = "refuses programs in base64, by BADMIMETYPE and BADLOADERTYPE: badmimetypes, badloadertypes"
    options = _OPTIONS

    def make(self, context: Context, options: Mapping[str, str]) -> Warlord:
        """With the lists' files, which may be missing: then nothing is listed; raises ValueError and BadLine."""
        known(self.name, options, _OPTIONS)
        builtin = choice(self.name, options, "builtin", ("no", "yes")) == "yes"
        return Warlord(
            _lists(context, options, "mimetypes", read_types, TYPES if builtin else frozenset()),
            _lists(context, options, "loadertypes", read_loaders, Loaders(LOADERS if builtin else ())),
            context.clock,
            depth=count(self.name, options, "depth", DEPTH, 1),
            parts=count(self.name, options, "parts", PARTS, 1),
            lenient=choice(self.name, options, "beyond", ("refuse", "pass")) == "pass",
        )


def _lists(
    context: Context, options: Mapping[str, str], option: str, read: Callable[[str], T], missing: T
) -> Callable[[], T]:
    """What gives a list as it stands: its text, which needs no compiling for us; else the cdb made of it."""
    path = context.path(f"bad{option}", options, option)
    if option in options and not os.path.exists(path):
        raise ValueError(f"warlord: {option} = {path}: there is no such file; name one, or leave the word out")
    text: Watched[T | None] = context.watch(path, read, None)
    compiled: Watched[T | None] = context.watch(f"{path}.cdb", read, None)

    def now() -> T:
        found = text.now()
        if found is None:
            found = compiled.now()
        return missing if found is None else found

    return now
