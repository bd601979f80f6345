r"""
What a row remembers of its message besides the columns: one binary record.

Pure. Every string is preceded by its length, so that no octet in an address
can be taken for structure; a record tells its own length, version and CRC-32
and ends in a mark, so that cut files, blocks of NULs and foreign bytes are
told from good records. All numbers are little-endian.

    head        HEAD: length, version, flags, port, generation, 3 counts, 8 lengths
    strings     sender, body type, origin, fields: as long as the head says
    recipients  those to do, then bouncing, then settled: RECIPIENT, strings, replies
    tail        CRC-32 of all before it, "END\n"
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from struct import Struct
from struct import error as StructError  # noqa: N812 - struct names it in lower case
from zlib import crc32

from qmq.mail import Address, Entry, Envelope, Origin, Reply, Seconds, Token, value

VERSION = 1
HEAD = Struct("<IBBHIIII8I")
RECIPIENT = Struct("<BII")
REPLY = Struct("<HIII")
TAIL = Struct("<I4s")
PAIR = Struct("<II")
END = b"END\n"

# Flags of the head. BORN: the birth came with the message; it is the row's.
SMTPUTF8, DELAYED, MADE_HERE, BORN = 1, 2, 4, 8
# Where in a record the count of the bouncing stands, four octets.
BOUNCING_AT = 16
# Marks of a recipient: a bounce's reply follows, the latest reply follows.
BOUNCE, LAST = 1, 2


class DamagedRecord(ValueError):
    """These octets are no record that we wrote."""


@value
class Record:
    """What unpack found; *settled* are the recipients that are done with, kept to know them again."""

    envelope: Envelope
    fields: bytes
    settled: tuple[Address, ...]
    last: dict[Address, Reply]
    bouncing: tuple[tuple[Address, Reply], ...]
    generation: int
    delayed: bool

    @property
    def known(self) -> tuple[Address, ...]:
        """All recipients that the row was ever about."""
        return (*self.envelope.recipients, *(one for one, _ in self.bouncing), *self.settled)


def pack(entry: Entry, settled: Iterable[Address] = ()) -> bytes:
    """The record of an entry. Token, site, times and attempts are columns, not in it."""
    message = entry.message
    envelope = message.envelope
    sender, origin, recipients = envelope.sender, envelope.origin, envelope.recipients
    fields, bouncing, settled = message.fields, entry.bouncing, tuple(settled)
    strings = [
        sender.local, sender.domain, envelope.body_type,
        origin.protocol, origin.client, origin.helo, origin.user, fields,
    ]  # fmt: skip
    flags = envelope.smtputf8 * SMTPUTF8 | entry.delayed * DELAYED | origin.made_here * MADE_HERE
    if origin.born > 0:
        flags |= BORN
    lengths = [len(string) for string in strings]
    if entry.last or bouncing or settled:
        _pack_states(strings, entry, settled)
    else:
        for one in recipients:
            strings += RECIPIENT.pack(0, len(one.local), len(one.domain)), one.local, one.domain
    rest = b"".join(strings)
    whole = (
        HEAD.pack(
            HEAD.size + len(rest) + TAIL.size, VERSION, flags, origin.port, entry.generation,
            len(recipients), len(bouncing), len(settled), *lengths,
        )
        + rest
    )  # fmt: skip
    return whole + TAIL.pack(crc32(whole), END)


def _pack_states(strings: list[bytes], entry: Entry, settled: tuple[Address, ...]) -> None:
    last = entry.last
    states: list[tuple[Address, Reply | None, Reply | None]] = [
        *((one, None, last.get(one)) for one in entry.message.envelope.recipients),
        *((one, reply, last.get(one)) for one, reply in entry.bouncing),
        *((one, None, None) for one in settled),
    ]
    for one, bounce, latest in states:
        marks = (bounce is not None) * BOUNCE | (latest is not None) * LAST
        strings += RECIPIENT.pack(marks, len(one.local), len(one.domain)), one.local, one.domain
        for reply in (bounce, latest):
            if reply is not None:
                texts = [text.encode("utf-8", "surrogatepass") for text in (reply.status, reply.text, reply.mta)]
                strings.append(REPLY.pack(reply.code, *map(len, texts)))
                strings += texts


def unpack(record: bytes, token: Token, born: Seconds = 0.0) -> Record:
    """What pack was given, of an entry *born* then; raises DamagedRecord for anything else."""
    try:
        return _unpack(record, token, born)
    except (StructError, UnicodeDecodeError) as error:
        raise DamagedRecord(str(error)) from error


def _unpack(record: bytes, token: Token, born: Seconds) -> Record:
    length, version, flags, port, generation, todo, bouncing, settled, *lengths = HEAD.unpack_from(record)
    end = len(record) - TAIL.size
    if length != len(record) or end < HEAD.size:
        raise DamagedRecord(f"{len(record)} octets where {length} are announced")
    crc, mark = TAIL.unpack_from(record, end)
    if mark != END or crc != crc32(record[:end]):
        raise DamagedRecord("checksum or end mark is wrong")
    if version != VERSION:
        raise DamagedRecord(f"version {version}; this program reads {VERSION}")
    at = HEAD.size
    strings = []
    for size in lengths:
        strings.append(record[at : at + size])
        at += size
    local, domain, body_type, protocol, client, helo, user, fields = strings
    states = list(_states(record, at, end, todo + bouncing + settled))
    if any(bounce is None for _, bounce, _ in states[todo : todo + bouncing]):
        raise DamagedRecord("a bounce without its reply")
    envelope = Envelope(
        token, Address(local, domain), tuple(one for one, _, _ in states[:todo]),
        Origin(protocol, client, port, helo, user, bool(flags & MADE_HERE), born if flags & BORN else 0.0),
        body_type, bool(flags & SMTPUTF8),
    )  # fmt: skip
    return Record(
        envelope, fields, tuple(one for one, _, _ in states[todo + bouncing :]),
        {one: latest for one, _, latest in states if latest is not None},
        tuple((one, bounce) for one, bounce, _ in states[todo : todo + bouncing] if bounce is not None),
        generation, bool(flags & DELAYED),
    )  # fmt: skip


def _states(record: bytes, at: int, end: int, count: int) -> Iterator[tuple[Address, Reply | None, Reply | None]]:
    for _ in range(count):
        marks, local, domain = RECIPIENT.unpack_from(record, at)
        at += RECIPIENT.size
        one = Address(record[at : at + local], record[at + local : at + local + domain])
        at += local + domain
        replies: list[Reply | None] = [None, None]
        for i, mark in enumerate((BOUNCE, LAST)):
            if marks & mark:
                code, status, text, mta = REPLY.unpack_from(record, at)
                texts = []
                at += REPLY.size
                for size in (status, text, mta):
                    texts.append(record[at : at + size].decode("utf-8", "surrogatepass"))
                    at += size
                replies[i] = Reply(code, texts[0], texts[1], texts[2])
        if at > end:
            break
        yield one, replies[0], replies[1]
    if at != end:
        raise DamagedRecord("lengths do not add up")


def pack_addresses(addresses: Iterable[Address]) -> bytes:
    """Addresses alone, for a tombstone."""
    return b"".join([PAIR.pack(len(one.local), len(one.domain)) + one.local + one.domain for one in addresses])


def unpack_addresses(packed: bytes) -> Iterator[Address]:
    """The addresses of a tombstone; what is cut off at the end is left out."""
    at = 0
    while at + PAIR.size <= len(packed):
        local, domain = PAIR.unpack_from(packed, at)
        at += PAIR.size
        if at + local + domain > len(packed):
            return
        yield Address(packed[at : at + local], packed[at + local : at + local + domain])
        at += local + domain
