"""
The load: the source and sink of `load/`, as seen by whoever measures with them.

    with Sink(recipients=10_000, hosts=["127.0.0.1:0=ok", "127.0.1.1:0=tarpit"]) as sink:
        (start a relay that has the routes to sink.addresses)
        with Source("127.0.0.1:2525", messages=10_000, domains=mix({"ok.test": 1, "dead.test": 9})) as source:
            source.wait(60)
            sink.settle(source)
        print(figures(source, sink))

Recipient i of source.recipients a message is of message i // recipients and of
domain domains[i % len(domains)]. Times are CLOCK_MONOTONIC, as of time.monotonic().
"""

import contextlib
import hashlib
import math
import mmap
import os
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

BENCH = Path(__file__).resolve().parent.parent
PROGRAM = sorted((BENCH / "load").glob("*.[ch]"))

# As in load.h.
_PAGE = 4096
_HEAD = struct.Struct("<8Q2d")
_SENT = struct.Struct("<ddiHH")
_GOT = struct.Struct("<dII")


Say = Callable[[int], None]  # is told how far it has come
Chosen = Callable[[str], bool]  # a domain that counts


def _silent(_):
    pass


def _every(_):
    return True


class Unavailable(Exception):
    """Something that a measurement needs is not here; the text says what, and what to do."""


def cache():
    """The folder for what is built or fetched once: $XDG_CACHE_HOME/qmq-bench, or bench/.build."""
    named = os.environ.get("XDG_CACHE_HOME")
    folder = Path(named) / "qmq-bench" if named else BENCH / ".build"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def built(files, *words):
    """The program of some C files, compiled on first use and when they have changed; raises Unavailable."""
    text = b"".join(file.read_bytes() for file in files)
    program = cache() / f"{files[0].parent.name}-{hashlib.sha256(text + repr(words).encode()).hexdigest()[:12]}"
    if program.exists():
        return str(program)
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        raise Unavailable(
            f"{files[0].parent} must be compiled, and there is no C compiler: apt-get install gcc libc6-dev"
        )
    new = f"{program}.{os.getpid()}"
    sources = [str(file) for file in files if file.suffix == ".c"]
    done = subprocess.run(
        [compiler, "-O2", "-Wall", "-Wextra", "-o", new, *sources, *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Unavailable(f"{compiler} cannot compile {' '.join(sources)}:\n{done.stderr}")
    os.replace(new, program)
    return str(program)


def mix(weights):
    """
    Domains in turn, as often as their weights say and as evenly spread as can be: {"ok.test": 1, "dead.test": 9}.

    A weight may be shared by several: {"ok.test": 1, ("d1.test", "d2.test"): 9}.
    """
    groups = [
        ((domains,) if isinstance(domains, str) else tuple(domains), weight) for domains, weight in weights.items()
    ]
    # So many rounds that all domains of a group get the same.
    rounds = math.lcm(*(len(domains) // math.gcd(len(domains), weight) for domains, weight in groups))
    places = [
        ((n + 0.5) / (weight * rounds), order, domains[n % len(domains)])
        for order, (domains, weight) in enumerate(groups)
        for n in range(weight * rounds)
    ]
    return [domain for _, _, domain in sorted(places)]


class Head(NamedTuple):
    """What a source or sink has counted so far: load.h, struct head."""

    done: int
    accepted: int
    doubled: int
    failed: int
    connections: int
    open: int
    most: int
    octets: int
    first: float
    last: float


class Sent(NamedTuple):
    """A message at the source: due, its 250 (or 0), its last code, tries, and those of which nobody knows the end."""

    due: float
    said: float
    code: int
    tries: int
    unsure: int


class Got(NamedTuple):
    """A recipient at the sink: its first delivery (or 0), how many there were, at which host."""

    first: float
    times: int
    host: int


@dataclass(kw_only=True)
class _Process:
    seconds: float = 300.0  # it ends then, whatever it is at
    process: subprocess.Popen | None = field(default=None, init=False, repr=False)
    folder: str = field(default="", init=False, repr=False)
    _map: mmap.mmap | None = field(default=None, init=False, repr=False)

    def _begin(self, *words):
        """The record lies in memory: nothing of the load touches a disk."""
        program = built(PROGRAM)
        self.folder = tempfile.mkdtemp(prefix="qmq-load-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        self.process = subprocess.Popen(
            [program, *words[:1], "--record", self._record, "--seconds", str(max(1, round(self.seconds))), *words[1:]],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        return self

    @property
    def _record(self):
        return os.path.join(self.folder, "record")

    @property
    def pid(self):
        """Its process."""
        return self.process.pid

    def head(self):
        """What it has counted so far; cheap."""
        if self._map is None:
            try:
                with open(self._record, "rb") as file:
                    self._map = mmap.mmap(file.fileno(), _PAGE, prot=mmap.PROT_READ)
            except (OSError, ValueError):  # it has just begun
                return Head(*[0] * 8, 0.0, 0.0)
        return Head._make(_HEAD.unpack_from(self._map))

    def _entries(self, shape, made, first=0, count=-1):
        with open(self._record, "rb") as file:
            file.seek(_PAGE + first * shape.size)
            return list(map(made._make, shape.iter_unpack(file.read(count * shape.size if count >= 0 else -1))))

    def _complain(self):
        raise RuntimeError(self.process.stderr.read().strip() or f"load ended with {self.process.returncode}")

    def stop(self):
        """End it and remove its record."""
        if self.process is not None:
            if self.process.poll() is None:
                self.process.terminate()
            self.process.wait()
            self.process.stdout.close()
            self.process.stderr.close()
        if self._map is not None:
            self._map.close()
            self._map = None
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()


@dataclass(kw_only=True)
class Sink(_Process):
    """Hosts that take mail, each in its mode (load/main.c says which); started, it knows their *addresses*."""

    recipients: int  # numbers from 0 on that it counts
    hosts: Sequence[str] = ("127.0.0.1:0=ok",)
    addresses: list[str] = field(default_factory=list, init=False)

    def start(self):
        """Listen."""
        self._begin("sink", "--recipients", str(self.recipients), *self.hosts)
        self.addresses = []
        while (line := self.process.stdout.readline().strip()) != "ready":
            if not line:
                self.process.wait()
                self._complain()
            self.addresses.append(line)
        return self

    def settle(self, expected, stall=20.0, limit=600.0, say: Say = _silent):
        """Wait until *expected* have their mail, none came for *stall* seconds, or the limit; how many have."""
        began = changed = time.monotonic()
        last = -1
        while True:
            done, now = self.head().done, time.monotonic()
            say(done)
            if done != last:
                last, changed = done, now
            if done >= expected or now - changed > stall or now - began > limit:
                return done
            time.sleep(0.02)

    def receipts(self, first=0, count=-1) -> list[Got]:
        """One for each number, or for *count* of them from *first* on."""
        return self._entries(_GOT, Got, first, count)


@dataclass(kw_only=True)
class Source(_Process):
    """A load of numbered messages; see load/main.c for what its numbers mean."""

    to: str  # 127.0.0.1:2525
    messages: int
    domains: Sequence[str] = ("ok.test",)  # recipient i is of domains[i % len(domains)]
    sessions: int = 40
    octets: int = 4096
    per_connection: int = 0  # messages; 0: connections are kept
    recipients: int = 1  # of each message
    rate: float = 0.0  # messages a second; 0: closed loop
    tries: int = 0  # of each message; 0: 20 in a closed loop, 1 in an open one
    first: int = 0  # number of the first message: several sources, one after another, can send to one sink
    pipelining: bool = True  # if it is offered

    def start(self):
        """Begin to send."""
        with tempfile.NamedTemporaryFile("w", suffix=".domains", delete=False) as file:
            file.write("\n".join(self.domains) + "\n")
        self._domains = file.name
        words = {
            "domains": file.name, "messages": self.messages, "sessions": self.sessions, "octets": self.octets,
            "per-connection": self.per_connection, "recipients": self.recipients, "rate": self.rate,
            "tries": self.tries, "first": self.first,
        }  # fmt: skip
        return self._begin(
            "source", self.to, *(part for word, value in words.items() for part in (f"--{word}", str(value))),
            *([] if self.pipelining else ["--no-pipelining"]),
        )  # fmt: skip

    def wait(self, seconds=None, say: Say = _silent):
        """Until all is over or *seconds* are; whether it was. Raises RuntimeError if it failed."""
        end = time.monotonic() + (self.seconds + 5 if seconds is None else seconds)
        while self.process.poll() is None and time.monotonic() < end:
            say(self.head().accepted)
            time.sleep(0.02)
        if self.process.returncode:
            self._complain()
        say(self.head().accepted)
        return self.process.returncode == 0 and self.head().done == self.messages

    def stop(self):
        """End it and remove its files."""
        super().stop()
        with contextlib.suppress(OSError):
            os.unlink(self._domains)

    def domain(self, recipient):
        """Whose a recipient is, by its number."""
        return self.domains[recipient % len(self.domains)]

    def messages_sent(self) -> list[Sent]:
        """One for each message."""
        return self._entries(_SENT, Sent)


@dataclass(frozen=True)
class Figures:
    """
    What a run was: rates a second, waits in seconds from 250 to delivery, recipients.

    *accept* counts messages from the first that was due to the last 250, *through* (end to end) recipients from the
    first that was due to the last delivery. Lost: acknowledged and not delivered. Doubled: delivered again though no
    try of its message had an end that the source did not see.
    """

    recipients: int
    accepted: int  # recipients of messages that got their 250
    delivered: int
    lost: int
    doubled: int
    failed: int  # transactions and connections
    accept: float
    through: float
    p50: float
    p99: float
    max: float
    due50: float  # from due to 250
    due99: float


def quantile(ordered, part):
    """Of sorted values; 0 of none."""
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


def joined(source: Source, sink: Sink, chosen: Chosen = _every) -> list[tuple[Sent, Got]]:
    """Each recipient of a chosen domain: its message, what it got."""
    sent, each, of = source.messages_sent(), source.recipients, len(source.domains)
    wanted = [chosen(domain) for domain in source.domains]
    first = source.first * each
    receipts = sink.receipts(first, len(sent) * each)
    return [(sent[i // each], got) for i, got in enumerate(receipts) if wanted[(first + i) % of]]


def counted(pairs, failed=0) -> Figures:
    """The figures of joined recipients; *failed* is the source's count."""
    said = [sent.said for sent, _ in pairs if sent.said]
    came = [got.first for _, got in pairs if got.first]
    waits = sorted(max(0.0, got.first - sent.said) for sent, got in pairs if sent.said and got.first)
    taking = sorted(sent.said - sent.due for sent, _ in pairs if sent.said)
    first = min((sent.due for sent, _ in pairs if sent.due), default=0.0)
    messages = len({id(sent) for sent, _ in pairs if sent.said})
    return Figures(
        recipients=len(pairs),
        accepted=len(said),
        delivered=len(came),
        lost=sum(bool(sent.said) and not got.times for sent, got in pairs),
        doubled=sum(max(0, got.times - 1 - sent.unsure) for sent, got in pairs),
        failed=failed,
        accept=messages / max(1e-6, max(said) - first) if said else 0.0,
        through=len(came) / max(1e-6, max(came) - first) if came else 0.0,
        p50=quantile(waits, 0.5), p99=quantile(waits, 0.99), max=quantile(waits, 1),
        due50=quantile(taking, 0.5), due99=quantile(taking, 0.99),
    )  # fmt: skip


def figures(source, sink, chosen: Chosen = _every) -> Figures:
    """Of the recipients of chosen domains, or of all."""
    return counted(joined(source, sink, chosen), source.head().failed)


def course(pairs, zero, seconds=1.0):
    """
    Waits over time: for each *seconds* from *zero* on (when, acknowledged, delivered, p50, p99).

    By the time of the 250. What was not delivered has no wait; how many those are, the two counts say.
    """
    spans = {}
    for sent, got in pairs:
        if sent.said:
            spans.setdefault(int((sent.said - zero) // seconds), []).append(
                max(0.0, got.first - sent.said) if got.first else None
            )
    rows = []
    for span, waits in sorted(spans.items()):
        come = sorted(wait for wait in waits if wait is not None)
        rows.append((span * seconds, len(waits), len(come), quantile(come, 0.5), quantile(come, 0.99)))
    return rows


def arrivals(pairs, zero, seconds=1.0):
    """Deliveries over time: for each *seconds* from *zero* on (when, delivered)."""
    spans = {}
    for _, got in pairs:
        if got.first:
            span = int((got.first - zero) // seconds)
            spans[span] = spans.get(span, 0) + 1
    return [(span * seconds, spans.get(span, 0)) for span in range(max(spans, default=-1) + 1)]
