"""Any sequence of operations and crashes against a model of a few dicts."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from itertools import cycle
from math import inf
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from qmq.mail import HELD, Address, Envelope, MemoryBody, Message, Reply, Token
from qmq.spool import fresh, journal
from qmq.spool.disk import SQLiteSpool
from qmq.spool.memory import Memory, MemorySpool
from qmq.spool.table import NONE
from qmq.spool.writer import Writers
from tests.spool.faults import FaultyVFS
from tests.spool.house import Kernel, without

PEOPLE = [Address(bytes([65 + i]), b"site%d" % (i % 3)) for i in range(6)]
LATER = Reply(451, "4.4.1", "later")
people = st.lists(st.sampled_from(PEOPLE), min_size=1, max_size=4, unique=True)


def at_once(ring: Any = None) -> Writers:
    """Without threads."""
    return Writers(call_from_thread=lambda f, *a: f(*a), in_thread=lambda f, *a: f(*a), ring=ring)


class SpoolMachine(RuleBasedStateMachine):
    """
    *promised*: each (token, recipient) that was kept, until it is settled: "to do" or "done".

    The promise: what was kept and not settled is in the store or in hand, once; what
    was settled never comes back, but for settles that a crash swallowed.
    """

    def make(self) -> Any:
        raise NotImplementedError

    def crash_image(self) -> None:
        raise NotImplementedError

    def text(self, seq: int) -> bytes:
        """Of the message with that token."""
        return b"%d" % seq

    @initialize()
    def begin(self) -> None:
        self.clock, self.past = Clock(), 1000.0
        self.promised: dict[tuple[int, Address], str] = {}
        self.unsure: set[tuple[int, Address]] = set()  # settled, perhaps not written
        self.hand: dict[int, Any] = {}
        self.held: set[int] = set()
        self.last_number = 0
        self.open()

    def open(self) -> None:
        self.store = self.make()
        self.started: list[None] = []
        self.store.start().addCallback(self.started.append)
        assert self.started
        self.hand.clear()

    def result(self, deferred: Any) -> Any:
        results: list[Any] = []
        deferred.addCallback(results.append)
        for _ in range(4):
            self.clock.advance(0)
        return results[0]

    def wall(self) -> float:
        return self.past + self.clock.seconds()

    @rule(seq=st.integers(1, 8), some=people, twice=st.booleans())
    def keep(self, seq: int, some: list[Address], twice: bool) -> None:
        token = Token(b"peer", seq)
        whole = Message(Envelope(token, PEOPLE[0], tuple(some)), b"", MemoryBody(self.text(seq)))
        sites = [one.domain for one in some]
        kept = [self.store.keep(whole, sites, 0) for _ in range(1 + twice)]
        entries = [entry for each in kept for entry in self.result(each)]
        found = [(seq, one) for entry in entries for one in entry.message.envelope.recipients]
        assert sorted(map(repr, found)) == sorted(repr((seq, one)) for one in some if (seq, one) not in self.promised)
        for entry in entries:
            assert entry.number > self.last_number
            self.last_number = entry.number
            self.hand[entry.number] = entry
        self.promised.update(dict.fromkeys(found, "to do"))

    @rule(
        data=st.data(),
        how=st.sampled_from(["done", "some", "later", "bounce", "release", "hold", "move"]),
        wait=st.booleans(),
    )
    def settle(self, data: st.DataObject, how: str, wait: bool) -> None:
        if not self.hand:
            return
        number = data.draw(st.sampled_from(sorted(self.hand)))
        entry = self.hand[number]
        todo = entry.message.envelope.recipients
        gone: tuple[Address, ...] = ()
        if how in {"release", "hold", "move"}:
            if how == "move":
                entry.site = data.draw(st.sampled_from([b"site0", b"site1", b"site2"]))
            self.store.release(entry, HELD if how == "hold" else self.wall() + data.draw(st.integers(-5, 5)))
            if how == "hold":
                self.held.add(number)
        else:
            gone = {"done": todo, "some": todo[:1]}.get(how, ())
            if how == "bounce":
                entry.bouncing = (*entry.bouncing, *((one, LATER) for one in todo))
                without(entry, *todo)
                entry.due = self.wall()
            elif how in {"later", "some"}:
                entry.due = self.wall() + data.draw(st.integers(0, 5))
                entry.last = dict.fromkeys(todo, LATER)
            if how == "done":
                gone = (*gone, *(one for one, _ in entry.bouncing))
                entry.bouncing = ()
            self.store.settle(without(entry, *gone))
        del self.hand[number]
        seq = entry.message.envelope.token.seq
        for one in gone:
            self.promised[seq, one] = "done"
            self.unsure.add((seq, one))
        if wait:
            self.clock.advance(1)
            self.unsure.clear()

    @rule(
        limit=st.integers(1, 5),
        busy=st.lists(st.sampled_from([b"site0", b"site1"]), unique=True),
        ahead=st.integers(0, 9),
    )
    def claim(self, limit: int, busy: list[bytes], ahead: int) -> None:
        due = self.result(self.store.next_due(busy))
        entries = self.result(self.store.claim(self.wall() + ahead, limit, busy))
        self.unsure.clear()
        assert bool(entries) == (due is not None and due <= self.wall() + ahead)
        for entry in entries:
            assert entry.site not in busy
            assert entry.number not in self.hand
            assert entry.number not in self.held
            self.hand[entry.number] = entry
            seq = entry.message.envelope.token.seq
            body = self.result(self.store.body(entry))
            assert b"".join(body.chunks()) == self.text(seq)

    @rule()
    def claim_all(self) -> None:
        """Whatever is neither in hand nor held can be had, once."""
        everything = {entry.number for entry in self.result(self.store.find({}, 0, 1000))}
        self.unsure.clear()
        claimed = self.result(self.store.claim(self.wall() + 1000, 1000, []))
        numbers = [entry.number for entry in claimed]
        assert len(numbers) == len(set(numbers))
        assert set(numbers) == everything - set(self.hand) - self.held
        self.hand.update((entry.number, entry) for entry in claimed)

    @rule(
        words=st.sampled_from([{}, {"destination": "site1"}, {"site": "site0"}, {"state": "held"}, {"attempts": "1"}]),
        limit=st.integers(1, 5),
    )
    def seize(self, words: dict[str, str], limit: int) -> None:
        matching = [entry.number for entry in self.result(self.store.find(words, 0, 1000))]
        self.unsure.clear()
        free = [number for number in matching if number not in self.hand]
        entries, on = self.result(self.store.seize(words, 0, limit))
        assert [entry.number for entry in entries] == free[:limit]
        assert on is not None or len(entries) == len(free)
        for entry in entries:
            self.hand[entry.number] = entry
            self.held.discard(entry.number)

    @rule()
    def all_at_once(self) -> None:
        self.result(self.store.due_now({}))
        self.unsure.clear()

    @rule(seconds=st.integers(0, 3))
    def time_passes(self, seconds: int) -> None:
        self.clock.advance(seconds)
        if seconds:
            self.unsure.clear()

    @rule()
    def restart(self) -> None:
        stopped: list[None] = []
        self.store.stop().addCallback(stopped.append)
        assert stopped
        self.unsure.clear()
        self.open()
        assert self.held <= self.now_held()

    def now_held(self) -> set[int]:
        self.held = {entry.number for entry in self.result(self.store.find({"state": "held"}, 0, 1000))}
        return self.held

    @rule()
    def crash(self) -> None:
        self.crash_image()
        # What the dead process meant to do later it does no more.
        self.past += self.clock.seconds()
        self.clock = Clock()
        self.open()
        everything = self.result(self.store.find({}, 0, 1000))
        there = {
            (entry.message.envelope.token.seq, one)
            for entry in everything
            for one in (*entry.message.envelope.recipients, *(one for one, _ in entry.bouncing))
        }
        for key in self.unsure & there:
            self.promised[key] = "to do"
        self.unsure.clear()
        self.now_held()

    @invariant()
    def in_hand(self) -> None:
        if hasattr(self, "store"):
            assert self.store.in_hand == len(self.hand)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.nothing_lost_nothing_double()

    @rule()
    def nothing_lost_nothing_double(self) -> None:
        # Looking in writes what was settled first.
        everything = self.result(self.store.find({}, 0, 1000))
        self.unsure.clear()
        there = [
            (entry.message.envelope.token.seq, one)
            for entry in everything
            for one in (*entry.message.envelope.recipients, *(one for one, _ in entry.bouncing))
        ]
        assert len(there) == len(set(there))
        assert set(there) == {key for key, state in self.promised.items() if state == "to do"}
        assert self.store.messages == len(everything)
        assert self.store.octets == sum(entry.message.size for entry in everything)
        assert self.store.oldest == min((entry.number for entry in everything), default=NONE)
        assert self.store.birth == min(((entry.number, entry.born) for entry in everything), default=(0, inf))[1]
        for words, matches in (
            ({"destination": "site0"}, lambda entry: entry.site == b"site0"),
            ({"destination": "site1,site2"}, lambda entry: entry.site in {b"site1", b"site2"}),
            ({"state": "in-hand"}, lambda entry: entry.number in self.hand),
            ({"state": "held"}, lambda entry: entry.number in self.held),
            ({"state": "waiting"}, lambda entry: entry.number not in {*self.held, *self.hand}),
            ({"state": "bouncing"}, lambda entry: bool(entry.bouncing)),
        ):
            meant = [entry for entry in everything if matches(entry)]
            found = self.result(self.store.find(words, 0, 1000))
            assert [entry.number for entry in found] == [entry.number for entry in meant], words
            counted = (len(meant), sum(entry.message.size for entry in meant), None)
            assert self.result(self.store.survey(words, 0)) == counted, words


class MemoryMachine(SpoolMachine):
    def make(self) -> Any:
        if not hasattr(self, "memory"):
            self.memory = Memory()
        return MemorySpool(self.memory, clock=self.clock, wall=self.wall)

    def crash_image(self) -> None:
        self.memory.holder = None


class SQLiteMachine(SpoolMachine):
    journal = 0
    inline = 1
    vfs: str | None = None
    writers = at_once()

    def make(self) -> Any:
        if not hasattr(self, "root"):
            self.root = tempfile.mkdtemp(prefix="qmq-machine-")
            self.starts = 0
        return SQLiteSpool(
            os.path.join(self.root, str(self.starts)),
            clock=self.clock, wall=self.wall, writers=self.writers, reserve=0, inodes=0, inline=self.inline, idle=2,
            journal=self.journal, vfs=self.vfs,
        )  # fmt: skip

    def crash_image(self) -> None:
        before = os.path.join(self.root, str(self.starts))
        self.starts += 1
        shutil.copytree(before, os.path.join(self.root, str(self.starts)))
        self.store._table.close()

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "root"):
            self.store._table.close()
            shutil.rmtree(self.root)


class FreshMachine(SQLiteMachine):
    """With a journal, whose files take turns every few messages, or are full; the disk has troubles, and is torn."""

    journal = 60000
    inline = 10000

    def text(self, seq: int) -> bytes:
        """Within a page, of several pages, a file's."""
        return b"%d" % seq * (1 if seq < 4 else 6000 if seq < 7 else 12000)

    def make(self) -> Any:
        if not hasattr(self, "root"):
            self.trouble, self.sectors = "", 0
            self.faults = FaultyVFS(f"faulty-{id(self)}")
            self.vfs = self.faults.name
            self.real, self.short, journal.write, fresh.SHORT = journal.write, fresh.SHORT, self.write, 20000
        return super().make()

    def write(self, fd: int, octets: bytes, at: int) -> int:
        """As journal.write, on a disk with that trouble."""
        if self.trouble == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        if self.trouble == "torn":
            for i in range(0, len(octets), 512):
                if self.sectors >> i // 512 % 64 & 1:
                    self.real(fd, octets[i : i + 512], at + i)
            self.trouble = "journal"
        if self.trouble in {"journal", "both"}:
            raise OSError(errno.EIO, "Input/output error")
        return self.real(fd, octets, at)

    def trouble_is(self, what: str) -> None:
        """From now on; none: the disk is mended."""
        self.trouble = what
        self.faults.sync = what in {"rows", "both"}
        self.faults.full = what in {"full", "rows-full"}

    def crash_image(self) -> None:
        before = os.path.join(self.root, str(self.starts))
        self.starts += 1
        shutil.copytree(before, os.path.join(self.root, str(self.starts)))
        self.trouble_is("")
        self.store._table.close()

    @rule(
        data=st.data(), what=st.sampled_from(["journal", "rows", "both", "full", "rows-full", "torn"]),
        seq=st.integers(1, 8), some=people, crash=st.booleans(), look=st.booleans(), seconds=st.integers(0, 4),
        sectors=st.integers(0, (1 << 64) - 1),
    )  # fmt: skip
    def disk_in_trouble(
        self, data: st.DataObject, what: str, seq: int, some: list[Address], crash: bool, look: bool, seconds: int,
        sectors: int,
    ) -> None:  # fmt: skip
        """What fails was not kept, or perhaps, if the process dies then; all else goes on once the disk is mended."""
        self.sectors = sectors
        self.trouble_is(what)
        whole = Message(Envelope(Token(b"peer", seq), PEOPLE[0], tuple(some)), b"", MemoryBody(self.text(seq)))
        kept: list[Any] = []
        found: list[Any] = []
        if self.hand and data.draw(st.booleans()):
            number = data.draw(st.sampled_from(sorted(self.hand)))
            entry = self.hand.pop(number)
            of, gone = entry.message.envelope.token.seq, entry.message.envelope.recipients
            gone = (*gone, *(one for one, _ in entry.bouncing))
            entry.bouncing = ()
            self.store.settle(without(entry, *gone))
            for one in gone:
                self.promised[of, one] = "done"
                self.unsure.add((of, one))
        self.store.keep(whole, [one.domain for one in some], 0).addBoth(kept.append)
        if look:
            self.store.find({}, 0, 9).addBoth(found.append)
        self.clock.pump([0] * 4 + [1] * seconds)
        assert (len(kept), len(found)) == (1, look)
        failed = isinstance(kept[0], Failure)
        for entry in () if failed else kept[0]:
            self.hand[entry.number] = entry
            self.last_number = max(self.last_number, entry.number)
            for one in entry.message.envelope.recipients:
                assert (seq, one) not in self.promised
                self.promised[seq, one] = "to do"
        if crash:
            if failed:
                perhaps = {(seq, one) for one in some if (seq, one) not in self.promised}
                self.promised.update(dict.fromkeys(perhaps, "done"))
                self.unsure |= perhaps
            self.crash()
            if failed:
                for key in perhaps:
                    if self.promised[key] == "done":
                        del self.promised[key]
        else:
            self.trouble_is("")
            self.clock.pump([1] * 10)
            self.unsure.clear()
            self.store.free()  # asks anew
            self.clock.pump([0] * 3)
            assert self.store.full == ""

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            if hasattr(self, "real"):
                journal.write, fresh.SHORT = self.real, self.short
                self.faults.unregister()


class RingMachine(FreshMachine):
    """The kernel writes, or now and then does not, or not all."""

    writers = at_once(Kernel(troubles=cycle(["", "lost", "", "short", ""])))


MEMORY = settings(max_examples=60, stateful_step_count=40, deadline=None)
DISK = settings(max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
TestMemoryMachine = MemoryMachine.TestCase
TestMemoryMachine.settings = MEMORY
TestSQLiteMachine = SQLiteMachine.TestCase
TestSQLiteMachine.settings = DISK
TestFreshMachine = FreshMachine.TestCase
TestFreshMachine.settings = DISK
TestRingMachine = RingMachine.TestCase
TestRingMachine.settings = DISK
