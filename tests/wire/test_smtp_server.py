"""A client's octets: the same events and replies however they are cut."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qmq.mail import Address, Reply
from qmq.wire.smtp_events import (
    BodyPart,
    Chunk,
    DataStart,
    Event,
    Hello,
    MailFrom,
    Malformed,
    Noop,
    Quit,
    RcptTo,
    Reset,
    StartTLS,
)
from qmq.wire.smtp_server import LINE_TOO_LONG, SMTPServerWire

OK = Reply(250, "2.0.0", "ok")
GO_ON = Reply(354, "", "go on")
BYE = Reply(221, "2.0.0", "bye")
READY = Reply(220, "2.0.0", "ready")
NO = Reply(503, "5.5.1", "no")

A = Address(b"a", b"a.org")
B = Address(b"b", b"b.org")
MAIL = b"MAIL FROM:<a@a.org>\r\n"
RCPT = b"RCPT TO:<b@b.org>\r\n"
DATA = b"DATA\r\n"


class Client:
    """Speaks to a wire, and answers its events as a willing server would; whole bodies stand in *events*."""

    def __init__(self, refused: Iterable[type] = (), **bounds: int) -> None:
        self.wire = SMTPServerWire(**bounds)
        self.refused = frozenset(refused)
        self.events: list[Event] = []
        self.replies = b""
        self.most_held = 0
        self._body = b""

    def say(self, data: bytes) -> None:
        """One packet."""
        self.wire.receive(data)
        while (event := self.wire.next_event()) is not None:
            self._hear(event)
        self.replies += self.wire.to_send()
        self.most_held = max(self.most_held, self.wire.held)

    def _hear(self, event: Event) -> None:
        if isinstance(event, BodyPart):
            self._body += event.data
            if not event.end:
                assert event.data, "an empty part"
                assert not self.wire.awaiting
                return
            # How much of a spoilt message was given out before its fault showed is the packets' doing.
            event = BodyPart(b"" if event.fault else self._body, event.end, event.last, event.fault)
        self._body = b""
        self.events.append(event)
        if isinstance(event, Chunk):
            assert not self.wire.awaiting
            return
        assert self.wire.awaiting
        assert self.wire.next_event() is None
        self.wire.reply(self._answer(event))

    def _answer(self, event: Event) -> Reply:
        if type(event) in self.refused:
            return NO
        match event:
            case Malformed(reply):
                return reply
            case BodyPart(fault=Reply() as fault):
                return fault
            case DataStart():
                return GO_ON
            case Quit():
                return BYE
            case StartTLS():
                return READY
            case _:
                return OK


def spoken(stream: Iterable[bytes], refused: Iterable[type] = (), **bounds: int) -> Client:
    client = Client(refused, **bounds)
    for data in stream:
        client.say(data)
    return client


def body(data: bytes, last: bool = True, fault: Reply | None = None) -> BodyPart:
    return BodyPart(data, True, last, fault)


class SMTPServerTestCase(SynchronousTestCase):
    """Says everything in one packet, in two cut at every place, in sevens, and octet by octet."""

    def events(self, stream: bytes, refused: Iterable[type] = (), **bounds: int) -> list[Event]:
        """The events of *stream*, the same ones however it is cut; so are the replies."""
        whole = spoken([stream], refused, **bounds)
        for octets in (1, 2, 7):
            pieces = [stream[at : at + octets] for at in range(0, len(stream), octets)]
            self.assertSame(spoken(pieces, refused, **bounds), whole, octets)
        for cut in range(1, len(stream)):
            self.assertSame(spoken([stream[:cut], stream[cut:]], refused, **bounds), whole, cut)
        self.replies = whole.replies
        return whole.events

    def assertSame(self, one: Client, other: Client, why: object) -> None:
        """Both clients got the same events and replies."""
        self.assertEqual(one.events, other.events, why)
        self.assertEqual(one.replies, other.replies, why)

    def codes(self) -> list[int]:
        """The codes of the replies to the last stream."""
        return [int(line[:3]) for line in self.replies.split(b"\r\n") if line]

    def assertClosed(self, events: list[Event], code: int) -> None:
        """The last event ends the session with *code*."""
        last = events[-1]
        assert isinstance(last, Malformed), events
        self.assertTrue(last.close)
        self.assertEqual(last.reply.code, code)


class TransactionTests(SMTPServerTestCase):
    """What clients do in good faith."""

    def test_session(self) -> None:
        """A whole session, all in one packet, gives its events in order, and its replies in order."""
        self.assertEqual(
            self.events(
                b"EHLO me\r\n" + (MAIL + RCPT + DATA + b"Subject: x\r\n\r\n..\r\n.\r\n") * 2 + b"RSET\r\nQUIT\r\n"
            ),
            [
                Hello(b"me", True),
                *[MailFrom(A), RcptTo(B), DataStart(), body(b"Subject: x\r\n\r\n.\r\n")] * 2,
                Reset(),
                Quit(),
            ],
        )
        self.assertEqual(self.codes(), [250, *[250, 250, 354, 250] * 2, 250, 221])

    def test_bdat(self) -> None:
        """BDAT's chunks are taken octet for octet: dots, bare CR and LF, and commands in them mean nothing."""
        first, second = b"..a\r\n.\r\nQUIT\r\n", b"\r\n\n\r.\x00\xff"
        self.assertEqual(
            self.events(
                MAIL + RCPT + b"BDAT %d\r\n%bBDAT %d LAST\r\n%bNOOP\r\n" % (len(first), first, len(second), second)
            ),
            [
                MailFrom(A), RcptTo(B),
                Chunk(len(first), False), body(first, last=False),
                Chunk(len(second), True), body(second),
                Noop(),
            ],
        )  # fmt: skip
        self.assertEqual(self.codes(), [250] * 5)

    def test_empty_bdat(self) -> None:
        """BDAT 0 LAST ends the message; BDAT 0 ends nothing."""
        self.assertEqual(
            self.events(b"BDAT 0\r\nBDAT 2\r\nabBDAT 0 LAST\r\n"),
            [
                Chunk(0, False), body(b"", last=False), Chunk(2, False), body(b"ab", last=False),
                Chunk(0, True), body(b""),
            ],
        )  # fmt: skip

    def test_refused_bdat(self) -> None:
        """The octets of a refused BDAT are read and answered once, never run."""
        self.assertEqual(
            self.events(b"BDAT 8 LAST\r\nDATA\r\n\r\nQUIT\r\n", refused=[BodyPart]),
            [Chunk(8, True), body(b"DATA\r\n\r\n"), Quit()],
        )
        self.assertEqual(self.codes(), [503, 221])

    def test_huge_bdat(self) -> None:
        """A chunk of any size is passed on as it comes, in parts of 64 KiB at most, and never gathered."""
        wire = SMTPServerWire()
        wire.receive(b"BDAT 18446744073709551616\r\n")
        self.assertEqual(wire.next_event(), Chunk(2**64, False))

        for _ in range(3):
            wire.receive(b"x" * 100000)
            sizes = []
            while (part := wire.next_event()) is not None:
                assert isinstance(part, BodyPart)
                sizes.append(len(part.data))
            self.assertEqual(sizes, [65536, 100000 - 65536])
            self.assertEqual(wire.held, 0)

    def test_large_text(self) -> None:
        """A text of some MB passes in parts of 64 KiB at most, the same for a packet as for many."""
        text = b"".join(b"%07d.\r\n..x\r\n" % number for number in range(100000))
        for octets in (len(text) + 3, 65536, 4097):
            wire = SMTPServerWire()
            wire.receive(DATA)
            wire.next_event()
            wire.reply(GO_ON)
            parts = []
            stream = text + b".\r\n"
            for at in range(0, len(stream), octets):
                wire.receive(stream[at : at + octets])
                while (part := wire.next_event()) is not None:
                    assert isinstance(part, BodyPart)
                    parts.append(part)
                self.assertLessEqual(wire.held, 2)
            self.assertLessEqual(max(len(part.data) for part in parts), 65536)
            self.assertEqual(b"".join(part.data for part in parts), text.replace(b"\r\n..", b"\r\n."))
            self.assertEqual([part.end for part in parts], [False] * (len(parts) - 1) + [True])

    def test_say(self) -> None:
        """Banner and EHLO lines go out as they are, in one piece with the replies; EHLO is answered by them."""
        wire = SMTPServerWire()
        wire.say(b"220 me ESMTP\r\n")
        wire.receive(b"EHLO x\r\nNOOP\r\n")
        self.assertEqual(wire.next_event(), Hello(b"x", True))
        self.assertTrue(wire.awaiting)
        wire.say(b"250-me\r\n250 PIPELINING\r\n")
        self.assertEqual(wire.next_event(), Noop())
        wire.reply(OK)

        self.assertEqual(wire.to_send(), b"220 me ESMTP\r\n250-me\r\n250 PIPELINING\r\n250 2.0.0 ok\r\n")
        self.assertEqual(wire.to_send(), b"")


class OrderTests(SMTPServerTestCase):
    """Pipelining (RFC 2920)."""

    def test_waits_for_the_answer(self) -> None:
        """While a command is being checked, those behind it stay where they are, whatever else arrives."""
        wire = SMTPServerWire()
        wire.receive(MAIL + RCPT)
        self.assertEqual(wire.next_event(), MailFrom(A))

        wire.receive(DATA)
        self.assertIsNone(wire.next_event())
        self.assertEqual((wire.held, wire.awaiting), (len(RCPT + DATA), True))

        wire.reply(OK)
        self.assertEqual(wire.next_event(), RcptTo(B))
        self.assertIsNone(wire.next_event())
        wire.reply(OK)
        self.assertEqual(wire.next_event(), DataStart())
        self.assertEqual(wire.held, 0)

    def test_ten_thousand(self) -> None:
        """Ten thousand commands in one packet are answered, in order, without going deeper."""
        stream = b"".join(b"MAIL FROM:<%d@a.org>\r\nNOOP\r\n" % number for number in range(5000))
        client = spoken([stream])

        expected: list[Event] = []
        for number in range(5000):
            expected += [MailFrom(Address(b"%d" % number, b"a.org")), Noop()]
        self.assertEqual(client.events, expected)
        self.assertEqual(client.replies, OK.line * 10000)
        self.assertEqual(client.wire.held, 0)

    def test_ten_thousand_chunks(self) -> None:
        """Ten thousand tiny chunks leave nothing behind in the wire."""
        client = spoken([b"BDAT 1\r\nx" * 10000])

        self.assertEqual(len(client.events), 20000)
        self.assertEqual(client.wire.held, 0)

    def test_refused_data(self) -> None:
        """After a refused DATA the wire reads commands; the first header field that comes ends the session."""
        events = self.events(MAIL + DATA + b"NOOP\r\nSubject: x\r\n\r\nRSET\r\n.\r\n", refused=[DataStart])

        self.assertEqual(events[:3], [MailFrom(A), DataStart(), Noop()])
        self.assertClosed(events, 500)
        self.assertEqual(self.codes(), [250, 503, 250, 500])

    def test_text_taken_and_refused(self) -> None:
        """A text that is read only to be refused never runs as commands."""
        events = self.events(DATA + b"MAIL FROM:<x@x.org>\r\nDATA\r\n.\r\nNOOP\r\n", refused=[BodyPart])

        self.assertEqual(events, [DataStart(), body(b"MAIL FROM:<x@x.org>\r\nDATA\r\n"), Noop()])
        self.assertEqual(self.codes(), [354, 503, 250])

    def test_after_an_error(self) -> None:
        """A bad command, a refused message or chunk leaves the wire as it was: the next command is read as ever."""
        events = self.events(
            MAIL + b"BDAT 1\r\nxVRFY\r\nXYZ\r\nDATA\r\na\r\n.\r\n" + RCPT + b"DATA x\r\n", refused=[BodyPart]
        )

        self.assertEqual(
            [type(event) for event in events],
            [MailFrom, Chunk, BodyPart, Malformed, Malformed, DataStart, BodyPart, RcptTo, Malformed],
        )
        self.assertEqual(self.codes(), [250, 503, 501, 500, 354, 503, 250, 501])

    def test_after_quit(self) -> None:
        """Nothing behind QUIT is heard."""
        self.assertEqual(self.events(b"QUIT\r\nMAIL FROM:<a@b>\r\n" + b"x" * 50), [Quit()])

    def test_after_421(self) -> None:
        """Nothing is heard any more once we have said 421, in the middle of a text as well."""
        wire = SMTPServerWire()
        wire.receive(DATA)
        wire.next_event()
        wire.reply(GO_ON)
        wire.receive(b"abc\r\n")
        wire.reply(Reply(421, "4.4.2", "too slow"))
        wire.receive(b".\r\nNOOP\r\n")

        self.assertIsNone(wire.next_event())
        self.assertEqual(wire.held, 0)


class SmugglingTests(SMTPServerTestCase):
    """Ends of data that are none."""

    LOOKALIKES = (
        b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r.\r\n", b"\r\n.\r", b"\n.\r", b"\r.\n",
        b"\r\n.\r\r\n", b"\r\r\n.\r\n", b"\r\n.\n\r\n", b"\n\r\n.\r\n", b"\r\n\n.\n", b"\r\n\n.\r\n", b"\n\n.\n\n",
        b"\r\n\r.\r\n", b"\r\n\r.\r", b"\n\r.\n\r", b"\r\n.\r\x00\n", b"\r\x00\n.\r\n", b"\r\n.\n\n", b"\n\r\n.\n",
    )  # fmt: skip
    HARMLESS = (
        b"\r\n..\r\n", b"\r\n. \r\n", b"\r\n .\r\n", b"\r\n.\x00\r\n", b"\r\n\x00.\r\n", b"\r\n\x0b.\x0b\r\n",
        b"\x85.\x85", b"\r\n.\xc2\x85\r\n", "\u2028.\u2028".encode(), b"\r\n\\.\r\n",
    )  # fmt: skip
    INNER = b"MAIL FROM:<evil@evil.org>\r\nRCPT TO:<b@b.org>\r\nDATA\r\n"

    def test_lookalikes(self) -> None:
        """A bare CR or LF around a dot refuses the message and ends the session; what it brought is not run."""
        for mark in self.LOOKALIKES:
            events = self.events(MAIL + DATA + b"one" + mark + self.INNER + b"two\r\n.\r\n")
            self.assertClosed(events, 554)
            self.assertEqual(events[:-1], [MailFrom(A), DataStart()], mark)

    def test_harmless(self) -> None:
        """Dots that look like an end mark to somebody else are text."""
        for mark in self.HARMLESS:
            events = self.events(DATA + b"one" + mark + self.INNER + b"two\r\n.\r\nRSET\r\n")
            text = (b"one" + mark + self.INNER + b"two\r\n").replace(b"\r\n.", b"\r\n")
            self.assertEqual(events, [DataStart(), body(text), Reset()], mark)

    def test_bare(self) -> None:
        """A bare CR or LF anywhere in the text refuses it: in the first line, in the last, at the edge of a packet."""
        for text in (b"\n", b"\ra", b"a\n", b"a\rb", b"..\n", b"a\r\r\n", b"\r\n\n", b"x" * 30 + b"\nb\r\n"):
            events = self.events(DATA + text + b"\r\n.\r\nNOOP\r\n")
            self.assertClosed(events, 554)
            self.assertEqual(events[0], DataStart())
            self.assertEqual(len(events), 2)

    def test_long_line(self) -> None:
        """A line that is too long spoils its message, whose true end is found; nothing in it is run."""
        for filler in (b"x" * 70, b"x" * 31 + b"\r\nQUIT\r\n..QUIT" + b"y" * 40):
            events = self.events(
                DATA + b"a\r\n" + filler + b"\r\nQUIT\r\n..\r\n.\r\nNOOP\r\n" + DATA + b"b\r\n.\r\n", line_octets=32
            )
            last = events[1]
            assert isinstance(last, BodyPart)
            self.assertEqual((last.end, last.last, last.fault), (True, True, LINE_TOO_LONG))
            self.assertEqual(events[2:], [Noop(), DataStart(), body(b"b\r\n")])

    def test_endless_line(self) -> None:
        """A line without end takes no memory."""
        client = spoken([DATA] + [b"x" * 65536] * 50 + [b"\r\nQUIT\r\n.\r\nNOOP\r\n"])

        self.assertLessEqual(client.most_held, 2)
        last = client.events[1]
        assert isinstance(last, BodyPart)
        self.assertEqual(last.fault, LINE_TOO_LONG)
        self.assertLessEqual(len(last.data), 65536)
        self.assertEqual(client.events[2:], [Noop()])

    def test_long_command(self) -> None:
        """A command that is too long ends the session, the most usual too."""
        mail = b"MAIL FROM:<a@b>\r\n"

        self.assertEqual(self.events(mail, command_octets=len(mail)), [MailFrom(Address(b"a", b"b"))])
        self.assertClosed(self.events(mail, command_octets=len(mail) - 1), 500)

    def test_bare_in_a_spoilt_text(self) -> None:
        """A bare LF behind a line that is too long still ends the session."""
        self.assertClosed(self.events(DATA + b"x" * 40 + b"\r\na\n.\r\n\r\n.\r\n", line_octets=32), 554)


class CommandLineTests(SMTPServerTestCase):
    """Lines that are no commands."""

    def test_bare_lf(self) -> None:
        """A command ends in CRLF; a bare LF ends the session, and what is behind it is not run."""
        for stream in (
            b"NOOP\nQUIT\r\n",
            b"\nNOOP\r\n",
            b"MAIL FROM:<a@b>\nRCPT TO:<a@b>\n",
            b"XY\nZ\r",
            b"\n\r",
            b"NOOP x\ny\r\n",
        ):
            events = self.events(b"RSET\r\n" + stream)
            self.assertEqual(len(events), 2, stream)
            self.assertClosed(events, 500)

    def test_bare_cr(self) -> None:
        """A CR within a command is 501; the line goes on to its CRLF."""
        self.events(b"NOOP\rQUIT\r\nNOOP\r\r\nRCPT TO:<a@b>\rX\r\nNOOP\r\n")
        self.assertEqual(self.codes(), [501, 501, 501, 250])

    def test_injection(self) -> None:
        """CR, LF and NUL in an address or a name never get into an event."""
        self.events(b'MAIL FROM:<"a\rb"@c>\r\nRCPT TO:<a\x00@b>\r\nEHLO a\x00b\r\nMAIL FROM:<a@b> ENVID=a\x00\r\n')
        self.assertEqual(self.codes(), [501] * 4)
        self.assertClosed(self.events(b'MAIL FROM:<"a\nb"@c>\r\n'), 500)

    def test_endless(self) -> None:
        """A command that is too long ends the session, as soon as it is, and no octet of it is kept."""
        self.assertEqual(self.events(b"NOOP " + b"x" * 25 + b"\r\n", command_octets=32), [Noop()])
        for octets in (26, 27, 40, 200):
            events = self.events(b"NOOP " + b"x" * octets + b"\r\nRSET\r\n", command_octets=32)
            self.assertEqual(len(events), 1)
            self.assertClosed(events, 500)
        client = spoken([b"x" * 60000] * 20)
        self.assertEqual((len(client.events), client.most_held), (1, 0))

    def test_endless_and_bare(self) -> None:
        """Whichever comes first, a bare LF or the limit, is what is told."""
        for octets in (30, 31, 32, 33):
            events = self.events(b"x" * octets + b"\n" + b"y" * 60 + b"\r\n", command_octets=32)
            self.assertClosed(events, 500)

    def test_foreign(self) -> None:
        """HTTP and TLS in clear end the session at their first line or octet; SMTP inside a POST is not run."""
        for stream in (
            b"GET / HTTP/1.1\r\nHost: mx\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: mx\r\nContent-Length: 99\r\n\r\nMAIL FROM:<a@b>\r\n",
            b"GET /\nMAIL FROM:<a@b>\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\nMAIL FROM:<a@b>\r\n",
            b"\x16\n\r\n",
        ):
            events = self.events(stream)
            self.assertEqual(len(events), 1)
            self.assertClosed(events, 500)

    def test_utf8_recipient(self) -> None:
        """A non-ASCII recipient is taken only after an accepted MAIL that said SMTPUTF8."""
        rcpt = "RCPT TO:<ü@ü.org>\r\n".encode()
        address = RcptTo(Address("ü".encode(), "ü.org".encode()))
        with_utf8 = MAIL.replace(b"\r\n", b" SMTPUTF8\r\n")

        self.events(rcpt + MAIL + rcpt)
        self.assertEqual(self.codes(), [553, 250, 553])
        self.assertEqual(self.events(with_utf8 + rcpt)[1], address)
        self.events(with_utf8 + MAIL + rcpt)
        self.assertEqual(self.codes(), [250, 250, 553])
        self.events(with_utf8 + rcpt, refused=[MailFrom])
        self.assertEqual(self.codes(), [503, 553])

    @given(
        stream=st.lists(
            st.sampled_from(
                [
                    *(
                        MAIL,
                        RCPT,
                        DATA,
                        b"RSET\r\n",
                        b"BDAT 4 LAST\r\n",
                        b"BDAT 0\r\n",
                        b"NOOP",
                        b"XYZ",
                        b"\x16",
                        b"GET /",
                    ),
                    *(
                        b"\r",
                        b"\n",
                        b"\r\n",
                        b".",
                        b".\r\n",
                        b"\r\n.\r\n",
                        b"a",
                        b"x" * 20,
                        b"QUIT\r\n",
                        b"STARTTLS\r\n",
                    ),
                ]
            ),
            max_size=20,
        ).map(b"".join),
        cuts=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    )
    def test_any_octets(self, stream: bytes, cuts: list[int]) -> None:
        """Whatever is said, the cut of the packets changes neither events nor replies."""
        pieces = []
        at = 0
        while at < len(stream):
            octets = cuts[len(pieces) % len(cuts)]
            pieces.append(stream[at : at + octets])
            at += octets
        # What is said behind STARTTLS is forgotten or not, by when it comes: here TLS is refused.
        bounds = {"line_octets": 24, "command_octets": 48}
        self.assertSame(spoken(pieces, [StartTLS], **bounds), spoken([stream], [StartTLS], **bounds), stream)


class StartTLSTests(SynchronousTestCase):
    """STARTTLS (RFC 3207)."""

    def test_forgets(self) -> None:
        """What was said in clear behind STARTTLS is forgotten when TLS begins, whenever it came."""
        wire = SMTPServerWire()
        wire.receive(b"STARTTLS\r\nNOOP\r\nRSET")
        self.assertEqual(wire.next_event(), StartTLS())
        wire.receive(b"\r\nQUIT\r\n")
        wire.reply(READY)

        self.assertEqual(wire.held, 0)
        self.assertIsNone(wire.next_event())
        wire.receive(b"EHLO x\r\n")
        self.assertEqual(wire.next_event(), Hello(b"x", True))

    def test_refused(self) -> None:
        """If TLS is refused, the session goes on with what was pipelined."""
        client = spoken([b"STARTTLS\r\nNOOP\r\n"], [StartTLS])

        self.assertEqual(client.events, [StartTLS(), Noop()])

    def test_utf8_forgotten(self) -> None:
        """A MAIL from before TLS allows nothing inside it."""
        client = spoken([MAIL.replace(b"\r\n", b" SMTPUTF8\r\n"), b"STARTTLS\r\n", "RCPT TO:<ü@b>\r\n".encode()])

        self.assertTrue(client.replies.endswith(b"\r\n") and b"553 5.6.7" in client.replies)
