"""
What a client may call itself at HELO and EHLO (SPAMCONTROL 2.7): HELOCHECK and control/badhelo.

Asked of clients that may not relay, if the variable is set for them. The list
has names, in any case, and patterns (qmq.rules.wildmat); ``name!`` exempts a
name from the list and from DNS, not from having to be the client's own (``=``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zope.interface import implementer

from qmq.dns.existence import has_address, has_exchanger
from qmq.dns.query import DNSTrouble
from qmq.interfaces import Answer, ICheckerFactory, IHeloChecker, IRecipientChecker, ISelective
from qmq.mail import Address, Reply
from qmq.receive.context import Context
from qmq.rules.badmailfrom import UNKNOWN
from qmq.rules.watched import BadLine, Watched, lines
from qmq.rules.wildmat import Rules, Walk, plain
from qmq.session import Environment, Session, Transaction, Verdict

_REFUSED = Reply(550, "5.7.1", "sorry, I don't accept mail from hosts with that HELO/EHLO greeting")
_LATER = Reply(451, "4.3.0", "DNS has no answer for your HELO/EHLO greeting now, try again later")
_BAD, _DNS = "Reject::SNDR::Bad_Helo", "Reject::SNDR::DNS_Helo"
_SEARCHES = {"A": has_address, "M": has_exchanger}


class BadHelo:
    """The rules of one file; *path* is for complaints. Raises BadLine."""

    __slots__ = ("_exempt", "_listed", "_walk")

    def __init__(self, rules: Rules, path: str) -> None:
        exempt: set[bytes] = set()
        listed: set[bytes] = set()
        patterns: list[tuple[int, bytes]] = []
        for number, line in rules:
            name = line.lower()
            if line == b"!":
                exempt.add(b"")  # the empty name, wherever the line stands
            elif line.endswith(b"!") and not line.startswith(b"!"):
                if not plain(line):
                    raise BadLine(path, number, "a pattern with ! behind it", "put the ! in front to exempt by pattern")
                exempt.add(name[:-1])
                continue
            if not line.startswith(b"!"):
                listed.add(name)
            patterns.append((number, line))
        self._exempt = frozenset(exempt)
        self._listed = frozenset(listed)
        self._walk = Walk(patterns, path)

    def exempts(self, name: bytes) -> bool:
        """Whether the name is in the file with an exclamation mark."""
        return name.lower() in self._exempt

    def condition(self, name: bytes) -> str:
        """Why the name is refused: ``.`` (listed) or ``*`` (a pattern); empty: it is not."""
        if name.lower() in self._listed:
            return "."
        return "*" if self._walk.refuses(name) else ""


def read_badhelo(path: str) -> BadHelo:
    """The rules in the file at *path*; raises OSError and BadLine. To be given to Context.watch."""
    return BadHelo(lines(path), path)


@implementer(IHeloChecker, IRecipientChecker, ISelective)
class BadHeloCheck:
    """Judges a name at HELO by *rules* and *resolver* (qmq.dns.resolver.Resolver), and its absence at RCPT."""

    def __init__(self, rules: Watched[BadHelo], resolver: Any) -> None:
        self._rules = rules
        self._resolver = resolver

    def concerns(self, environment: Environment, phase: str) -> bool:
        """Clients for whom HELOCHECK is set."""
        return environment.helocheck is not None

    def helo(self, session: Session) -> Answer:
        """A refusal, or a deferral while DNS has no answer; each HELO is judged afresh (SPAMCONTROL 2.20, 10)."""
        mode = session.environment.helocheck
        if mode is None or session.relay:
            return None
        verdict = self._judged(session, mode)
        if verdict is None and mode in _SEARCHES and not self._rules.now().exempts(session.helo):
            return self._asked(session, mode)
        return _noted(session, verdict)

    def _judged(self, session: Session, mode: str) -> Verdict | None:
        """By all but DNS."""
        name, rules = session.helo, self._rules.now()
        if mode in {"!", "."} and not name:
            return _refused(session, _BAD, "!")
        if mode == "!":
            return None
        if not rules.exempts(name) and (condition := rules.condition(name)):
            return _refused(session, _BAD, condition)
        if mode == "=" and (session.host == UNKNOWN or name.lower() != session.host.lower().encode()):
            return _refused(session, _DNS, "=")
        return None

    async def _asked(self, session: Session, mode: str) -> Verdict | None:
        try:
            exists = await _SEARCHES[mode](self._resolver, session.helo)
        except DNSTrouble:
            return _noted(session, Verdict(reply=_LATER, reason=_DNS, info=mode))
        return _noted(session, None if exists else _refused(session, _DNS, mode))

    def recipient(self, session: Session, transaction: Transaction, recipient: Address) -> Verdict | None:
        """A refusal if the client has not said HELO, where HELOCHECK is one character."""
        mode = session.environment.helocheck
        if mode is None or session.relay or session.helo:
            return None
        # A name that was refused, or was empty, is no name either; STARTTLS makes forget what was said in clear.
        note: _Note | None = session.conduct.notes.get(_NOTE)
        if note is not None and note[0] == session.tls:
            return note[1]
        return _refused(session, _BAD, "0") if len(mode) == 1 else None


_NOTE = "badhelo"
_Note = tuple[str, Verdict | None]  # the encryption under which a name was said, and what came of it


def _noted(session: Session, verdict: Verdict | None) -> Verdict | None:
    session.conduct.notes[_NOTE] = session.tls, verdict
    return verdict


def _refused(session: Session, reason: str, condition: str) -> Verdict:
    return Verdict(reply=session.environment.worded(_REFUSED, "REPLY_HELO"), reason=reason, info=condition)


@implementer(ICheckerFactory)
class Factory:
    """Makes BadHeloCheck."""

    name = "badhelo"
    help = "refuses names at HELO, by control/badhelo and as HELOCHECK says"
    options: Mapping[str, str] = {"file": "the list; else control/badhelo"}

    def make(self, context: Context, options: Mapping[str, str]) -> Any:
        """Option `file`."""
        rules = context.watch(context.path(self.name, options), read_badhelo, BadHelo((), ""))
        return BadHeloCheck(rules, context.resolver)
