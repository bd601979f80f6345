"""One command line: an event, or the reply that says why not."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qmq.mail import NULL_SENDER, Address
from qmq.wire.path import PLAIN_OCTETS
from qmq.wire.smtp_commands import USUAL, parse_command, usual_command
from qmq.wire.smtp_events import (
    Chunk,
    DataStart,
    Hello,
    Help,
    MailFrom,
    Malformed,
    Noop,
    Quit,
    RcptTo,
    Reset,
    StartTLS,
    Verify,
)

A = Address(b"a", b"b.org")


class CommandTests(SynchronousTestCase):
    """parse_command."""

    def assertRefused(self, code: int, status: str, *lines: bytes, close: bool = False) -> None:
        """Each of *lines* is answered so."""
        for line in lines:
            event = parse_command(line)
            assert isinstance(event, Malformed), (line, event)
            self.assertEqual((event.reply.code, event.reply.status, event.close), (code, status, close), line)

    def test_plain(self) -> None:
        """Every command is known in any case, and may have spaces behind it."""
        for line, event in (
            (b"DATA", DataStart()),
            (b"RSET", Reset()),
            (b"NOOP", Noop()),
            (b"NOOP what ever", Noop()),
            (b"QUIT", Quit()),
            (b"HELP", Help()),
            (b"HELP MAIL", Help()),
            (b"VRFY alice", Verify()),
            (b"STARTTLS", StartTLS()),
            (b"EHLO Mail.example.org", Hello(b"Mail.example.org", True)),
            (b"HELO under_score", Hello(b"under_score", False)),
            (b"EHLO [IPv6:2001:db8::1]", Hello(b"[IPv6:2001:db8::1]", True)),
            (b"BDAT 86 LAST", Chunk(86, True)),
            (b"BDAT 0", Chunk(0, False)),
            (b"BDAT 99999999999999999999", Chunk(99999999999999999999, False)),
        ):
            verb, *argument = line.split(b" ", 1)
            for variant in (verb, verb.lower(), verb.title()):
                self.assertEqual(parse_command(b" ".join([variant, *argument])), event)
                self.assertEqual(parse_command(b" ".join([variant, *argument]) + b"  "), event)

    def test_mail(self) -> None:
        """MAIL's parameters are read in any order and case."""
        for line, event in (
            (b"MAIL FROM:<a@b.org>", MailFrom(A)),
            (b"mail from: <a@b.org> ", MailFrom(A)),
            (b"MAIL FROM:<>", MailFrom(NULL_SENDER)),
            (b"MAIL FROM:<> SIZE=123", MailFrom(NULL_SENDER, 123)),
            (b"MAIL FROM:<a@b.org> SIZE=00000000000000000007", MailFrom(A, 7)),
            (b"MAIL FROM:<a@b.org> SIZE=7 BODY=8BITMIME", MailFrom(A, 7, b"8BITMIME")),
            (b"MAIL FROM:<a@b.org> body=binarymime size=7", MailFrom(A, 7, b"BINARYMIME")),
            (b"MAIL FROM:<a@b.org> SMTPUTF8  BODY=7bit", MailFrom(A, 0, b"7BIT", True)),
            ("MAIL FROM:<ä@b.org> SmtpUtf8".encode(), MailFrom(Address("ä".encode(), b"b.org"), 0, b"7BIT", True)),
        ):
            self.assertEqual(parse_command(line), event)

    def test_bad_mail(self) -> None:
        """Broken, unknown and doubled parameters are told apart; so are missing brackets, domains and SMTPUTF8."""
        mail = b"MAIL FROM:<a@b.org>"
        self.assertRefused(
            501, "5.5.4",
            b"MAIL", b"MAILFROM<a@b>", b"MAIL <a@b>", b"MAIL FROM<a@b>", b"MAIL  FROM:<a@b>", b"MAIL FROM :<a@b>",
            b"MAIL TO:<a@b>", b"MAIL FROM:a@b", b"MAIL FROM:", b"MAIL FROM: ", b"MAIL FROM:Alice <a@b>",
            mail + b"SIZE=1", mail + b"x", mail + b" SIZE", mail + b" SIZE=", mail + b" SIZE=+1", mail + b" SIZE=-1",
            mail + b" SIZE=1_0", mail + b" SIZE=0x1", mail + " SIZE=\u0661".encode(), mail + b" SIZE=" + b"1" * 21,
            mail + b" BODY", mail + b" BODY=9BIT", mail + b" SMTPUTF8=1", mail + b" =1", mail + b" SIZE=1=2",
            mail + b" SIZE=1 SIZE=1", mail + b" BODY=7BIT BODY=8BITMIME", mail + b" SMTPUTF8 smtputf8",
            mail + b" -X=1", mail + b" ENVID=a\xff",
        )  # fmt: skip
        self.assertRefused(555, "5.5.4", mail + b" XYZ", mail + b" SIZE=1 ENVID=a+0D+0A", mail + b" AUTH=<>")
        self.assertRefused(501, "5.1.7", b"MAIL FROM:<a@b..org>", b"MAIL FROM:<@>")
        self.assertRefused(553, "5.1.7", b"MAIL FROM:<alice>", b"MAIL FROM:<postmaster>")
        self.assertRefused(553, "5.6.7", "MAIL FROM:<ä@b.org>".encode(), "MAIL FROM:<a@ä.org> SIZE=1".encode())

    def test_rcpt(self) -> None:
        """RCPT gives one address."""
        self.assertEqual(parse_command(b"RCPT TO:<a@B.org.>"), RcptTo(A))
        self.assertEqual(parse_command(b"rcpt to: <@x,@y:a@b.org> "), RcptTo(A))
        self.assertEqual(parse_command(b"RCPT TO:<PostMaster>"), RcptTo(Address(b"PostMaster", b"")))

    def test_bad_rcpt(self) -> None:
        """RCPT has no parameter that we know, and its address must not be empty."""
        self.assertRefused(555, "5.5.4", b"RCPT TO:<a@b> NOTIFY=NEVER", b"RCPT TO:<a@b>  X", b"RCPT TO:<a@b> SIZE=1")
        self.assertRefused(
            501, "5.5.4",
            b"RCPT", b"RCPT <a@b>", b"RCPT TO<a@b>", b"RCPT TO:a@b", b"RCPT TO :<a@b>", b"RCPT FROM:<a@b>",
            b"RCPT TO:<a@b>X", b"RCPT TO:<a@b> =", b"RCPT TO:<a@b>@c",
        )  # fmt: skip
        self.assertRefused(501, "5.1.3", b"RCPT TO:<>", b"RCPT TO:<a@>", b"RCPT TO:<a@b@c>", b'RCPT TO:<"a@b>')
        self.assertRefused(553, "5.1.3", b"RCPT TO:<alice>")

    def test_bad_arguments(self) -> None:
        """An argument too many, too few, or of the wrong kind is 501."""
        self.assertRefused(
            501, "5.5.4",
            b"DATA x", b"RSET x", b"QUIT x", b"STARTTLS x", b"HELO a b", b"EHLO \xc3\xbc",
            b"EHLO " + b"a" * 256, b"VRFY", b"VRFY ",
        )  # fmt: skip
        self.assertEqual(parse_command(b"EHLO " + b"a" * 255), Hello(b"a" * 255, True))
        self.assertEqual(parse_command(b"EHLO "), Hello(b"", True))  # the dialogue's to judge
        self.assertEqual(parse_command(b"HELO"), Hello(b"", False))

    def test_bad_bdat(self) -> None:
        """A BDAT whose size is not understood ends the session: its octets would be read as commands."""
        self.assertRefused(
            501, "5.5.4",
            b"BDAT", b"BDAT ", b"BDAT LAST", b"BDAT -1", b"BDAT +1", b"BDAT 1_0", b"BDAT 0x10", "BDAT \u0661".encode(),
            b"BDAT 1 LAST x", b"BDAT 1 FIRST", b"BDAT 1LAST", b"BDAT " + b"1" * 21, b"BDAT 1\x00", b"BDAT1",
            close=True,
        )  # fmt: skip

    def test_unknown(self) -> None:
        """What is no command is 500; what is not offered is 502; the session goes on."""
        self.assertRefused(
            500, "5.5.1",
            b"", b" ", b"X", b"DATAX", b"QUITX", b"NOOPX", b"EHLOx", b"STAR", b"STARTTLSX", b"XCLIENT ADDR=1", b"TURN",
            b"XFORWARD NAME=x", b"\xd0\xa5\xd0\xa5", b"\xffEHLO x", "\uff25\uff28\uff2c\uff2f x".encode(),
            b" NOOP", b"HELPX", b"VRFYX",
        )  # fmt: skip
        self.assertRefused(502, "5.5.1", b"EXPN list", b"EXPN", b"AUTH PLAIN AGEAYg==", b"AUTH", b"auth")

    def test_controls(self) -> None:
        """A control octet is 501 in any command, a bare LF the end of the session."""
        for line in (
            b"MAIL FROM:<a%cb@c>", b"RCPT TO:<a@b%cc>", b'RCPT TO:<"a%cb"@c>', b"EHLO a%cb", b"NOOP%c", b"NOOP a%c",
            b"VRFY a%cb", b"HELP %c", b"QUIT%c", b"DATA%c", b"XYZ%cRSET", b"MAIL FROM:<a@b> SIZE=1%c", b"AUTH %c",
            b"RCPT TO:<a@b>%c", b"STARTTLS%c",
        ):  # fmt: skip
            for octet in (0, 9, 11, 13, 127):
                self.assertRefused(501, "5.5.2", line % octet)
            self.assertRefused(500, "5.5.2", line % 10, close=True)

    def test_not_smtp(self) -> None:
        """An HTTP request, a header field, a TLS handshake: the session is over at once."""
        self.assertRefused(
            500, "5.5.1",
            b"GET / HTTP/1.1", b"post /mail HTTP/1.0", b"PUT", b"HEAD /", b"CONNECT mx:25 HTTP/1.1", b"OPTIONS *",
            b"PRI * HTTP/2.0", b"Host: mx.example.org", b"Subject: x", b"X-Y:", b"\x16\x03\x01\x02\x00\x01",
            b"\x16\n", b"Content-Length: 12",
            close=True,
        )  # fmt: skip

    def test_nothing_reflected(self) -> None:
        """No reply repeats a word of the client's."""
        for line in (b"XYZZY", b"MAIL FROM:<xyzzy", b"MAIL FROM:<a@b> XYZZY=1", b"EHLO xyzzy xyzzy", b"BDAT xyzzy"):
            event = parse_command(line)
            assert isinstance(event, Malformed)
            self.assertNotIn("xyzzy", event.reply.text.lower())

    @given(
        line=st.lists(
            st.sampled_from(
                [
                    *(bytes([octet]) for octet in b'<>@.:;=,"\\ \x00\t\r\x7fa1'),
                    *(
                        b"MAIL FROM:",
                        b"RCPT TO:",
                        b"<a@b>",
                        b" SIZE=",
                        b" BODY=",
                        b"EHLO ",
                        b"BDAT ",
                        b"NOOP",
                        b"\xc3\xbc",
                    ),
                ]
            )
        ).map(b"".join)
    )
    def test_any_line(self, line: bytes) -> None:
        """Every line is an event, and no control octet gets into one that is not Malformed."""
        event = parse_command(line)

        if not isinstance(event, Malformed):
            self.assertFalse(set(line) & {*range(32), 127})

    @given(
        verb=st.sampled_from([b"MAIL FROM:", b"RCPT TO:", b"DATA", b"data", b"mail FROM:", b"RCPT TO: "]),
        path=st.lists(st.sampled_from([*(bytes([octet]) for octet in b"<>@..aA1-_+"), b"<a", b"b>", b"x" * 63])),
        rest=st.sampled_from(
            [b"", b" ", b" SIZE=1", b" SIZE=20 BODY=8BITMIME", b" BODY=BINARYMIME", b" SIZE=" + b"9" * 21]
        ),
    )
    @example(b"MAIL FROM:", [b"<a@b.C>"], b" SIZE=20 BODY=8BITMIME")
    @example(b"RCPT TO:", [b"<a@b.C>"], b"")
    @example(b"RCPT TO:", [b"<a@", b"x" * 64, b">"], b"")
    @example(b"DATA", [], b"")
    def test_at_a_glance(self, verb: bytes, path: list[bytes], rest: bytes) -> None:
        """What most clients say means the same whether it is recognised at a glance or read with care."""
        line = verb + b"".join(path) + rest
        found = USUAL(b"NOOP\r\n" + line + b"\r\nQUIT\r\n", 6)

        if found is not None and found.end() <= 6 + PLAIN_OCTETS:
            self.assertEqual(found.end(), 6 + len(line) + 2)
            self.assertEqual(usual_command(found), parse_command(line))
