import email
import email.policy
from email.message import EmailMessage
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qmq.bounce.dsn import Kind, Notice, Original, report
from qmq.mail import NULL_SENDER, Address, Reply

NOW = 1795457222.0
SENDER = Address(b"joe", b"example.org")
RECIPIENT = Address(b"ann", b"example.net")
DAEMON = Address(b"MAILER-DAEMON", b"mx.example.com")
NO_USER = Reply(550, "5.1.1", "no such user", "mail.example.net (192.0.2.2)")
HEADER = b"Received: from x by y\r\nFrom: <joe@example.org>\r\nSubject: hello\r\n"


def notice(kind: Kind = "failed", to: Address = SENDER, until: float | None = None, **facts: Any) -> Notice:
    """A notice about a message with these facts."""
    defaults: dict[str, Any] = {
        "id": b"q1-2a", "sender": SENDER, "arrived": NOW - 400, "recipients": [(RECIPIENT, NO_USER)], "header": HEADER,
    }  # fmt: skip
    original = Original(**{**defaults, **facts})
    return report(kind, original, me="mx.example.com", sender=DAEMON, to=to, id=b"q1.b-2a00", now=NOW, until=until)


def parsed(made: Notice) -> tuple[EmailMessage, list[Any]]:
    """The whole and its three parts, as the standard library reads them."""
    message = email.message_from_bytes(made.text, policy=email.policy.SMTPUTF8)
    assert isinstance(message, EmailMessage)
    return message, list(message.iter_parts())


def people(parts: list[Any]) -> str:
    """What the first part says."""
    return str(parts[0].get_content()).replace("\r\n", "\n")


class ReportTests(SynchronousTestCase):
    def test_header(self) -> None:
        """A notice says who wrote it, that a machine did, and that it is a delivery status report."""
        message, parts = parsed(notice())

        self.assertEqual(message["From"], "MAILER-DAEMON@mx.example.com")
        self.assertEqual(message["To"], "joe@example.org")
        self.assertEqual(message["Subject"], "failure notice")
        self.assertEqual(message["Date"], "Mon, 23 Nov 2026 18:07:02 +0000")
        self.assertEqual(message["Message-ID"], "<q1.b-2a00@mx.example.com>")
        self.assertEqual(message["Auto-Submitted"], "auto-replied")
        self.assertEqual(message["X-Qmq-Queue-ID"], "q1-2a")
        self.assertEqual(message.get_content_type(), "multipart/report")
        self.assertEqual(message.get_param("report-type"), "delivery-status")
        self.assertEqual(
            [part.get_content_type() for part in parts],
            ["text/plain", "message/delivery-status", "text/rfc822-headers"],
        )
        self.assertEqual((notice().body_type, notice().smtputf8), (b"7BIT", False))

    def test_for_people(self) -> None:
        """People read one paragraph for each recipient: the address, who said no, and the words."""
        two = [(RECIPIENT, NO_USER), (Address(b"a b", b"example.net"), Reply(554, "5.4.6", "loop"))]

        text = people(parsed(notice(recipients=two))[1])

        self.assertIn("This is qmq at mx.example.com.\n", text)
        self.assertIn(
            "\n\n<ann@example.net>:\nmail.example.net (192.0.2.2) said:\n550 5.1.1 no such user\n\n"
            '<"a b"@example.net>:\n554 5.4.6 loop\n\n',
            text,
        )
        self.assertIn("--- Below is the header of your message.\n", text)

    def test_for_machines(self) -> None:
        """Machines read the reporting host, and address, action, status, host and words of each recipient."""
        two = [(RECIPIENT, NO_USER), (Address(b"x", b"example.net"), Reply(554, "", "loop"))]

        whole, first, second = parsed(notice(recipients=two))[1][1].get_payload()

        self.assertEqual(whole["Reporting-MTA"], "dns; mx.example.com")
        self.assertEqual(whole["Arrival-Date"], "Mon, 23 Nov 2026 18:00:22 +0000")
        self.assertEqual(whole["X-Qmq-Queue-ID"], "q1-2a")
        self.assertEqual(
            dict(first.items()),
            {
                "Final-Recipient": "rfc822; ann@example.net",
                "Action": "failed",
                "Status": "5.1.1",
                "Remote-MTA": "dns; mail.example.net (192.0.2.2)",
                "Diagnostic-Code": "smtp; 550 5.1.1 no such user",
                "Last-Attempt-Date": "Mon, 23 Nov 2026 18:07:02 +0000",
            },
        )
        self.assertEqual(second["Status"], "5.0.0")
        self.assertEqual(second["Diagnostic-Code"], "x-qmq; 554 loop")
        self.assertIsNone(second["Remote-MTA"])

    def test_delayed(self) -> None:
        """A delay notice says that attempts go on, and until when."""
        busy = Reply(451, "", "busy")

        message, parts = parsed(notice("delayed", until=NOW + 86400, recipients=[(RECIPIENT, busy)]))
        fields = parts[1].get_payload()[1]

        self.assertEqual(message["Subject"], "delay notice")
        self.assertIn("until Tue, 24 Nov 2026 18:07:02 +0000", people(parts))
        self.assertEqual((fields["Action"], fields["Status"]), ("delayed", "4.0.0"))
        self.assertEqual(fields["Will-Retry-Until"], "Tue, 24 Nov 2026 18:07:02 +0000")

    def test_header_returned(self) -> None:
        """The header goes back with the return path before it, byte for byte if it is clean."""
        text = notice().text

        self.assertIn(b"Content-Type: text/rfc822-headers\r\n\r\nReturn-Path: <joe@example.org>\r\n" + HEADER, text)

    def test_whole_returned(self) -> None:
        """The whole message goes back where asked for, as a message of its own."""
        made = notice(whole=HEADER + b"\r\nhello\r\n.\r\n--x\r\n")

        _, parts = parsed(made)

        self.assertEqual(parts[2].get_content_type(), "message/rfc822")
        self.assertEqual(parts[2].get_content()["Subject"], "hello")
        self.assertIn("Below is your message.", people(parts))
        self.assertIn(b"\r\n\r\nhello\r\n.\r\n--x\r\n", made.text)

    def test_whole_impossible(self) -> None:
        """A message with a bare CR or LF, a NUL or an endless line does not go back whole, only its header."""
        for body in (b"a\nb\r\n", b"a\rb\r\n", b"a\0b\r\n", b"x" * 1200 + b"\r\n", b"a\n\r\n\r"):
            _, parts = parsed(notice(whole=HEADER + b"\r\n" + body))
            self.assertEqual(parts[2].get_content_type(), "text/rfc822-headers", body[:9])
            self.assertIn("the header of your message", people(parts))

    def test_eight_bit(self) -> None:
        """8-bit text in the message goes back as it is, and the envelope declares it."""
        made = notice(whole=HEADER + b"\r\ngr\xfc\xc3\xbc\r\n")

        self.assertEqual((made.body_type, made.smtputf8), (b"8BITMIME", False))
        self.assertIn(b"gr\xfc\xc3\xbc", made.text)
        self.assertEqual(parsed(made)[0]["Content-Transfer-Encoding"], "8bit")

    def test_international_sender(self) -> None:
        """To a sender with a non-ASCII address the notice is international, as RFC 6533 has it."""
        sender = Address("jö".encode(), "bücher.example".encode())
        recipient = Address("ännchen".encode(), b"example.net")

        made = notice(to=sender, sender=sender, recipients=[(recipient, NO_USER)], smtputf8=True)
        message, parts = parsed(made)

        self.assertTrue(made.smtputf8)
        self.assertEqual(message["To"], "jö@bücher.example")
        self.assertEqual(
            [part.get_content_type() for part in parts],
            ["text/plain", "message/global-delivery-status", "message/global-headers"],
        )
        self.assertIn("Final-Recipient: utf-8; ännchen@example.net\r\n".encode(), made.text)
        self.assertIn("<ännchen@example.net>", people(parts))

    def test_international_recipient(self) -> None:
        """To an ASCII sender the notice needs no SMTPUTF8: a non-ASCII recipient is encoded for machines."""
        recipient = Address("ä+b".encode(), b"example.net")

        made = notice(recipients=[(recipient, NO_USER)], smtputf8=True, whole=HEADER + b"\r\nx\r\n")
        fields = parsed(made)[1][1].get_payload()[1]

        self.assertFalse(made.smtputf8)
        self.assertEqual(fields["Final-Recipient"], r"utf-8; \x{E4}\x{2B}b@example.net")
        self.assertIn(b"Content-Type: message/global\r\n", made.text)

    def test_long_replies(self) -> None:
        """Of an endless reply eight lines of 500 octets are told, folded; with very many recipients one line."""
        endless = Reply(550, "5.0.0", "\n".join(["y" * 9999, "", "  ", *(f"line {n}" for n in range(9999))]), "m")

        few = parsed(notice(recipients=[(RECIPIENT, endless)]))[1]
        many = parsed(notice(recipients=[(RECIPIENT, endless)] * 51))[1]

        diagnostic = few[1].get_payload()[1]["Diagnostic-Code"]
        self.assertEqual(diagnostic, f"smtp; 550 5.0.0 {'y' * 500} " + " ".join(f"line {n}" for n in range(7)) + " ...")
        self.assertIn("\n  line 6\n  ...\n", people(few))
        self.assertNotIn("line 0", people(many))
        self.assertLess(len(notice(recipients=[(RECIPIENT, endless)]).text), 12_000)

    def test_smuggling(self) -> None:
        """A reply can neither end our fields nor make a part or a recipient of its own."""
        evil = Reply(
            550,
            "5.1.1\r\nAction: delivered",
            "no\r\n\r\nFinal-Recipient: rfc822; victim@example.org\r\n--=_x\r\nContent-Type: text/html",
            "mx\r\nBcc: victim@example.org",
        )
        address = Address(b"a\r\nBcc: victim", b"example.net>\r\n\r\n<script")

        made = notice(recipients=[(address, evil)], id=b"q\r\nX: y", sender=address)
        message, parts = parsed(made)

        self.assertEqual(len(parts), 3)
        self.assertIsNone(message["Bcc"])
        self.assertEqual(len(parts[1].get_payload()), 2)
        self.assertEqual(parts[1].get_payload()[1].get_all("Action"), ["failed"])
        self.assertEqual(parts[1].get_payload()[1]["Status"], "5.0.0")
        self.assertNotIn(b"\r\nBcc", made.text)
        self.assertNotIn(b"\r\nFinal-Recipient: rfc822; victim", made.text)

    def test_boundary(self) -> None:
        """A message that contains a notice of ours, boundary and all, does not close the parts around it."""
        inner = notice().text

        outer = notice(whole=inner)

        _, parts = parsed(outer)
        self.assertEqual(len(parts), 3)
        self.assertEqual(len(list(parts[2].get_content().iter_parts())), 3)

    @given(
        st.binary(max_size=200),
        st.one_of(st.none(), st.binary(max_size=200)),
        st.text(max_size=100),
        st.text(max_size=30),
        st.tuples(st.binary(max_size=20), st.binary(max_size=20)),
    )
    def test_anything(self, header: bytes, whole: bytes | None, text: str, mta: str, raw: tuple[bytes, bytes]) -> None:
        """Whatever strangers wrote, the notice is CRLF lines of bounded length, free of controls, in three parts."""
        address = Address(*raw)
        reply = Reply(550, "5.0.0", text, mta)

        made = notice(header=header, whole=whole, recipients=[(address, reply)], sender=address, to=address)

        self.assertEqual(made.text.count(b"\r\n"), made.text.count(b"\r"))
        self.assertEqual(made.text.count(b"\r\n"), made.text.count(b"\n"))
        self.assertLessEqual(max(map(len, made.text.split(b"\r\n"))), 998)
        self.assertNotIn(b"\0", made.text)
        self.assertEqual(made.body_type == b"7BIT", made.text.isascii())
        self.assertEqual(len(parsed(made)[1]), 3)

    def test_null_sender(self) -> None:
        """A bounce that failed is shown with its null sender."""
        made = notice(sender=NULL_SENDER, to=Address(b"postmaster", b"mx.example.com"))

        self.assertIn(b"Return-Path: <>\r\n", made.text)
        self.assertIn(b"To: <postmaster@mx.example.com>\r\n", made.text)
