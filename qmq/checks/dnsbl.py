"""
Clients that DNS lists warn of: what rblsmtpd did (SPAMCONTROL 2.3, 2.19).

All lists are asked at once, and the answer is given as soon as no other can
change it. RBLSMTPD, where it is set for a client, stands for what the lists
would say: nothing skips them; a text refuses with 451, one behind ``-`` with
553; one that begins ``[...]``, as rblsmtpd -i hands it on, only informs. Relay clients
are not asked about: a site's own users must not be lost to a list.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from zope.interface import implementer

from qmq.dns.query import DNSTrouble, NoData, NoSuchDomain
from qmq.interfaces import ICheckerFactory, IConnectionChecker, ISelective
from qmq.mail import Reply, Seconds, value
from qmq.rules import blocklists
from qmq.rules import options as said
from qmq.rules.blocklists import DNSList, NoAnswer
from qmq.session import Environment, Session, Verdict

_REASON = "Reject::SNDR::Blocklisted"
_INFORMED = "Info::SNDR::Blocklisted"
_UNANSWERED = "Info::SNDR::Blocklist_Trouble"
_TROUBLE = "temporary RBL lookup error"  # rblsmtpd's words
_STATUS = {451: "4.7.1", 553: "5.7.1"}


@value
class Manner:
    """What to make of the lists' answers."""

    allow: tuple[DNSList, ...] = ()  # a hit on any of these, and the others do not matter
    threshold: int = 1  # so much must the hits weigh
    code: int = 451  # of a refusal; while a list gives no answer it is 451 (rblsmtpd)
    closed: bool = False  # who gives no answer counts against the client, else for it (rblsmtpd -c, -C)
    time: Seconds = 10  # for all answers together
    inform: bool = False  # no refusal, but a field X-RBL-Info for each hit (rblsmtpd -i)
    relay: bool = False  # ask for relay clients too
    private: bool = False  # ask for addresses that no public list knows


@implementer(IConnectionChecker, ISelective)
class DNSBL:
    """Asks *lists* about each client, and judges in this *manner*."""

    def __init__(self, resolver: Any, clock: IReactorTime, lists: tuple[DNSList, ...], manner: Manner) -> None:
        self.limit = manner.time + 5
        self._resolver = resolver
        self._clock = clock
        self._lists = lists
        self._manner = manner

    def concerns(self, environment: Environment, phase: str) -> bool:
        """All, if there are lists; else those for whom RBLSMTPD is set."""
        return bool(self._lists) or environment.rblsmtpd is not None

    def connection(self, session: Session) -> Verdict | Awaitable[Verdict | None] | None:
        """A refusal, which is held until RCPT; or header fields; or nothing."""
        told = session.environment.rblsmtpd
        if told is not None:
            return _told(told, session.client) if told else None
        if not self._lists or (session.relay and not self._manner.relay):
            return None
        question = blocklists.question(session.client, private=self._manner.private)
        if not question:
            return None
        return Survey(self._lists, self._manner, session.client).ask(self._resolver, self._clock, question)


def _told(text: str, ip: str) -> Verdict:
    """What RBLSMTPD says of the client."""
    note, bracket, rest = text.partition("]")
    if bracket and note.startswith("["):
        return Verdict(fields=_field(blocklists.with_ip(rest, ip)), reason=_INFORMED, info="RBLSMTPD")
    code = 553 if text.startswith("-") else 451
    reply = Reply(code, _STATUS[code], blocklists.with_ip(text.removeprefix("-"), ip))
    return Verdict(reply=reply, reason=_REASON, info="RBLSMTPD")


def _field(text: str) -> bytes:
    return f"X-RBL-Info: {text}\r\n".encode("ascii") if text else b""


class Survey:
    """What the lists say of one client, until it is enough."""

    def __init__(self, lists: Sequence[DNSList], manner: Manner, ip: str) -> None:
        self._manner = manner
        self._ip = ip
        self._waiting: dict[DNSList, Deferred[Any] | None] = dict.fromkeys((*manner.allow, *lists))
        self._hits: list[tuple[DNSList, str]] = []
        self._silent: list[DNSList] = []  # gave no answer
        self._over = False
        self._verdict: Deferred[Verdict | None] = Deferred(self._end)

    def ask(self, resolver: Any, clock: IReactorTime, question: str) -> Deferred[Verdict | None]:
        """Ask them all; fires with the verdict. Cancelling stops the asking."""
        self._timer = clock.callLater(self._manner.time, self._late)
        for one in tuple(self._waiting):
            if self._over:  # what is in the cache was enough
                break
            asked = Deferred.fromCoroutine(_look_up(resolver, one, question, self._ip))
            if not asked.called:
                self._waiting[one] = asked
            asked.addBoth(self._answered, one)
        return self._verdict

    def _answered(self, result: str | Failure | None, one: DNSList) -> None:
        if self._over:
            return  # cancelled
        del self._waiting[one]
        if not isinstance(result, Failure):
            if result is not None:
                self._hits.append((one, result))
        elif result.check(DNSTrouble, NoAnswer):
            self._silent.append(one)
        else:
            self._end()
            self._verdict.errback(result)
            return
        self._weigh()

    def _late(self) -> None:
        asked = list(self._waiting.values())
        self._silent += self._waiting
        self._waiting.clear()
        self._weigh()
        _cancel(asked)

    def _weigh(self) -> None:
        """Give the verdict, if no answer that is still to come can change it."""
        manner = self._manner
        allow = manner.allow
        if any(one in allow for one, _ in self._hits):
            self._say(None)
            return
        if not manner.closed and any(one in allow for one in self._silent):
            # rblsmtpd -C: it might have been a friend.
            self._say(self._unanswered())
            return
        if any(one in allow for one in self._waiting):
            return
        score = sum(one.weight for one, _ in self._hits)
        if manner.inform:
            if not self._waiting:
                self._say(self._note())
            return
        if manner.closed:
            score += sum(one.weight for one in self._silent if one not in allow)
        if score >= manner.threshold:
            self._say(self._refusal())
        elif score + sum(one.weight for one in self._waiting) < manner.threshold:
            self._say(self._unanswered())

    def _refusal(self) -> Verdict:
        code = 451 if self._silent else self._manner.code
        text = self._hits[0][1] if self._hits else _TROUBLE
        named = [one.name for one, _ in self._hits] or [one.name for one in self._silent]
        return Verdict(reply=Reply(code, _STATUS[code], text), reason=_REASON, info=",".join(named))

    def _note(self) -> Verdict | None:
        if not self._hits:
            return self._unanswered()
        fields = b"".join(_field(text) for _, text in self._hits)
        return Verdict(fields=fields, reason=_INFORMED, info=",".join(one.name for one, _ in self._hits))

    def _unanswered(self) -> Verdict | None:
        if not self._silent:
            return None
        return Verdict(reason=_UNANSWERED, info=",".join(one.name for one in self._silent))

    def _say(self, verdict: Verdict | None) -> None:
        self._end()
        self._verdict.callback(verdict)

    def _end(self, _: object = None) -> None:
        self._over = True
        if self._timer.active():
            self._timer.cancel()
        _cancel(list(self._waiting.values()))


def _cancel(asked: Sequence[Deferred[Any] | None]) -> None:
    for one in asked:
        if one is not None:
            one.cancel()


async def _look_up(resolver: Any, one: DNSList, question: str, ip: str) -> str | None:
    """What to tell the client, if the list has it; fails with NoAnswer or DNSTrouble."""
    name = question + one.base
    texts: Sequence[bytes] = ()
    if not one.by_address:
        try:
            texts = await resolver.txt(name)
        except (NoSuchDomain, NoData):
            return None
    # A text alone may be the list's complaint about us: the address tells.
    try:
        listed = one.hit(await resolver.a(name))
    except (NoSuchDomain, NoData):
        listed = bool(texts)
    return one.worded(ip, texts[0] if texts else b"") if listed else None


@implementer(ICheckerFactory)
class Factory:
    """Makes DNSBL."""

    name = "dnsbl"
    help = "refuses clients on DNS lists (rblsmtpd): lists = zen.example bl.example*2"
    options: Mapping[str, str] = {
        "lists": "the lists: bl.example, bl.example*2 (weight), bl.example=127.0.0.2-11 (answers), "
        '"bl.example:text with %IP%"; of blanks and lines between them, any',
        "allow": "lists of good clients, written alike: on one of them the others do not matter",
        "type": "txt: lists without a text are asked for theirs, or a: for an address",
        "threshold": "so much must the hits weigh together (1)",
        "reply": "451: listed clients are to try again, or 553: they are refused",
        "fail": "open: a list that gives no answer says nothing, or closed: it counts as a hit, with 451",
        "time": "for all answers together (10s)",
        "inform": "no, or yes: listed clients are not refused; their mail gets fields X-RBL-Info",
        "relay": "no, or yes: lists are asked for relay clients too",
        "private": "no, or yes: lists are asked for private and loopback addresses too",
    }

    def make(self, context: Any, options: Mapping[str, str]) -> DNSBL:
        """Options as above."""
        said.known(self.name, options, self.options)
        by_address = said.choice(self.name, options, "type", ("txt", "a")) == "a"
        lists = _lists("lists", options, by_address=by_address)
        manner = Manner(
            allow=_lists("allow", options, by_address=True),
            threshold=said.count(self.name, options, "threshold", 1, 1),
            code=int(said.choice(self.name, options, "reply", ("451", "553"))),
            closed=said.choice(self.name, options, "fail", ("open", "closed")) == "closed",
            time=said.seconds(self.name, options, "time", 10),
            inform=_yes(options, "inform"),
            relay=_yes(options, "relay"),
            private=_yes(options, "private"),
        )
        zones = [one.base for one in (*lists, *manner.allow)]
        if twice := sorted({zone for zone in zones if zones.count(zone) > 1}):
            raise ValueError(f"dnsbl names {', '.join(twice)} more than once; give it a weight, such as {twice[0]}*2")
        together = sum(one.weight for one in lists)
        if lists and manner.threshold > together:
            raise ValueError(
                f"dnsbl: threshold = {manner.threshold} is never reached; all lists together weigh {together}"
            )
        return DNSBL(context.resolver, context.clock, lists, manner)


def _lists(word: str, options: Mapping[str, str], *, by_address: bool) -> tuple[DNSList, ...]:
    try:
        return blocklists.lists(options.get(word, ""), by_address=by_address)
    except ValueError as wrong:
        raise ValueError(f"dnsbl: {word}: {wrong}") from wrong


def _yes(options: Mapping[str, str], word: str) -> bool:
    return said.choice("dnsbl", options, word, ("no", "yes")) == "yes"
