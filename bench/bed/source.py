"""
The load: messages by the clock, whatever the replies do, or as fast as they are taken.

`python -m bed.source PLAN` (a JSON object, see Plan) opens its sessions, says
"ready", waits for a line that says when to begin (CLOCK_MONOTONIC), and writes
what became of each message to the plan's file. Each instance has sessions of its
own, as many as it needs: one that answers slowly holds up only its own mail.
"""

import asyncio
import gc
import json
import socket
import sys
import time
from collections import deque
from dataclasses import dataclass, field


@dataclass
class Plan:
    """
    *seconds* of load: at a *rate*, by the clock; without one, a session sends its next message when it has its answer.

    *first* is the number of the first message; message n is for instance n modulo *instances*. What instance
    *faulty* gets comes from an address of its own, so that a client's setting can be about it alone.
    """

    port: int
    file: str
    seconds: float
    rate: float = 0.0  # messages a second of all; 0: closed loop
    first: int = 0
    instances: int = 50
    faulty: int = 24
    octets: int = 4096
    sessions: int = 2  # of each instance, to begin with
    most: int = 2000  # of each instance
    renew: int = 100  # messages after which a session is another one
    grace: float = 60.0  # for the last answers
    begun: float = field(default=0.0, init=False)


class Session(asyncio.Protocol):
    """One client: idle, or with one message under way."""

    def __init__(self, source, instance):
        self.source, self.instance = source, instance
        self.buffer = b""
        self.job = None
        self.want = 0  # replies
        self.state = "banner"
        self.sent = 0
        self.refused = ""

    def connection_made(self, transport):
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.source.open += 1

    def mail(self, job):
        """Begin; the text follows when the recipient is taken."""
        self.job, self.refused = job, ""
        self.sent += 1
        self.state, self.want = "envelope", 3
        job[3] = time.monotonic()
        self.transport.write(b"MAIL FROM:<a@source.test>\r\nRCPT TO:<b@d%d.test>\r\nDATA\r\n" % (self.instance + 1))

    def data_received(self, data):
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        for line in lines:
            if line[3:4] != b"-":
                self.reply(line[:3].decode("ascii", "replace"))

    def reply(self, code):
        if code == "421":
            self.refused = code
            self.transport.close()
        elif self.state == "banner":
            if code != "220":
                self.refused = code
                self.transport.close()
                return
            self.state = "ehlo"
            self.transport.write(b"EHLO client.test\r\n")
        elif self.state in {"ehlo", "reset"}:
            self.idle()
        elif self.state == "envelope":
            self.want -= 1
            if code[:1] in {"4", "5"} and not self.refused:
                self.refused = code
            if not self.want:
                if code == "354":
                    self.state = "text"
                    self.transport.write(self.source.text % self.job[0])
                else:
                    self.state = "reset"
                    self.done(self.refused)
                    self.transport.write(b"RSET\r\n")
        elif self.state == "text":
            self.done(code)
            self.idle()

    def done(self, code):
        job, self.job = self.job, None
        if job is not None:
            job[4], job[5] = time.monotonic(), code
            self.source.over(job)

    def idle(self):
        self.state = "idle"
        if self.sent >= self.source.plan.renew:
            self.transport.write(b"QUIT\r\n")
            self.transport.close()
        else:
            self.source.free(self)

    def connection_lost(self, _):
        self.source.open -= 1
        if self.state in {"banner", "ehlo"}:
            self.source.unopened(self.instance, self.refused or "closed")
        self.done(self.refused or "closed")
        self.source.lost(self)
        self.state = "gone"


def text(octets):
    """A message of about that size, with room for its number."""
    line = b"The quick brown fox jumps over the lazy dog, and again, and again.\r\n"
    return b"From: a@source.test\r\nSubject: bed\r\nX-Bed: %d\r\n\r\n" + line * (octets // len(line)) + b".\r\n"


class Source:
    """
    All sessions. A message is a list: number, instance, when it was due, sent, answered, the code.

    A code that is no number says why there is none: none (no answer by the end),
    closed (connection lost), unsent (no session to be had).
    """

    def __init__(self, plan):
        self.plan = plan
        self.jobs = []
        self.left = 0  # not answered yet
        self.open = 0
        self.most_open = 0
        self.pools = [[] for _ in range(plan.instances)]
        self.line = [deque() for _ in range(plan.instances)]
        self.opening = [0] * plan.instances
        self.having = [0] * plan.instances
        self.calls = set()
        self.text = text(plan.octets)
        self.ending = False

    def dial(self, instance):
        """One session more."""
        self.opening[instance] += 1
        self.having[instance] += 1
        call = asyncio.get_running_loop().create_task(self.connect(instance))
        self.calls.add(call)
        call.add_done_callback(self.calls.discard)

    async def connect(self, instance):
        address = "127.0.0.2" if instance == self.plan.faulty else "127.0.0.1"
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: Session(self, instance), "127.0.0.1", self.plan.port, local_addr=(address, 0)
            )
        except OSError:
            self.having[instance] -= 1
            self.unopened(instance, "refused")

    def due(self, job):
        """A message's time has come."""
        instance = job[1]
        self.jobs.append(job)
        self.left += 1
        if pool := self.pools[instance]:
            pool.pop().mail(job)
            return
        self.line[instance].append(job)
        if self.opening[instance] < len(self.line[instance]):
            if self.having[instance] < self.plan.most:
                self.dial(instance)
            else:
                self.line[instance].pop()
                job[4], job[5] = time.monotonic(), "unsent"
                self.over(job)

    def free(self, session):
        """A session is idle."""
        instance = session.instance
        if session.sent == 0 and session.state == "idle":
            self.opening[instance] = max(0, self.opening[instance] - 1)
        if self.line[instance]:
            session.mail(self.line[instance].popleft())
        else:
            self.pools[instance].append(session)
            self.most_open = max(self.most_open, self.open)

    def unopened(self, instance, why):
        """No session came of it: the message that it was opened for has its answer."""
        self.opening[instance] = max(0, self.opening[instance] - 1)
        if self.line[instance]:
            job = self.line[instance].popleft()
            job[4], job[5] = time.monotonic(), why
            self.over(job)

    def lost(self, session):
        """A session has ended."""
        self.having[session.instance] -= 1
        pool = self.pools[session.instance]
        if session in pool:
            pool.remove(session)

    def over(self, job):
        """A message has its answer; without a rate the next follows."""
        self.left -= 1
        if not self.plan.rate and not self.ending:
            plan = self.plan
            if time.monotonic() < plan.begun + plan.seconds:
                number = job[0] + plan.instances * plan.sessions
                asyncio.get_running_loop().call_soon(self.due, [number, job[1], time.monotonic(), 0, 0, "none"])

    async def run(self, begin):
        """All of the plan."""
        plan = self.plan
        plan.begun = begin
        await asyncio.sleep(max(0, begin - time.monotonic()))
        if plan.rate:
            await self.by_the_clock()
        else:
            for n in range(plan.instances * plan.sessions):
                self.due([plan.first + n, n % plan.instances, time.monotonic(), 0, 0, "none"])
            await asyncio.sleep(plan.seconds)
        end = time.monotonic() + plan.grace
        while self.left and time.monotonic() < end:
            await asyncio.sleep(0.05)
        self.ending = True

    async def by_the_clock(self):
        plan = self.plan
        total = int(plan.rate * plan.seconds)
        n = 0
        while n < total:
            now = time.monotonic()
            while n < total and (due := plan.begun + n / plan.rate) <= now:
                number = plan.first + n
                self.due([number, number % plan.instances, due, 0, 0, "none"])
                n += 1
            await asyncio.sleep(max(0.0005, plan.begun + n / plan.rate - time.monotonic()))


async def load(plan):
    """Open, say so, begin when told, write."""
    source = Source(plan)
    for instance in range(plan.instances):
        for _ in range(plan.sessions):
            source.dial(instance)
    while any(source.opening):
        await asyncio.sleep(0.01)
    gc.freeze()
    gc.disable()
    print("ready", flush=True)
    begin = float(await asyncio.to_thread(sys.stdin.readline))
    await source.run(begin)
    with open(plan.file, "w", encoding="ascii") as file:
        json.dump({"jobs": source.jobs, "sessions": source.most_open}, file)


if __name__ == "__main__":
    asyncio.run(load(Plan(**json.loads(sys.argv[1]))))
