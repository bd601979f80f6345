from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qmq.mail import Reply
from qmq.wire.replies import ProtocolError, ReplyParser
from qmq.wire.smtp_envelope import extensions


def read(data: bytes, step: int = 0, **arguments) -> list[Reply]:
    """All replies of these bytes, fed in pieces of *step* octets."""
    parser = ReplyParser(**arguments)
    found = []
    step = step or len(data) or 1
    for start in range(0, len(data), step):
        parser.receive(data[start : start + step])
        while (reply := parser.next_reply()) is not None:
            found.append(reply)
    return found


class ReplyParserTests(SynchronousTestCase):
    def test_one_line(self) -> None:
        """A reply has its code, the enhanced code of its text, the text, and who said it."""
        self.assertEqual(
            read(b"550 5.1.1 no such user\r\n", mta="mx (192.0.2.1)"),
            [Reply(550, "5.1.1", "no such user", "mx (192.0.2.1)")],
        )

    def test_cut_anywhere(self) -> None:
        """It does not matter how the network cuts the bytes."""
        data = b"250-2.1.0 a\r\n250-2.1.0 b\r\n250 2.1.0 c\r\n354 go\r\n550 no\n250\r\n421 4.3.2 bye\r\n"
        whole = read(data)

        self.assertEqual([reply.code for reply in whole], [250, 354, 550, 250, 421])
        self.assertEqual(whole[0].text, "a\nb\nc")
        for step in range(1, len(data)):
            self.assertEqual(read(data, step), whole)

    def test_status_derived(self) -> None:
        """Without an enhanced code, or with one of another class, the code's class is the status."""
        statuses = [reply.status for reply in read(b"250 ok\r\n550 4.2.2 full\r\n354 2.0.0 x\r\n450 4.2.1 x\r\n")]

        self.assertEqual(statuses, ["2.0.0", "5.0.0", "", "4.2.1"])

    def test_bare_lf(self) -> None:
        """A server that ends its lines in LF alone is understood."""
        self.assertEqual([reply.text for reply in read(b"250-a\n250 b\n")], ["a\nb"])

    def test_last_code_counts(self) -> None:
        """If the lines of a reply have different codes of one meaning, the last counts."""
        self.assertEqual(read(b"550-5.1.1 a\r\n554 5.1.1 b\r\n")[0].code, 554)

    def test_contradiction(self) -> None:
        """If the lines of a reply say both yes and no, it is neither: a temporary failure."""
        for data in (b"250-ok\r\n550 no\r\n", b"550-no\r\n250 ok\r\n", b"250-ok\r\n550-no\r\n250 ok\r\n"):
            self.assertEqual(read(data)[0].code, 451)

    def test_unprintable(self) -> None:
        """Only printable ASCII is kept."""
        self.assertEqual(read(b"550 a\0b\x1b[2J\xff\rc\r\n")[0].text, "a?b?[2J??c")

    def test_endless_line(self) -> None:
        """A line without end is a breach of protocol at 4096 octets, however it drips."""
        for step in (1, 7, 4096, 10000):
            self.assertRaises(ProtocolError, read, b"250 " + b"x" * 5000, step)

    def test_long_line(self) -> None:
        """Of a long line 500 octets are kept."""
        self.assertEqual(len(read(b"250 " + b"x" * 4000 + b"\r\n")[0].text), 500)

    def test_endless_lines(self) -> None:
        """A reply that never comes to its last line is a breach of protocol."""
        self.assertRaises(ProtocolError, read, b"250-x\r\n" * 257)

    def test_many_lines(self) -> None:
        """Of many lines the first eight are kept."""
        self.assertEqual(read(b"250-x\r\n" * 200 + b"250 y\r\n")[0].text, "\n".join("x" * 8))

    def test_no_reply(self) -> None:
        """What does not begin with a code is a breach of protocol."""
        for data in (
            b"hello\r\n",
            b"\r\n",
            b"25\r\n",
            b"2500 x\r\n",
            b"999 x\r\n",
            b"150 x\r\n",
            b"\xd9\xa2\xd9\xa5 x\r\n",
        ):
            self.assertRaises(ProtocolError, read, data)

    def test_held(self) -> None:
        """It is known whether anything stands behind a reply."""
        parser = ReplyParser()
        parser.receive(b"220 go\r\n2")
        parser.next_reply()
        self.assertTrue(parser.held)

        parser = ReplyParser()
        parser.receive(b"220 go\r\n")
        parser.next_reply()
        self.assertFalse(parser.held)

    def test_alone(self) -> None:
        """A single whole line is known at a glance, and as the same reply; all else, or behind else, is left alone."""
        for line in (b"250 ok\r\n", b"250 2.6.0 <x> queued\r\n", b"451 4.3.0 no\r\n", b"250 ok\r\n"):
            parser = ReplyParser("mx", tls="TLSv1.3")
            self.assertEqual(parser.alone(line), read(line, mta="mx", tls="TLSv1.3")[0])
            self.assertFalse(parser.held)

        parser = ReplyParser()
        parser.alone(b"250 ok\r\n")
        for data in (
            b"250 ok", b"250 ok\r", b"250 ok\n", b"250-ok\r\n", b"250 ok\r\n250 ok\r\n", b"250 ok\r\n2", b"25", b"\r\n",
            b"250\r\n", b"250 5.1.1 no\r\n", b"",
        ):  # fmt: skip
            self.assertIsNone(parser.alone(data), data)
        parser.receive(b"250-a\r\n")
        self.assertIsNone(parser.next_reply())
        self.assertIsNone(parser.alone(b"250 ok\r\n"))
        parser.receive(b"250 b\r\n")
        self.assertEqual(parser.next_reply(), Reply(250, "2.0.0", "a\nb"))

    @given(st.lists(st.binary(max_size=40), max_size=10))
    def test_anything(self, pieces: list[bytes]) -> None:
        """Whatever comes, there is a reply, a wait, or a breach of protocol; never more text than allowed."""
        parser = ReplyParser()
        try:
            for piece in pieces:
                parser.receive(piece)
                while (reply := parser.next_reply()) is not None:
                    self.assertTrue(200 <= reply.code < 600)
                    self.assertLessEqual(len(reply.text), 8 * 501)
        except ProtocolError:
            pass


class ExtensionsTests(SynchronousTestCase):
    def test_offered(self) -> None:
        """What EHLO's answer offers is known, in either case and with SIZE's limit."""
        reply = read(b"250-mx\r\n250-size 1000\r\n250-PIPELINING\r\n250-XYZ 1\r\n250 8BitMime\r\n")[0]
        offered = extensions(reply)

        self.assertEqual(
            (offered.size, offered.pipelining, offered.eightbit, offered.chunking), (1000, True, True, False)
        )

    def test_greeting_is_no_extension(self) -> None:
        """The first line is the server's name, not an extension."""
        self.assertFalse(extensions(read(b"250 PIPELINING\r\n")[0]).pipelining)

    def test_size_without_limit(self) -> None:
        """SIZE without a number, or with nonsense, has no limit."""
        for word in (b"SIZE", b"SIZE 0", b"SIZE x", b"SIZE " + b"9" * 30, b"SIZE -1"):
            self.assertEqual(extensions(read(b"250-mx\r\n250 " + word + b"\r\n")[0]).size, 0)
