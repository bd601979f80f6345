"""
For whoever tests a checker: a client in memory, a fake DNS, a fake clock.

What a test sees is the real thing: Client speaks to qmq's own wire, dialogue and
policy; only the network, the clock and the next hop are pretended. Nothing
sleeps: time goes when somebody waits.

    client = Client(NoNoReply())
    assert client.mail("noreply@shop.example", "bob@ours.example").reply.startswith("553")
"""

from __future__ import annotations

from collections.abc import Awaitable, Collection, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from qmq.dns.query import DNSTrouble, NoData, NoSuchDomain
from qmq.dns.resolver import Exchange
from qmq.interfaces import INextHop, IRecipientChecker
from qmq.mail import Address, Envelope, Message, Reply, Seconds, Token, address, path, value
from qmq.receive import catalogue
from qmq.receive.check import Terms
from qmq.receive.context import Context
from qmq.receive.draft import Drafts
from qmq.receive.guard import Guard
from qmq.receive.policy import Policy
from qmq.receive.reception import Limits, Reception
from qmq.receive.smtp import SMTPFactory
from qmq.session import VOUCH, Environment, Session, Transaction, Verdict

OURS = "ours.example"
_ADDRESS = "192.0.2.1"  # RFC 5737: nobody's
_SERVER = "192.0.2.25"
_WALL: Seconds = 1700000000
_MEMORY = 1 << 30


class FakeClock(Clock):
    """Time stands still until `advance(seconds)`; IReactorTime."""


class FakeDNS:
    """
    Answers as qmq.dns.resolver.Resolver does, from what it is given.

    *records* are by name (of PTR: by IP address), then by kind: "a", "aaaa",
    "mx" ("host" or "10 host"), "txt", "ptr". A name that is not there does not
    exist (NoSuchDomain), a kind that is not there has no records (NoData). Names
    in *trouble* fail with DNSTrouble; those in *silent* never answer. *asked* is
    what was asked, in order: ("mx", "x.example").
    """

    def __init__(
        self,
        records: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
        *,
        trouble: Collection[str] = (),
        silent: Collection[str] = (),
    ) -> None:
        self.records = dict(records or {})
        self.trouble = set(trouble)
        self.silent = set(silent)
        self.asked: list[tuple[str, str]] = []

    def mx(self, domain: str | bytes) -> Deferred[Sequence[Exchange]]:
        """The most preferred first."""
        return self._answer("mx", domain).addCallback(lambda found: sorted(map(_exchange, found), key=_preference))

    def a(self, host: str | bytes) -> Deferred[Sequence[str]]:
        """IPv4 addresses."""
        return self._answer("a", host)

    def aaaa(self, host: str | bytes) -> Deferred[Sequence[str]]:
        """IPv6 addresses."""
        return self._answer("aaaa", host)

    def txt(self, name: str | bytes) -> Deferred[Sequence[bytes]]:
        """Texts."""
        return self._answer("txt", name).addCallback(lambda found: [text.encode() for text in found])

    def ptr(self, ip: str) -> Deferred[Sequence[str]]:
        """The names of an address."""
        return self._answer("ptr", ip)

    def addresses(self, host: str | bytes) -> Deferred[Sequence[str]]:
        """IPv4 and then IPv6 addresses."""
        return self._answer("a aaaa", host)

    def _answer(self, kinds: str, name: str | bytes) -> Deferred[Any]:
        text = (name.decode() if isinstance(name, bytes) else name).lower().removesuffix(".")
        self.asked.append((kinds, text))
        if text in self.silent:
            return Deferred()
        if text in self.trouble:
            return fail(DNSTrouble(f"{text}: no answer"))
        if text not in self.records:
            return fail(NoSuchDomain(text))
        found = [record for kind in kinds.split() for record in self.records[text].get(kind, ())]
        return succeed(found) if found else fail(NoData(text))


def _exchange(text: str) -> Exchange:
    preference, blank, host = text.partition(" ")
    return Exchange(int(preference), host) if blank else Exchange(10, text)


def _preference(exchange: Exchange) -> int:
    return exchange.preference


def session(client: str = _ADDRESS, **also: Any) -> Session:
    """A client's Session; *also* are its other fields, and those of its Environment."""
    fields = set(Session.__dataclass_fields__)
    of_session = {name: what for name, what in also.items() if name in fields}
    settings = {name: what for name, what in also.items() if name not in fields}
    begun = Session(client, 40000, _SERVER, 25, helo=b"client.example", esmtp=True)
    return replace(begun, **{"environment": Environment(**settings), **of_session})


def transaction(sender: str = "a@client.example", *recipients: str, **also: Any) -> Transaction:
    """A Transaction from *sender*, of the null sender if that is empty; *recipients* are those taken so far."""
    so_far = tuple(address(recipient.encode()) for recipient in recipients)
    return Transaction(b"test-1", address(sender.encode()), recipients=so_far, **also)


def context(
    dns: FakeDNS | None = None, clock: Clock | None = None, ours: Collection[str] = (OURS,), **also: Any
) -> Context:
    """What a factory may use: *ours* are the domains that there are routes for; *also* are Context's other fields."""
    ours_ = {domain.encode() for domain in ours}
    fields = {"databytes": 0, "resolver": dns or FakeDNS(), **also}
    return Context(knows=ours_.__contains__, clock=clock or FakeClock(), **fields)


def make(factory: Any, options: Mapping[str, str] | None = None, of: Context | None = None) -> Any:
    """The checker that conf-qmq would get with these *options*; raises the ValueError that the operator would read."""
    return catalogue.make(factory.name, of or context(), options or {}, {factory.name: factory})


def answer_of(answer: Any, clock: Clock | None = None, seconds: Seconds = 300) -> Any:
    """What an answer comes to, Verdict or None; while it is awaited time goes on *clock*. Raises what it raises."""
    if isinstance(answer, Awaitable) and not isinstance(answer, Deferred):
        answer = Deferred.fromCoroutine(_awaited(answer))
    if not isinstance(answer, Deferred):
        return answer
    got: list[Any] = []
    answer.addBoth(got.append)
    for _ in range(int(seconds)):
        if got or clock is None:
            break
        clock.advance(1)
    if not got:
        raise AssertionError("no answer yet")
    if isinstance(got[0], Failure):
        got[0].raiseException()
    return got[0]


async def _awaited(answer: Awaitable[Any]) -> Any:
    return await answer


@value
class Told:
    """What a client was told about one message; "" where it did not come so far."""

    mail: str
    rcpt: tuple[str, ...]
    data: str
    end: str
    seconds: Seconds  # that it was kept waiting, on the fake clock

    @property
    def reply(self) -> str:
        """The one that counts: that to the text, else the last refusal."""
        if self.end:
            return self.end
        refusals = [reply for reply in (self.mail, *self.rcpt, self.data) if reply[:1] in {"4", "5"}]
        return refusals[-1] if refusals else ""

    @property
    def taken(self) -> bool:
        """Whether we are responsible for it now."""
        return self.end.startswith("250")


@value
class Sent:
    """A message that was handed over: its envelope, and all of its text, our fields in front."""

    envelope: Envelope
    text: bytes


class Client:
    """
    One client's connection to a listener that asks these checkers.

    Each is a checker, or (name, checker); behind them one vouches for
    recipients in *ours*. *settings* are as for session(): relay, helocheck,
    variables... *hello* is what it says first, "" for nothing. *guarded*: what
    loops or sleeps is interrupted, as in a running gateway; that takes the
    process's SIGALRM until `leave()`.

    *banner*, *hello* and what `say` and `mail` give is what was told; *sent* what was
    handed over, *log* the reasons in the order of the log, *tallies()* what the
    checkers did. A checker's exception is in Twisted's log: under trial take it
    with flushLoggedErrors.
    """

    def __init__(
        self,
        *checkers: Any,
        client: str = _ADDRESS,
        ours: Collection[str] = (OURS,),
        clock: Clock | None = None,
        limits: Limits = Limits(),  # noqa: B008 - a value
        terms: Mapping[str, Terms] | None = None,
        hello: str = "EHLO client.example",
        guarded: bool = False,
        **settings: Any,
    ) -> None:
        self.clock = clock or FakeClock()
        self.sent: list[Sent] = []
        self.log: list[str] = []
        self._guard = Guard(on=guarded)
        named = [c if isinstance(c, tuple) else (f"{type(c).__name__.lower()}", c) for c in checkers]
        policy = Policy([*named, ("ours", _Ours(ours))], self.clock, terms=terms, guard=self._guard)
        self.tallies = policy.tallies
        numbers = count(1)
        reception = Reception(
            me=b"mx.ours.example",
            policy=policy,
            hop=_Hop(self.sent),
            drafts=Drafts("", inline=_MEMORY),
            next_token=lambda: Token(b"test", next(numbers)),
            log=_Log(self.log),
            clock=self.clock,
            wall=lambda: _WALL + self.clock.seconds(),
            limits=limits,
        )

        def who(client: str, port: int, server: str, server_port: int) -> Session:
            known = replace(session(client, **settings), helo=b"", esmtp=False)
            return replace(known, port=port, server=server, server_port=server_port)

        kind = IPv6Address if ":" in client else IPv4Address
        self._transport = StringTransport(kind("TCP", _SERVER, 25), kind("TCP", client, 40000))
        self._conversation: Any = SMTPFactory(reception, who=who).buildProtocol(self._transport.getPeer())
        self._conversation.makeConnection(self._transport)
        self.banner = self._wait()
        self.hello = self.ask(hello) if hello and not self.closed else ""

    def say(self, *lines: str) -> list[str]:
        """Say these in one packet; the replies that come at once, each with all its lines."""
        self._conversation.dataReceived(b"".join(line.encode() + b"\r\n" for line in lines))
        return self.heard()

    def heard(self) -> list[str]:
        """The replies since."""
        lines = self._transport.value().decode().split("\r\n")[:-1]
        self._transport.clear()
        replies, so_far = [], []
        for line in lines:
            so_far.append(line)
            if line[3:4] != "-":
                replies.append("\n".join(so_far))
                so_far = []
        return replies

    def ask(self, line: str, seconds: Seconds = 300) -> str:
        """Say one line; its reply, for which time goes on, up to so many seconds; "" if none came."""
        replies = self.say(line)
        return replies[0] if replies else self._wait(seconds)

    def _wait(self, seconds: Seconds = 300) -> str:
        end = self.clock.seconds() + seconds
        while not (replies := self.heard()) and self.clock.seconds() < end and not self.closed:
            self.clock.advance(0.5)
        return replies[0] if replies else ""

    def mail(self, sender: str, *recipients: str, text: str = "Subject: hello\r\n\r\nHello.\r\n") -> Told:
        """Send a message as far as we let it; RSET after it if it was not taken."""
        began = self.clock.seconds()
        mail = self.ask(f"MAIL FROM:<{_path(sender)}>")
        rcpt = tuple(self.ask(f"RCPT TO:<{_path(each)}>") for each in recipients) if mail.startswith("250") else ()
        data = self.ask("DATA") if any(reply.startswith("250") for reply in rcpt) else ""
        end = ""
        if data.startswith("354"):
            lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
            end = self.ask("\r\n".join("." + line if line[:1] == "." else line for line in lines) + "\r\n.")
        if not end.startswith("250"):
            self.ask("RSET")
        return Told(mail, rcpt, data, end, self.clock.seconds() - began)

    @property
    def closed(self) -> bool:
        """Whether we have hung up."""
        return self._transport.disconnecting

    def leave(self) -> None:
        """Hang up."""
        self._guard.stop()
        self._conversation.connectionLost(Failure(ConnectionDone()))


def _path(text: str) -> str:
    return path(address(text.encode())).decode()


@implementer(IRecipientChecker)
class _Ours:
    """Vouches for our domains."""

    def __init__(self, domains: Collection[str]) -> None:
        self._domains = {domain.encode() for domain in domains}

    def recipient(self, session: Session, transaction: Transaction, recipient: Address) -> Verdict | None:
        """A relay client may send to any."""
        return VOUCH if session.relay or recipient.domain in self._domains else None


@implementer(INextHop)
class _Hop:
    """Takes everything."""

    def __init__(self, sent: list[Sent]) -> None:
        self._sent = sent

    def send(self, message: Message) -> Deferred[Sequence[Reply]]:
        """As INextHop says."""
        self._sent.append(Sent(message.envelope, b"".join(message.chunks())))
        return succeed([Reply(250, "2.0.0", "taken")] * len(message.envelope.recipients))


class _Log:
    """Keeps the reasons."""

    def __init__(self, reasons: list[str]) -> None:
        self._reasons = reasons

    def accepted(self, *_: object) -> None:
        """Not a checker's doing."""

    def passed(self, _: Session, __: Transaction, ___: Address, reason: str, info: str = "") -> None:
        """With its reason."""
        self._reasons.append(reason)

    def refused(
        self, _: Session, __: Transaction | None, ___: Address | None, reply: Reply, reason: str, info: str = ""
    ) -> None:
        """With its reason."""
        self._reasons.append(reason)

    def noted(self, _: Session, __: Transaction | None, ___: Address | None, reason: str, info: str = "") -> None:
        """With its reason."""
        self._reasons.append(reason)
