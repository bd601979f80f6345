"""Where a text ends, its dots, its lines: the same wherever it is cut."""

from __future__ import annotations

import re
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qmq.wire.text import LineCheck, Stuffer, Text, whole_text
from qmq.wire.text import stuffed as stuffed_whole

# Octets of which end marks, and what looks like them, are made.
PIECES = st.lists(st.sampled_from([b"\r\n", b".", b"..", b"a", b"word", b"\r\n.", b".\r\n"]), max_size=25).map(b"".join)
DIRTY = st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b".", b"a"]), max_size=25).map(b"".join)
CUTS = st.lists(st.integers(0, 60), max_size=6)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    return [data[start:end] for start, end in pairwise(places)]


class Read:
    """What a Text made of a stream: the text until its end, what was left over, and its faults."""

    def __init__(self, stream: list[bytes], part_octets: int = 65536, line_octets: int = 65536) -> None:
        text = Text(line_octets, part_octets)
        self.data = self.rest = b""
        self.ended = False
        self.most_held = 0
        for data in stream:
            self.rest += data
            while not self.ended and not text.lines.bare:
                piece, at, self.ended = text.take(self.rest, 0)
                self.rest = self.rest[at:]
                self.data += piece
                if not piece:
                    break
            if not self.ended:
                self.most_held = max(self.most_held, len(self.rest))
        self.bare = text.lines.bare
        self.too_long = text.lines.too_long


def stuffed(text: bytes, cuts: list[int]) -> bytes:
    stuffer = Stuffer()
    return b"".join(stuffer.feed(piece) for piece in pieces(text, cuts)) + stuffer.end()


class TextTests(SynchronousTestCase):
    """Text that DATA brings."""

    def assertEverywhere(self, stream: bytes, data: bytes, rest: bytes) -> None:
        """Cut at each place, and octet by octet, the text is *data*, and *rest* is left alone."""
        for cut in range(len(stream)):
            for part_octets in (8, 65536):
                read = Read([stream[:cut], stream[cut:]], part_octets)
                self.assertEqual((read.data, read.rest, read.ended, read.bare), (data, rest, True, False), cut)
        read = Read([stream[at : at + 1] for at in range(len(stream))])
        self.assertEqual(read.data, data)

    def test_plain(self) -> None:
        """A text ends at CRLF.CRLF; it keeps the CRLF before the dot, and what follows is not its own."""
        self.assertEverywhere(b"a\r\nbc\r\n.\r\nRSET\r\n", b"a\r\nbc\r\n", b"RSET\r\n")

    def test_empty(self) -> None:
        """A dot in the first line ends an empty text."""
        self.assertEverywhere(b".\r\nNOOP\r\n", b"", b"NOOP\r\n")

    def test_dots(self) -> None:
        """A dot in front of a line is taken away, in the first line too, and no more than one."""
        self.assertEverywhere(
            b"..\r\n...\r\n.a\r\n\r\n..\r\nb.\r\n..c\r\n.\r\n", b".\r\n..\r\na\r\n\r\n.\r\nb.\r\n.c\r\n", b""
        )

    def test_blank_lines(self) -> None:
        """Empty lines stay."""
        self.assertEverywhere(b"\r\n\r\n\r\n.\r\n", b"\r\n\r\n\r\n", b"")

    def test_two_end_marks(self) -> None:
        """The first end mark ends the text, whatever looks like one behind it."""
        self.assertEverywhere(b"a\r\n.\r\n.\r\n", b"a\r\n", b".\r\n")

    def test_nothing_held_back(self) -> None:
        """Never more than two octets wait for what follows."""
        stream = b"..a\r\n.\rno"

        for data in (b"abc\r", b"abc\r\n.", b"abc\r\n.\r", b".", b".\r", stream[:7]):
            read = Read([data])
            self.assertLessEqual(read.most_held, 2, data)
            self.assertFalse(read.ended)

    def test_bare(self) -> None:
        """A bare CR or LF is told wherever the text is cut."""
        for text in (
            b"a\nb",
            b"a\rb",
            b"\na",
            b"\ra",
            b"a\r\r\n",
            b"a\n\r\n",
            b"a\r\n\nb",
            b"..\nb",
            b".\rb",
            b"\r\n.\rb",
        ):
            stream = text + b"\r\n.\r\n"
            for cut in range(len(stream)):
                self.assertTrue(Read([stream[:cut], stream[cut:]]).bare, (stream, cut))

    def test_cr_and_lf_apart(self) -> None:
        """A bare CR and a bare LF do not make up for each other."""
        self.assertTrue(Read([b"a\rb\nc\r\n.\r\n"]).bare)

    def test_long_line(self) -> None:
        """A line over the limit is told, its CRLF counted and its stuffed dot not; the end is found all the same."""
        for line, too_long in (
            (b"x" * 18, False),
            (b"x" * 19, True),
            (b".." + b"x" * 17, False),
            (b".." + b"x" * 18, True),
        ):
            for stream in (line + b"\r\n.\r\n", b"ab\r\n" * 9 + line + b"\r\nab\r\n.\r\n"):
                for cut in range(len(stream)):
                    read = Read([stream[:cut], stream[cut:]], line_octets=20)
                    self.assertEqual((read.too_long, read.ended), (too_long, True), (stream, cut))

    @given(text=PIECES, cuts=CUTS, wire_cuts=CUTS, part_octets=st.sampled_from([8, 9, 13, 65536]))
    def test_round_trip(self, text: bytes, cuts: list[int], wire_cuts: list[int], part_octets: int) -> None:
        """What Stuffer sends, Text reads: cut anywhere, byte for byte, and only the last line may gain a CRLF."""
        wire = stuffed(text, cuts)
        read = Read(pieces(wire + b"QUIT\r\n", wire_cuts), part_octets)

        expected = text if not text or text.endswith(b"\r\n") else text + b"\r\n"
        self.assertEqual((read.data, read.rest, read.ended, read.bare), (expected, b"QUIT\r\n", True, False))

    @given(stream=DIRTY, cuts=CUTS)
    def test_any_octets(self, stream: bytes, cuts: list[int]) -> None:
        """A text either breaks the rules, or ends at the first true end mark and nowhere else."""
        read = Read(pieces(stream, cuts))

        end = (b"\r\n" + stream).find(b"\r\n.\r\n")
        text = stream[: max(end, 0)] if end >= 0 else stream
        bare = re.compile(rb"\r(?!\n)|(?<!\r)\n")
        if bare.search(text.removesuffix(b"\r").removesuffix(b"\r")):
            self.assertTrue(read.bare)
        elif not bare.search(text.removesuffix(b"\r")):
            self.assertEqual(read.ended, end >= 0)
            self.assertFalse(read.bare)
            if end >= 0:
                self.assertEqual(read.data, re.sub(rb"(?:^|(?<=\r\n))\.", b"", text))

    @given(stream=st.one_of(PIECES, DIRTY), before=st.sampled_from([b"", b"DATA\r\n"]), behind=DIRTY)
    def test_whole(self, stream: bytes, before: bytes, behind: bytes) -> None:
        """What is read whole is what would have been read piece by piece, or it is left to that."""
        buffer = before + stream + b"\r\n.\r\n" + behind
        text = whole_text(buffer, len(before), 20)

        if text is not None:
            read = Read([buffer[len(before) :]], line_octets=20)
            self.assertEqual((read.data, read.ended, read.bare, read.too_long), (text, True, False, False))
            self.assertEqual(read.rest, buffer[len(before) + len(text) + 3 :])

    def test_not_whole(self) -> None:
        """Whole are ordinary texts that are all there, and no others."""
        whole = b"a: b\r\n\r\nword\r\n"
        self.assertEqual(whole_text(whole + b".\r\nQUIT\r\n", 0, 100), whole)
        for text in (
            b"",
            b"a.\r\n",
            b"a\r\n",
            b".\r\n",
            b"..\r\n.\r\n",
            b"a\r\n..\r\n.\r\n",
            b"a\rb\r\n.\r\n",
            b"a\nb\r\n.\r\n",
        ):
            self.assertIsNone(whole_text(text, 0, 100), text)
        self.assertIsNone(whole_text(whole + b".\r", 0, 100))
        self.assertIsNone(whole_text(whole + b".\r\n", 0, len(whole) - 1))


class StufferTests(SynchronousTestCase):
    """Text that we send."""

    def test_dots(self) -> None:
        """A dot that begins a line, the first line too, is doubled; no other is."""
        self.assertEqual(stuffed(b".a\r\nb.c\r\n.\r\n..d\r\n", []), b"..a\r\nb.c\r\n..\r\n...d\r\n.\r\n")

    def test_every_cut(self) -> None:
        """A dot at the edge of a chunk is doubled if it begins a line, and only then."""
        text = b".\r\na.\r\n.b\r\n..\r\n\r\n."

        for first in range(len(text)):
            for second in range(len(text)):
                self.assertEqual(stuffed(text, [first, second]), b"..\r\na.\r\n..b\r\n...\r\n\r\n..\r\n.\r\n")

    def test_end(self) -> None:
        """The end mark brings the CRLF that the last line lacks, and none else."""
        self.assertEqual(stuffed(b"", []), b".\r\n")
        self.assertEqual(stuffed(b"a\r\n", [2]), b"a\r\n.\r\n")
        self.assertEqual(stuffed(b"a", []), b"a\r\n.\r\n")

    def test_whole(self) -> None:
        """A text in one piece, header fields of ours in front, goes out as one that came by pieces."""
        for fields in (b"", b"Received: x\r\n", b".odd: x\r\n.y\r\n"):
            for body in (b"", b".", b".\r\n", b"a", b"a\r\n.\r\n..b\r\n", b"\r\n.", b"a\r\n"):
                self.assertEqual(stuffed_whole(fields, body), stuffed(fields + body, []))

    def test_untouched(self) -> None:
        """A piece without dots to double is passed on as it is, not copied."""
        data = b"a\r\nb.\r\n" * 100

        self.assertIs(Stuffer().feed(data), data)

    def test_empty_piece(self) -> None:
        """An empty piece changes nothing."""
        stuffer = Stuffer()

        self.assertEqual([stuffer.feed(piece) for piece in (b"", b"a\r\n", b"", b".")], [b"", b"a\r\n", b"", b".."])


class LineCheckTests(SynchronousTestCase):
    """Lines of a BDAT text."""

    @given(data=DIRTY, cuts=CUTS, line_octets=st.integers(2, 12))
    def test_any_cut(self, data: bytes, cuts: list[int], line_octets: int) -> None:
        """Bare CR, bare LF and long lines are told, however the text is cut."""
        check = LineCheck(line_octets)
        for piece in pieces(data, cuts):
            check.feed(piece)
        well = check.end()

        bare = re.search(rb"\r(?!\n)|(?<!\r)\n", data) is not None
        *lines, last = data.split(b"\r\n")
        too_long = any(len(line) + 2 > line_octets for line in lines) or len(last) > line_octets
        self.assertEqual(check.bare, bare)
        if not bare:
            self.assertEqual(check.too_long, too_long)
            self.assertEqual(well, not too_long)

    def test_tells_at_once(self) -> None:
        """The answer comes with the piece that breaks the rule, and stays."""
        check = LineCheck()

        self.assertEqual([check.feed(b"a\r\n"), check.feed(b"b\n"), check.feed(b"c\r\n")], [True, False, False])

    def test_two_crs_at_the_edge(self) -> None:
        """Of two CRs before the LF the first is bare, even if the LF comes in the next piece."""
        check = LineCheck()
        check.feed(b"a\r\r")
        check.feed(b"\n")

        self.assertTrue(check.bare)

    def test_cr_at_the_end(self) -> None:
        """A CR at the end of the text is bare."""
        check = LineCheck()

        self.assertTrue(check.feed(b"a\r"))
        self.assertFalse(check.end())
