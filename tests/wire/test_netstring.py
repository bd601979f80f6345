from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qmq.wire.netstring import ProtocolError, pack, read_items, read_length

BAD_LENGTHS = (
    b":", b"x", b"+3:", b"-3:", b" 3:", b"3 :", b"1_0:", b"0x3:", b"03:", b"00:", b"0000000000000", b"\xd9\xa1:",
    b"\xb2:", b"1e3:", b"1.0:", b"1\n:", b"9999999999999:", b"9" * 100, b"0" * 100, b"%d:" % (2**64 + 5),
    b"GET / HTTP/1.1",
)  # fmt: skip


class LengthTests(SynchronousTestCase):
    def test_no_number_of_ours(self) -> None:
        """A length that is not plain ASCII digits, or has a leading zero or no end, is a protocol error."""
        for length in BAD_LENGTHS:
            with self.assertRaises(ProtocolError, msg=length):
                read_length(length, 0)

    def test_refused_at_once(self) -> None:
        """What cannot become a length is refused before its colon, or its hundredth digit, is awaited."""
        for begun in (b"x", b"-", b"00", b"1_", b"9" * 13):
            with self.assertRaises(ProtocolError, msg=begun):
                read_length(begun, 0)

    def test_more_is_needed(self) -> None:
        """A length that has only begun is waited for."""
        for begun in (b"", b"0", b"1", b"999999999999"):
            self.assertIsNone(read_length(begun, 0))

    def test_length(self) -> None:
        """A length is read from where it is said to begin; the octets begin behind its colon."""
        self.assertEqual(read_length(b"3:abc,0:,", 0), (3, 2))
        self.assertEqual(read_length(b"3:abc,0:,", 6), (0, 8))
        self.assertEqual(read_length(b"999999999999:", 0), (999999999999, 13))


class ItemsTests(SynchronousTestCase):
    @given(st.lists(st.binary(max_size=30), max_size=6))
    def test_round_trip(self, items: list[bytes]) -> None:
        """Any octets survive in netstrings, side by side."""
        self.assertEqual(read_items(b"".join(map(pack, items))), items)

    def test_does_not_fit(self) -> None:
        """A list that its items do not fill to the octet is a protocol error."""
        for data in (b"5:a@b.c", b"5:a@b.c;", b"6:a@b.c,", b"4:a@b.c,", b"5:a@b.c,3", b"5:a@b.c,,", b"5:a@b.c,x"):
            with self.assertRaises(ProtocolError, msg=data):
                read_items(data)
