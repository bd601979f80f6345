r"""
The journal of a store: a file of blocks, each written and synced with one call.

Pure of SQL. A block says which messages came, which entries went and which
tombstones are needed; whoever reads the blocks in order knows what is left.
All numbers are little-endian.

    block       MAGIC, CRC-32 of all after it; HEAD: generation, sequence, length; payload; NULs up to PAGE
    payload     COUNTS: messages, gone, tombstones; these
    message     MESSAGE: token's seq, place, lengths of peer and body, rows; peer, body, rows
    row         ROW: number, born, size, lengths of site and record; site, record (qmq.spool.record)
    gone        NUMBER of an entry
    tombstone   TOMBSTONE: token's seq, lengths of peer and recipients; peer, recipients

The checksum begins with a secret of the store, so that nobody can send mail that
looks like blocks. A block begins on a page of its own, so that no write ever touches
what was acknowledged before. The file is written from its beginning again in each
generation: what an older one left behind it does not count.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from struct import Struct
from struct import error as StructError  # noqa: N812 - struct names it in lower case
from zlib import crc32

from qmq.mail import Octets, Seconds
from qmq.spool.bodies import sync_folder

PAGE: Octets = 4096
MAGIC = b"qmqJ"
FRONT = Struct("<4sI")
HEAD = Struct("<QQI")
COUNTS = Struct("<III")
MESSAGE = Struct("<QQHII")
ROW = Struct("<QdQII")
NUMBER = Struct("<Q")
TOMBSTONE = Struct("<QHI")

# number, peer, seq, part, site, born, size, place of the body, record: as qmq.spool.table.rows makes them.
Row = tuple[int, bytes, int, int, bytes, Seconds, Octets, int, bytes]
# peer, seq, recipients as the tombstone packs them
Tombstone = tuple[bytes, int, bytes]


class Fresh:
    """A message in the journal: its body, and a row for each site."""

    __slots__ = ("body", "peer", "place", "rows", "seq")

    def __init__(self, peer: bytes, seq: int, place: int, body: bytes, rows: list[Row]) -> None:
        self.peer = peer
        self.seq = seq
        self.place = place
        self.body = body
        self.rows = rows


class Block:
    """What one block says: *messages* that came, then numbers of entries that are *gone*, and *tombstones*."""

    __slots__ = ("gone", "messages", "tombstones")

    def __init__(self, messages: Sequence[Fresh], gone: Iterable[int], tombstones: Sequence[Tombstone]) -> None:
        self.messages = messages
        self.gone = list(gone)
        self.tombstones = tombstones


def pack(block: Block) -> list[bytes]:
    """The payload, in pieces."""
    messages, gone, tombstones = block.messages, block.gone, block.tombstones
    pieces = [COUNTS.pack(len(messages), len(gone), len(tombstones))]
    for one in messages:
        pieces += MESSAGE.pack(one.seq, one.place, len(one.peer), len(one.body), len(one.rows)), one.peer, one.body
        for number, _, _, _, site, born, size, _, record in one.rows:
            pieces += ROW.pack(number, born, size, len(site), len(record)), site, record
    pieces.append(b"".join(map(NUMBER.pack, gone)))
    for peer, seq, recipients in tombstones:
        pieces += TOMBSTONE.pack(seq, len(peer), len(recipients)), peer, recipients
    return pieces


def unpack(payload: bytes) -> Block:
    """What pack was given; raises ValueError for anything else."""
    cut = _Cut(payload)
    try:
        messages, gone, tombstones = cut.numbers(COUNTS)
        block = Block(
            [_message(cut) for _ in range(messages)],
            [cut.numbers(NUMBER)[0] for _ in range(gone)],
            [_tombstone(cut) for _ in range(tombstones)],
        )
    except StructError as error:
        raise ValueError(str(error)) from error
    if cut.at != len(payload):
        raise ValueError("lengths do not add up")
    return block


class Journal:
    """
    The file at *path*, made when something is first written, *limit* octets at most.

    Not to be used while another thread is in it. *size* is what it takes of the disk.
    """

    def __init__(self, path: str, limit: Octets) -> None:
        self._path, self._limit = path, limit
        self._fd = -1
        self._sequence = 0
        self.at: Octets = 0  # where the next block begins
        self.size: Octets = 0
        self.generation = self.secret = 0

    def begin(self, generation: int) -> None:
        """From the beginning; what is there of older generations counts no more, once something is written."""
        self.generation, self.at, self._sequence = generation, 0, 0

    def append(self, block: Block) -> bool:
        """
        Whether it has room; then it is durable.

        Raises OSError, and then it is not there, as far as the disk lets us say so.
        """
        pieces = pack(block)
        length = sum(map(len, pieces))
        whole = FRONT.size + HEAD.size + length
        padding = -whole % PAGE
        if self.at + whole + padding > self._limit:
            return False
        rest = b"".join((HEAD.pack(self.generation, self._sequence, length), *pieces, bytes(padding)))
        crc = crc32(memoryview(rest)[: len(rest) - padding], self.secret)
        try:
            self._write((FRONT.pack(MAGIC, crc), rest))
        except BaseException:
            self._void()
            raise
        self.at += whole + padding
        self._sequence += 1
        self.size = max(self.size, self.at)
        return True

    def _write(self, pieces: tuple[bytes, bytes]) -> None:
        if self._fd < 0:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_DSYNC, 0o600)
            sync_folder(os.path.dirname(self._path))
        written = write(self._fd, pieces, self.at)
        if written < sum(map(len, pieces)):
            left = b"".join(pieces)[written:]
            while left:
                done = write(self._fd, (left,), self.at + written)
                left, written = left[done:], written + done

    def _void(self) -> None:
        """Its octets may be complete without having been synced, and whoever reads them next would believe them."""
        with suppress(OSError):
            write(self._fd, (bytes(PAGE),), self.at)

    def read(self, since: int) -> tuple[list[Block], list[str]]:
        """
        The blocks of the latest generation, if that is *since* or later; what is wrong with them, for the operator.

        A block that is cut at the end was never acknowledged. One that is missing before others was.
        *generation* is theirs then. Raises OSError; no file has no blocks.
        """
        try:
            with open(self._path, "rb") as file:
                octets = file.read()
        except FileNotFoundError:
            return [], []
        found = [each for each in _blocks(octets, self.secret) if each[0] >= since]
        self.generation = max((generation for generation, _, _ in found), default=0)
        here = [(sequence, payload) for generation, sequence, payload in found if generation == self.generation]
        blocks, wrong = [], []
        for (before, _), (sequence, payload) in pairwise([(-1, b""), *here]):
            if sequence != before + 1:
                wrong.append(
                    f"{self._path}: DAMAGED: {sequence - before - 1} blocks before the {sequence + 1}th are gone"
                )
            blocks.append(unpack(payload))
        return blocks, wrong

    def close(self) -> None:
        """Let go of the file; it stays."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def drop(self) -> None:
        """Remove it, when all of it is done with or lies elsewhere; should that fail it does no harm."""
        self.close()
        with suppress(OSError):
            os.unlink(self._path)
        self.size = self.at = self._sequence = 0


def write(fd: int, pieces: Sequence[bytes], at: int) -> int:
    """Write there; how many octets were written. The tests' disk fails here."""
    return os.pwritev(fd, pieces, at)


class _Cut:
    """Cuts octets off, one after the other."""

    def __init__(self, octets: bytes) -> None:
        self._octets = octets
        self.at = 0

    def numbers(self, struct: Struct) -> tuple[int, ...]:
        found = struct.unpack_from(self._octets, self.at)
        self.at += struct.size
        return found

    def octets(self, length: int) -> bytes:
        at = self.at
        self.at = at + length
        return self._octets[at : at + length]


def _message(cut: _Cut) -> Fresh:
    seq, place, of_peer, of_body, rows = cut.numbers(MESSAGE)
    one = Fresh(cut.octets(of_peer), seq, place, cut.octets(of_body), [])
    for part in range(rows):
        number, born, size, of_site, of_record = cut.numbers(ROW)
        site, record = cut.octets(of_site), cut.octets(of_record)
        one.rows.append((number, one.peer, seq, part, site, born, size, place, record))
    return one


def _tombstone(cut: _Cut) -> Tombstone:
    seq, of_peer, of_recipients = cut.numbers(TOMBSTONE)
    return cut.octets(of_peer), seq, cut.octets(of_recipients)


def _blocks(octets: bytes, secret: int) -> Iterator[tuple[int, int, bytes]]:
    """Generation, sequence and payload of all that are whole, wherever they lie."""
    at, front = 0, FRONT.size + HEAD.size
    while at + front <= len(octets):
        magic, crc = FRONT.unpack_from(octets, at)
        generation, sequence, length = HEAD.unpack_from(octets, at + FRONT.size)
        end = at + front + length
        if magic == MAGIC and end <= len(octets) and crc == crc32(memoryview(octets)[at + FRONT.size : end], secret):
            yield generation, sequence, octets[at + front : end]
            at = end
        else:
            at += 1
        at += -at % PAGE
