r"""
The journal of a store: files of blocks, each written and synced with one call.

Pure of SQL. A block says which messages came, which entries went and which
tombstones are needed; whoever reads the blocks in order knows what is left.
All numbers are little-endian.

    block       MAGIC, CRC-32 of all after it; HEAD: generation, since, sequence, length; payload; NULs up to PAGE
    payload     COUNTS: messages, gone, tombstones; these
    message     MESSAGE: token's seq, place, lengths of peer and body, rows; peer, body, rows
    row         ROW: number, born, size, lengths of site and record; site, record (qmq.spool.record)
    gone        NUMBER of an entry
    tombstone   TOMBSTONE: token's seq, lengths of peer and recipients; peer, recipients

The checksum begins with a secret of the store, so that nobody can send mail that
looks like blocks. A block begins on a page of its own, so that no write ever touches
what was acknowledged before. Two files take turns: each generation is written over the last but one,
of which nothing may be left. That is said by *since*, in a block that is durable before: a power cut may
leave half of what was there, and of messages that had gone the half that says so may be the one that is lost.
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
from qmq.spool.ring import Piece

PAGE: Octets = 4096
MAGIC = b"qmqJ"
FRONT = Struct("<4sI")
HEAD = Struct("<QQQI")
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
    """A message in the journal: its body, and a row for each site; the *generation* that it was written in."""

    __slots__ = ("body", "generation", "peer", "place", "rows", "seq")

    def __init__(self, peer: bytes, seq: int, place: int, body: bytes, rows: list[Row], generation: int = 0) -> None:
        self.generation = generation
        self.peer = peer
        self.seq = seq
        self.place = place
        self.body = body
        self.rows = rows


class Block:
    """
    What one block says: *messages* that came, then numbers of entries that are *gone*, and *tombstones*.

    *since*: what is written of generations before that counts no more (of a block that is read: 0).
    """

    __slots__ = ("gone", "messages", "since", "tombstones")

    def __init__(
        self, messages: Sequence[Fresh], gone: Iterable[int], tombstones: Sequence[Tombstone], since: int = 0
    ) -> None:
        self.messages = messages
        self.gone = list(gone)
        self.tombstones = tombstones
        self.since = since


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
    Two files, *path* with ``.0`` and ``.1``, each made when something is first written to it, *limit* octets at most.

    Generations take turns: what begins a new one may be written over the last but one. Not to be used while
    another thread is in it. *size* is what it takes of the disk; *since*, what the last block of this generation said.
    """

    def __init__(self, path: str, limit: Octets) -> None:
        self._paths = (f"{path}.0", f"{path}.1")
        self._limit = limit
        self._fds = [-1, -1]
        self._sizes = [0, 0]
        self._sequence = 0
        self.at: Octets = 0  # where the next block begins
        self.generation = self.since = self.secret = 0

    @property
    def size(self) -> Octets:
        """What the files take."""
        return sum(self._sizes)

    def begin(self, generation: int) -> None:
        """Write over the last but one, when something is written; until then it counts on."""
        self.generation, self.since, self.at, self._sequence = generation, 0, 0, 0

    def made(self, block: Block) -> bytes:
        """The next block's octets, for write; none if there is no room for it."""
        pieces = pack(block)
        length = sum(map(len, pieces))
        padding = -(FRONT.size + HEAD.size + length) % PAGE
        if self.at + FRONT.size + HEAD.size + length + padding > self._limit:
            return b""
        octets = b"".join((HEAD.pack(self.generation, block.since, self._sequence, length), *pieces))
        return b"".join((FRONT.pack(MAGIC, crc32(octets, self.secret)), octets, bytes(padding)))

    def write(self, octets: bytes) -> None:
        """
        What made gave is durable when this returns.

        Raises OSError, and then it is not there, as far as the disk lets us say so.
        """
        turn = self.generation & 1
        if self._fds[turn] < 0:
            self._open(turn)
        try:
            self._write(self._fds[turn], octets)
        except BaseException:
            self.void()
            raise
        self.written(octets)

    def piece(self, octets: bytes) -> Piece | None:
        """What write would have written, if it had nothing else to do."""
        fd = self._fds[self.generation & 1]
        return None if fd < 0 else (fd, octets, self.at)

    def void(self) -> None:
        """What was to be written may be complete without having been synced: nobody who reads it shall believe it."""
        with suppress(OSError):
            write(self._fds[self.generation & 1], bytes(PAGE), self.at)

    def written(self, octets: bytes) -> None:
        """What made gave is durable."""
        turn = self.generation & 1
        _, self.since, _, _ = HEAD.unpack_from(octets, FRONT.size)
        self.at += len(octets)
        self._sequence += 1
        self._sizes[turn] = max(self._sizes[turn], self.at)

    def _open(self, turn: int) -> None:
        path = self._paths[turn]
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_DSYNC, 0o600)
        try:
            sync_folder(os.path.dirname(path))
        except BaseException:
            os.close(fd)
            raise
        self._fds[turn] = fd

    def _write(self, fd: int, octets: bytes) -> None:
        written = write(fd, octets, self.at)
        while written < len(octets):
            written += write(fd, octets[written:], self.at + written)

    def read(self, since: int) -> tuple[list[Block], list[str]]:
        """
        The blocks of the last two generations that count, none before *since*; what is wrong, for the operator.

        A block that is cut at the end was never acknowledged. One that is missing before others was.
        *generation* is the latest then. Raises OSError; no files have no blocks.
        """
        found = sorted(
            block for path in self._paths for block in _blocks(_octets(path), self.secret) if block[0] >= since
        )
        self.generation = latest = found[-1][0] if found else 0
        since = max((latest - 1, *(block[2] for block in found)))
        found = [block for block in found if block[0] >= since]
        wrong = []
        for before, after in pairwise([(0, -1, 0, b""), *found]):
            if missing := after[1] - (before[1] + 1 if before[0] == after[0] else 0):
                wrong.append(
                    f"{self._paths[after[0] & 1]}: DAMAGED: {missing} blocks before the {after[1] + 1}th are gone"
                )
        return [unpack(block[3]) for block in found], wrong

    def close(self) -> None:
        """Let go of the files; they stay."""
        fds, self._fds = self._fds, [-1, -1]
        for fd in fds:
            if fd >= 0:
                os.close(fd)

    def drop(self) -> None:
        """
        Remove them, when all of it is done with or lies elsewhere; should that fail it does no harm.

        The older one goes first, for good: what went of it may be said in the later one.
        """
        self.close()
        later = (self.generation if self.at else self.generation - 1) & 1
        with suppress(OSError):
            if os.path.exists(self._paths[not later]):
                os.unlink(self._paths[not later])
                sync_folder(os.path.dirname(self._paths[later]))
            if os.path.exists(self._paths[later]):
                os.unlink(self._paths[later])
        self._sizes = [0, 0]
        self.begin(self.generation + 1)


def write(fd: int, octets: bytes, at: Octets) -> int:
    """Write there; how many octets were written. The tests' disk fails here."""
    return os.pwrite(fd, octets, at)


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


def _octets(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


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


def _blocks(octets: bytes, secret: int) -> Iterator[tuple[int, int, int, bytes]]:
    """Generation, sequence, since and payload of all that are whole, wherever they lie."""
    at, front = 0, FRONT.size + HEAD.size
    while at + front <= len(octets):
        magic, crc = FRONT.unpack_from(octets, at)
        generation, since, sequence, length = HEAD.unpack_from(octets, at + FRONT.size)
        end = at + front + length
        if magic == MAGIC and end <= len(octets) and crc == crc32(memoryview(octets)[at + FRONT.size : end], secret):
            yield generation, sequence, since, octets[at + front : end]
            at = end
        else:
            at += 1
        at += -at % PAGE
