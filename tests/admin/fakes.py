"""Queues that live in a dictionary, and who listens to a Desk."""

from dataclasses import dataclass

from twisted.internet.defer import Deferred, fail, succeed

from qmq.interfaces import SpoolTrouble
from qmq.mail import HELD, QUEUE, Entry, Envelope, MemoryBody, Message, Reply, Token, address
from qmq.spool.query import parse

NOW = 1_700_000_000.0


@dataclass
class Acted:
    """What a queue says at last."""

    done: int
    later: int


def entry(
    number,
    recipient="u@alpha.example",
    sender="s@source.example",
    site=b"mx:alpha.example",
    age=100.0,
    size=2000,
    **more,
):
    """An entry that waits; *reply* is the latest answer."""
    recipients = tuple(address(one.encode()) for one in recipient.split())
    envelope = Envelope(Token(b"abcdef", number), address(sender.encode()), recipients)
    text = b"Subject: no. %d\r\nX: y\r\n\r\n" % number
    made = Entry(
        number, Message(envelope, b"Received: by us\r\n", MemoryBody(text.ljust(size - 17, b"."))), site, NOW - age
    )
    made.due = more.pop("due", NOW + 60)
    reply = more.pop("reply", None)
    if reply is not None:
        made.last = {recipients[0]: reply}
    for name, value in more.items():
        setattr(made, name, value)
    return made


LATER = Reply(451, "4.7.1", "greylisted, come back", "mail.alpha.example (192.0.2.1)")


class FakeSpool:
    """As ISpool, for who looks in; *trouble* is what it fails with, *hangs*: it never answers."""

    def __init__(self, entries):
        self.entries = {one.number: one for one in entries}
        self.asked = []
        self.trouble = None
        self.hanging = []
        self.hangs = False

    @property
    def birth(self):
        return min((one.born for one in self.entries.values()), default=float("inf"))

    def matching(self, query, after=0):
        wanted = parse(query, NOW)
        return [one for number, one in sorted(self.entries.items()) if number > after and wanted.matches(one)]

    def find(self, query, after, limit):
        self.asked.append((dict(query), after, limit))
        if self.hangs:
            self.hanging.append(Deferred())
            return self.hanging[-1]
        if self.trouble:
            return fail(SpoolTrouble(self.trouble))
        try:
            return succeed(self.matching(query, after)[:limit])
        except ValueError as error:
            return fail(error)

    def survey(self, query, after):
        if self.trouble:
            return fail(SpoolTrouble(self.trouble))
        piece = self.matching(query, after)[:2]
        end = piece[-1].number if len(piece) == 2 else None
        return succeed((len(piece), sum(one.message.size for one in piece), end))

    def peek(self, number):
        return succeed(self.entries.get(number))


class FakeQueue:
    """Does what it is told, at once; what is in hand is done later."""

    def __init__(self, *entries):
        self.spool = FakeSpool(entries)
        self.said = []
        self.paused = self.refusing = False

    def status(self):
        return {
            "queued": len(self.spool.entries), "octets": sum(one.message.size for one in self.spool.entries.values()),
            "in_hand": 0, "delivered": 3, "deferred": 1, "bounced": 0, "p50": 0.004, "p99": 1.5,
            "paused": self.paused, "refusing": self.refusing,
        }  # fmt: skip

    def pause(self):
        self.paused = True

    def resume(self):
        self.paused = False

    def refuse(self):
        self.refusing = True

    def accept(self):
        self.refusing = False

    def act(self, order, query, told, to="", reason=""):
        self.said.append((order, dict(query), to, reason))
        if self.spool.trouble:
            return fail(SpoolTrouble(self.spool.trouble))
        done = later = 0
        for one in self.spool.matching(query):
            if one.due is None:
                later += 1
                continue
            done += 1
            if order in {"delete", "bounce"}:
                del self.spool.entries[one.number]
            elif order == "move":
                one.site, one.due = QUEUE + to.encode(), NOW
            elif order == "now":
                one.due = NOW
            else:
                one.due = HELD if order == "hold" else NOW
            told(done)
        return succeed(Acted(done, later))


class Told(list):
    """Whoever asked: keeps what is said."""

    def __call__(self, fact):
        self.append(fact)

    async def room(self):
        pass
