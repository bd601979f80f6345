"""
Asking the host behind us whether a mailbox exists, before a client's mail for it is taken.

So that the gateway has nothing to bounce. What a host said is remembered for a
while; who asks for an address that is being asked for already waits for the
same answer. To each site there is a bounded number of connections; a site that
could not be reached is left alone for some seconds, and nobody waits for it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from qmq.deliver.callout_line import Line, NoAnswer, open_line
from qmq.deliver.dial import Hop, parse_site
from qmq.deliver.mx import Candidate
from qmq.mail import Address, DeliveryFailure, Seconds

_log = Logger()

_TRIES = 4  # hosts of a site, for one connection
_QUESTIONS = 100  # on one connection: some hosts close after so many RCPTs
_REST: Seconds = 10  # that a site which could not be reached is left alone


class Callouts:
    """
    Questions and their answers.

    *mx* as qmq.deliver.dial.Dialler wants it. An answer is due within *seconds*,
    the wait for a connection included; at most *connections* are open to a site,
    and *waiting* questions wait there. That a mailbox exists is remembered for
    *exists* seconds, that it does not for *unknown*; half of *entries* each, so
    that a flood of invented names drives no real one out.
    """

    def __init__(
        self, reactor: Any, mx: Any, helo: bytes, *, connections: int = 5, waiting: int = 100, seconds: Seconds = 10,
        exists: Seconds = 3600, unknown: Seconds = 600, entries: int = 50_000,
    ) -> None:  # fmt: skip
        self._reactor = reactor
        self.mx = mx
        self.helo = helo
        self.connections = connections
        self.waiting = waiting
        self.seconds = seconds
        self._exists = _Memory(exists, entries // 2)
        self._unknown = _Memory(unknown, entries // 2)
        self._sites: dict[bytes, _Site] = {}
        self._asked: dict[bytes, _Question] = {}

    def ask(self, site: bytes, recipient: Address) -> bool | Deferred[bool]:
        """Whether *site* has this mailbox, at once if it is known; else it may fail with NoAnswer."""
        key = b"%b\0%b" % (site, bytes(recipient))
        now = self._reactor.seconds()
        if self._exists.has(key, now):
            return True
        if self._unknown.has(key, now):
            return False
        question = self._asked.get(key)
        if question is None:
            place = self._sites.get(site)
            if place is None:
                place = self._sites[site] = _Site(self, self._reactor, site)
            question = _Question(recipient, lambda answer: self._answered(key, answer))
            self._asked[key] = question
            question.timer = self._reactor.callLater(
                self.seconds,
                question.fail,
                f"{site.decode('utf-8', 'replace')} does not answer within {self.seconds:g} s",
            )
            result = question.wait()
            place.add(question)
            return result
        return question.wait()

    def _answered(self, key: bytes, answer: bool | None) -> None:
        self._asked.pop(key, None)
        if answer is not None:
            (self._exists if answer else self._unknown).keep(key, self._reactor.seconds())

    def idle(self, site: bytes) -> None:
        """A site has nothing to do; it need not be kept."""
        self._sites.pop(site, None)


class _Memory:
    """Keys, each for so many seconds; the one that was not asked for the longest gives way."""

    def __init__(self, seconds: Seconds, entries: int) -> None:
        self._seconds = seconds
        self._most = entries
        self._until: OrderedDict[bytes, Seconds] = OrderedDict()

    def has(self, key: bytes, now: Seconds) -> bool:
        until = self._until.get(key)
        if until is None:
            return False
        if until <= now:
            del self._until[key]
            return False
        self._until.move_to_end(key)
        return True

    def keep(self, key: bytes, now: Seconds) -> None:
        self._until[key] = now + self._seconds
        self._until.move_to_end(key)
        while len(self._until) > self._most:
            self._until.popitem(last=False)


class _Question:
    """One address, and all who wait for the answer."""

    def __init__(self, recipient: Address, answered: Callable[[bool | None], None]) -> None:
        self.recipient = recipient
        self.timer: Any = None
        self.line: Line | None = None  # on which it is being asked
        self.done = False
        self._answered = answered
        self._waiting: list[Deferred[bool]] = []

    def wait(self) -> Deferred[bool]:
        """Whoever is the last to cancel takes the question back."""
        waiting: Deferred[bool] = Deferred(self._cancelled)
        self._waiting.append(waiting)
        return waiting

    def _cancelled(self, waiting: Deferred[bool]) -> None:
        if waiting in self._waiting:
            self._waiting.remove(waiting)
            if not self._waiting:
                self.fail("nobody waits for the answer any more")

    def answer(self, answer: bool) -> None:
        """It is known."""
        if not self.done:
            for waiting in self._finish(answer):
                waiting.callback(answer)

    def fail(self, why: str) -> None:
        """It can't be known for now."""
        if not self.done:
            everybody = self._finish(None)
            if self.line is not None:
                self.line.end(why)
            for waiting in everybody:
                waiting.errback(NoAnswer(why))

    def _finish(self, answer: bool | None) -> Iterator[Deferred[bool]]:
        """Those who wait still, each when its turn comes."""
        self.done = True
        if self.timer is not None and self.timer.active():
            self.timer.cancel()
        self._answered(answer)
        everybody, self._waiting = self._waiting, []
        return (waiting for waiting in everybody if not waiting.called)


class _Site:
    """Where mailboxes are, what is to be asked there, and on how many connections it is asked."""

    def __init__(self, house: Callouts, reactor: Any, name: bytes) -> None:
        self._house = house
        self._reactor = reactor
        self._name = name
        self._text = name.decode("utf-8", "replace")
        self._waiting: deque[_Question] = deque()
        self._busy = 0  # connections open or opening
        self._rests: Any = None  # a timer: it could not be reached
        self._why = ""

    def add(self, question: _Question) -> None:
        """One more; it may fail at once."""
        if self._rests is not None:
            question.fail(self._why)
            return
        while self._waiting and self._waiting[0].done:
            self._waiting.popleft()
        if len(self._waiting) >= self._house.waiting:
            question.fail(f"too many questions to {self._text} wait")
            return
        self._waiting.append(question)
        self._start()

    def _start(self) -> None:
        if self._waiting and self._busy < self._house.connections:
            self._busy += 1
            Deferred.fromCoroutine(self._work()).addErrback(self._broken)

    def _next(self) -> _Question | None:
        while self._waiting:
            question = self._waiting.popleft()
            if not question.done:
                return question
        return None

    async def _work(self) -> None:
        """One connection, for as long as there are questions."""
        try:
            line = await self._open()
        except NoAnswer as trouble:
            self._busy -= 1
            if not self._busy:  # else it may be that it wants no more connections than it has
                self._rest(str(trouble))
            return
        left = _QUESTIONS
        try:
            while left and (question := self._next()) is not None:
                left -= 1
                await self._ask(line, question)
        except NoAnswer:
            pass  # the question was told; the line may be of no use any more
        line.quit()
        self._busy -= 1
        self._start()
        if not self._busy:
            self._house.idle(self._name)

    async def _ask(self, line: Line, question: _Question) -> None:
        question.line = line
        try:
            question.answer(await line.ask(question.recipient))
        except NoAnswer as trouble:
            question.line = None
            question.fail(str(trouble))
            raise
        finally:
            question.line = None

    async def _open(self) -> Line:
        """A line to the first host of the first hop that greets; raises NoAnswer."""
        until = self._reactor.seconds() + self._house.seconds
        why = f"{self._text} cannot be asked for mailboxes"
        left = _TRIES
        try:
            hops = parse_site(self._name)
        except ValueError as error:
            raise NoAnswer(str(error)) from None
        for number, hop in enumerate(hops):
            if hop.way == "qmtp":
                continue  # it has no such question
            try:
                candidates = (await self._candidates(hop))[:left]
            except DeliveryFailure as failure:
                why = failure.reply.text
                continue
            left -= len(candidates)
            for place, candidate in enumerate(candidates):
                behind = len(candidates) - place - 1 + min(left, len(hops) - number - 1)
                share = max(1, (until - self._reactor.seconds()) / (behind + 1))
                try:
                    return await open_line(self._reactor, candidate, self._house.helo, share, lmtp=hop.way == "lmtp")
                except NoAnswer as trouble:
                    why = str(trouble)
        raise NoAnswer(why)

    async def _candidates(self, hop: Hop) -> list[Candidate]:
        if hop.way == "mx":
            domain = hop.host
            if hop.literal:
                domain = f"[IPv6:{domain}]" if ":" in domain else f"[{domain}]"
            return list(await self._house.mx.candidates(domain, hop.port))
        if hop.port == 0 or hop.literal:
            return [Candidate(hop.host, hop.host, hop.port, 0)]
        return list(await self._house.mx.addresses(hop.host, hop.port))

    def _rest(self, why: str) -> None:
        """It could not be reached: whoever waits need not any more, nor who comes soon."""
        if self._rests is None:
            _log.warn("mailboxes of {site} can't be asked for: {why}", site=self._text, why=why)
            self._rests = self._reactor.callLater(_REST, self._rested)
        self._why = why
        while (question := self._next()) is not None:
            question.fail(why)

    def _rested(self) -> None:
        self._rests = None
        if not self._busy:
            self._house.idle(self._name)

    def _broken(self, failure: Failure) -> None:
        """Of our own making."""
        _log.failure("asking {site}", failure, site=self._text)
        self._busy -= 1
        self._rest("trouble here")
