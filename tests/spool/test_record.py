from __future__ import annotations

import contextlib
import struct
from zlib import crc32

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qmq.mail import Address, Entry, Envelope, MemoryBody, Message, Origin, Reply, Token
from qmq.spool.record import END, DamagedRecord, pack, pack_addresses, unpack, unpack_addresses

TOKEN = Token(b"peer", 1)
octets = st.binary(max_size=20)
texts = st.text(st.characters(), max_size=20)
addresses = st.builds(Address, octets, octets)
replies = st.builds(Reply, st.integers(200, 599), texts, texts, texts)
origins = st.builds(Origin, octets, octets, st.integers(0, 65535), octets, octets, st.booleans())


@st.composite
def entries(draw: st.DrawFn) -> tuple[Entry, tuple[Address, ...]]:
    everybody = draw(st.lists(addresses, unique=True, max_size=6))
    cut = draw(st.integers(0, len(everybody)))
    end = draw(st.integers(cut, len(everybody)))
    envelope = Envelope(
        TOKEN, draw(addresses), tuple(everybody[:cut]), draw(origins), draw(octets), draw(st.booleans())
    )
    entry = Entry(1, Message(envelope, draw(octets), MemoryBody(b"")), b"", 0)
    entry.bouncing = tuple((one, draw(replies)) for one in everybody[cut:end])
    entry.last = {one: draw(replies) for one in everybody[:end] if draw(st.booleans())}
    entry.generation = draw(st.integers(0, 2**32 - 1))
    entry.delayed = draw(st.booleans())
    return entry, tuple(everybody[end:])


class RecordTests(SynchronousTestCase):
    @given(entries())
    def test_there_and_back(self, made: tuple[Entry, tuple[Address, ...]]) -> None:
        """What goes into a record comes out of it, whatever octets it is made of."""
        entry, settled = made

        found = unpack(pack(entry, settled), TOKEN)

        self.assertEqual(found.envelope, entry.message.envelope)
        self.assertEqual(found.fields, entry.message.fields)
        self.assertEqual((found.last, found.bouncing, found.settled), (entry.last, entry.bouncing, settled))
        self.assertEqual((found.generation, found.delayed), (entry.generation, entry.delayed))

    @given(entries(), st.data())
    def test_damage(self, made: tuple[Entry, tuple[Address, ...]], data: st.DataObject) -> None:
        """A record that is cut, lengthened or changed anywhere is told from a good one."""
        record = pack(*made)
        at = data.draw(st.integers(0, len(record) - 1))
        changed = bytes([record[at] ^ data.draw(st.integers(1, 255))])

        for bad in (record[:at], record + b"\0", record[:at] + changed + record[at + 1 :], bytes(len(record))):
            self.assertRaises(DamagedRecord, unpack, bad, TOKEN)

    @given(entries(), st.data())
    def test_lies(self, made: tuple[Entry, tuple[Address, ...]], data: st.DataObject) -> None:
        """A record whose checksum is right but whose lengths are not is damaged or read, and never more than that."""
        record = pack(*made)[:-8]
        at = data.draw(st.integers(4, len(record) - 1))
        lie = record[:at] + bytes([data.draw(st.integers(0, 255))]) + record[at + 1 :]

        with contextlib.suppress(DamagedRecord):
            unpack(lie + struct.pack("<I4s", crc32(lie), END), TOKEN)

    @given(st.binary(max_size=200))
    def test_foreign(self, octets: bytes) -> None:
        """Foreign octets are damaged, and nothing else."""
        self.assertRaises(DamagedRecord, unpack, octets, TOKEN)

    def test_version(self) -> None:
        """A record of a later version is not misread."""
        entry = Entry(1, Message(Envelope(TOKEN, Address(b"", b""), ()), b"", MemoryBody(b"")), b"", 0)
        later = bytearray(pack(entry)[:-8])
        later[4] = 2

        error = self.assertRaises(
            DamagedRecord, unpack, bytes(later) + struct.pack("<I4s", crc32(bytes(later)), END), TOKEN
        )
        self.assertIn("version 2", str(error))

    @given(st.lists(addresses))
    def test_addresses(self, some: list[Address]) -> None:
        """Addresses of a tombstone come back; of one that was cut the whole ones do."""
        packed = pack_addresses(some)

        self.assertEqual(list(unpack_addresses(packed)), some)
        if some:
            self.assertEqual(list(unpack_addresses(packed[:-1])), list(some[:-1]) if packed[-1:] else some)
