"""The file of blocks: what was written is read, and nothing else is."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qmq.spool import journal as module
from qmq.spool.journal import COUNTS, FRONT, HEAD, MESSAGE, PAGE, Block, Fresh, Journal, pack, unpack

OCTETS = st.binary(max_size=300)
NUMBERS = st.integers(0, (1 << 63) - 1)
ROWS = st.lists(st.tuples(NUMBERS, OCTETS, st.floats(allow_nan=False), st.integers(0, 1 << 40), OCTETS), max_size=3)
TOMBSTONES = st.lists(st.tuples(OCTETS, NUMBERS, OCTETS), max_size=3)


def fresh(peer: bytes, seq: int, place: int, body: bytes, rows: list[Any]) -> Fresh:
    made = Fresh(peer, seq, place, body, [])
    for part, (number, site, born, size, record) in enumerate(rows):
        made.rows.append((number, peer, seq, part, site, born, size, place, record))
    return made


BLOCKS = st.builds(
    Block, st.lists(st.builds(fresh, OCTETS, NUMBERS, NUMBERS, OCTETS, ROWS), max_size=3),
    st.lists(NUMBERS, max_size=5), TOMBSTONES,
)  # fmt: skip


def words(block: Block) -> Any:
    """All that it says."""
    messages = [(one.peer, one.seq, one.place, one.body, one.rows) for one in block.messages]
    return messages, block.gone, list(block.tombstones)


def simple(number: int, size: int = 100, since: int = 0) -> Block:
    row = (number, b"peer", number, 0, b"site", 1.5, size, number, b"record")
    return Block([Fresh(b"peer", number, number, bytes([number % 251]) * size, [row])], [], [], since)


def append(journal: Journal, block: Block) -> bool:
    """Whether there was room for it."""
    if octets := journal.made(block):
        journal.write(octets)
    return bool(octets)


class PackTests(SynchronousTestCase):
    @given(BLOCKS)
    @settings(max_examples=60, deadline=None)
    def test_round(self, block: Block) -> None:
        """What is packed is unpacked."""
        self.assertEqual(words(unpack(b"".join(pack(block)))), words(block))

    def test_cut(self) -> None:
        """A payload that is cut, or too long, is none."""
        payload = b"".join(pack(Block(simple(1).messages, [2, 3], [(b"peer", 4, b"recipients")])))
        for end in range(len(payload)):
            self.assertRaises(ValueError, unpack, payload[:end])
        self.assertRaises(ValueError, unpack, payload + b"\0")


class JournalTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = os.path.join(self.mktemp(), "journal")
        os.makedirs(os.path.dirname(self.path))

    def journal(self, generation: int = 7, secret: int = 99) -> Journal:
        made = Journal(self.path, 1 << 20)
        made.secret = secret
        made.begin(generation)
        self.addCleanup(made.close)
        return made

    def written(self, *numbers: int) -> bytes:
        """The file after such messages."""
        journal = self.journal()
        for number in numbers:
            self.assertTrue(append(journal, simple(number)))
        return self.octets()

    def octets(self, turn: int = 1) -> bytes:
        """Of the file of odd generations, or of even ones."""
        with open(f"{self.path}.{turn}", "rb") as file:
            return file.read()

    def numbers(self, octets: bytes | None = None, since: int = 0, secret: int = 99) -> tuple[list[int], int]:
        """Of the messages that are found, and how many alarms."""
        if octets is not None:
            with open(f"{self.path}.1", "wb") as file:
                file.write(octets)
        blocks, wrong = self.journal(secret=secret).read(since)
        return [one.seq for block in blocks for one in block.messages], len(wrong)

    def test_nobody_elses(self) -> None:
        """Nobody but the owner can read it."""
        self.written(1)
        self.assertEqual(os.stat(f"{self.path}.1").st_mode & 0o777, 0o600)

    def test_no_file(self) -> None:
        """Without a file there is nothing, and no alarm."""
        self.assertEqual(self.numbers(), ([], 0))

    def test_cut_anywhere(self) -> None:
        """Wherever the last block is cut or torn, those before are found and it is not; nobody is alarmed."""
        whole = self.written(1, 2, 3)
        self.assertEqual(self.numbers(whole), ([1, 2, 3], 0))
        last = 2 * PAGE
        end = len(whole.rstrip(b"\0"))
        for at in range(last, end):
            self.assertEqual(self.numbers(whole[:at]), ([1, 2], 0), at)
            torn = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
            self.assertEqual(self.numbers(torn), ([1, 2], 0), at)

    def test_damaged(self) -> None:
        """A block that is damaged before others is an alarm; the others are found."""
        whole = self.written(1, 2, 3)
        for at, left in ((PAGE + 40, [1, 3]), (40, [2, 3])):
            damaged = whole[:at] + b"?" + whole[at + 1 :]
            self.assertEqual(self.numbers(damaged), (left, 1))

    def test_generations(self) -> None:
        """The last two count; what an older one left behind the last block does not, nor what is too old."""
        self.written(1, 2, 3)
        for generation, number in ((8, 4), (9, 5)):
            append(self.journal(generation), simple(number))

        self.assertEqual(self.numbers(), ([4, 5], 0))
        self.assertEqual(self.numbers(since=9), ([5], 0))
        self.assertEqual(self.numbers(since=10), ([], 0))

    def test_torn_generation(self) -> None:
        """Should a generation's first block be torn, the one before it counts, and of what is written over nothing."""
        before = self.written(1, 2, 3)
        append(self.journal(8), simple(4, since=8))
        append(self.journal(9), simple(5, since=9))
        whole = self.octets()
        for torn in (before[:60] + whole[60:PAGE], whole[:60] + bytes(PAGE - 60), before[:PAGE]):
            self.assertEqual(self.numbers(torn + before[PAGE:]), ([4], 0))

    def test_since(self) -> None:
        """An older generation counts until a block says that it does not; what is missing of it is told till then."""
        before = self.written(1, 2, 3)
        journal = self.journal(8)
        append(journal, simple(4, since=7))
        self.assertEqual(self.numbers(), ([1, 2, 3, 4], 0))
        self.assertEqual(self.numbers(bytes(PAGE) + before[PAGE:]), ([2, 3, 4], 1))
        append(journal, simple(5, since=8))
        self.assertEqual(self.numbers(), ([4, 5], 0))

    def test_drop(self) -> None:
        """The older file goes first, be it that of the present generation or not."""
        for generation, more in ((7, 1), (8, 1), (7, 0), (8, 0)):
            journal = self.journal(generation)
            append(journal, simple(1))
            journal.begin(generation + 1)
            append(journal, simple(2))
            if not more:
                journal.begin(generation + 2)  # and nothing is written
            gone: list[str] = []
            self.patch(os, "unlink", lambda path, real=os.unlink, gone=gone: (gone.append(path[-1]), real(path)))
            journal.drop()
            self.assertEqual(gone, [str(generation & 1), str(generation + 1 & 1)])

    def test_mail_like_blocks(self) -> None:
        """Mail that looks like blocks is no block, should the block around it be damaged."""
        inner = self.written(66)
        os.unlink(f"{self.path}.1")
        journal = self.journal(secret=1234)
        row = (5, b"peer", 5, 0, b"site", 1.0, 9, 5, b"record")
        at = FRONT.size + HEAD.size + COUNTS.size + MESSAGE.size + len(b"peer")  # where the body begins
        append(journal, Block([Fresh(b"peer", 5, 5, bytes(PAGE - at) + inner, [row])], [], []))
        damaged = self.octets()[:30] + b"?" + self.octets()[31:]

        self.assertEqual(self.numbers(damaged, secret=99), ([66], 0))  # were the secret known
        self.assertEqual(self.numbers(damaged, secret=1234), ([], 0))

    def test_room(self) -> None:
        """What would make it longer than it may be is not written."""
        journal = self.journal()
        while append(journal, simple(1, 100_000)):
            pass
        self.assertLessEqual(journal.size, 1 << 20)
        self.assertGreater(journal.size, 900_000)
        self.assertEqual(journal.size, os.path.getsize(f"{self.path}.1"))

    def test_failed(self) -> None:
        """What could not be synced is not read, though its octets had come to the file."""
        journal = self.journal()
        append(journal, simple(1))
        real, calls = module.write, []

        def failing(fd: int, octets: bytes, at: int) -> int:
            calls.append(at)
            done = real(fd, octets, at)
            if len(calls) == 1:
                raise OSError(5, "Input/output error")
            return done

        self.patch(module, "write", failing)
        self.assertRaises(OSError, append, journal, simple(2))
        self.assertEqual(self.numbers(), ([1], 0))
        self.assertTrue(append(journal, simple(3)))
        self.assertEqual(self.numbers(), ([1, 3], 0))

    def test_piecewise(self) -> None:
        """A disk that takes a block in pieces has it whole at last."""
        real = module.write
        self.patch(module, "write", lambda fd, octets, at: real(fd, octets[:1000], at))
        self.assertTrue(append(self.journal(), simple(1, 5000)))

        self.assertEqual(self.numbers(), ([1], 0))

    def test_name(self) -> None:
        """A file whose name could not be synced is not written to until it is."""
        calls: list[str] = []

        def failing(folder: str) -> None:
            calls.append(folder)
            if len(calls) == 1:
                raise OSError(28, "No space left on device")

        self.patch(module, "sync_folder", failing)
        journal = self.journal()
        self.assertRaises(OSError, append, journal, simple(1))
        self.assertTrue(append(journal, simple(2)))
        self.assertEqual((len(calls), self.numbers()), (2, ([2], 0)))
