"""Attacks on a running gateway: framing, TLS, order of commands, relaying, and what a client may cost."""

import contextlib
import os
import re
import resource
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.real.gateway import Gateway, Sink, free_port, until
from tests.real.hostile import House, TLSSink, client_tls, codes, drain, house, leave, pem, send_in, talk

pytestmark = pytest.mark.slow

HELLO = b"EHLO c.test\r\n"
ENVELOPE = b"MAIL FROM:<a@source.test>\r\nRCPT TO:<bob@one.test>\r\n"
INNER = b"MAIL FROM:<evil@inner.test>\r\nRCPT TO:<bob@one.test>\r\nDATA\r\nSubject: inner\r\n\r\nsmuggled\r\n.\r\n"


def bare(text):
    """Whether a CR or an LF stands alone in it."""
    return b"\r" in (rest := text.replace(b"\r\n", b"")) or b"\n" in rest


def resident(*pids):
    """Octets of memory that these processes use themselves."""
    status = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
    return sum(int(re.search(r"RssAnon:\s+(\d+)", text)[1]) for text in status) * 1024


class AttackCase(SynchronousTestCase):
    """A gateway that is shared; after each test it still takes mail, and its log tells of nothing broken."""

    def make(self):
        """The house, as *house* wants it."""
        raise NotImplementedError

    def setUp(self):
        self.house = house(type(self).make)
        self.gateway = self.house.gateway
        self.port = self.gateway.port
        self.before = {id(sink): len(sink.messages) for sink in (*self.house.sinks.values(), self.house.world)}
        self.told = len(self.gateway.text())
        self.is_settled = False
        self.addCleanup(self.is_well)

    def is_well(self):
        if not self.is_settled:
            self.settled()
        self.assertTrue(self.house.client().mail("bob@one.test", mark=self.id()).startswith(b"250"))
        until(lambda: self.house.one.marks[self.id().encode()])
        log = self.gateway.text()[self.told :]
        for word in ("Traceback", "Unhandled", "broke"):
            self.assertNotIn(word, log, log[-3000:])

    def taken(self, sink=None):
        """What the customer's host took in this test."""
        sink = sink or self.house.one
        return sink.messages[self.before[id(sink)] :]

    def settled(self):
        """What it took, once nothing is on its way any more."""
        until(lambda: all(queue["queued"] == 0 for queue in self.gateway.stat().values()))
        self.is_settled = True
        return self.taken()


def plain():
    """One customer; everybody else's mail goes to the world, for relay clients only."""
    return House(
        ["one.test", "xn--bcher-kva.test"],
        adapt=lambda text: (
            text.replace("[instances]", "[instances]\n80:rest")
            + f"\n[rest]\ndomains = *\ndeliver = smtp:127.0.0.1:{WORLD.port}\nqmtp-listen = none\n"
        ),
    )


WORLD = Sink()

# End-of-data look-alikes: what some server or other takes for CRLF.CRLF.
LOOK_ALIKES = [
    b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r.\r\n", b"\r\n.\r", b"\n.\r", b"\r.\n",
    b"\r\n\x00.\r\n", b"\r\n.\x00\r\n", b"\r\n.\r\x00\n", b"\r\x00\n.\r\n", b"\x00\n.\x00\n", b"\r\n\x00.\x00\r\n",
    b"\r\r\n.\r\r\n", b"\r\n.\r\r\n", b"\r\r\n.\r\n\n", b"\n\n.\n\n", b"\n\r.\n\r", b"\r\n..\r\n",
    b"\r\n. \r\n", b"\r\n .\r\n", b"\r\n\t.\r\n", b"\r\n.\t\r\n", b"\x0b.\x0b", b"\x0c.\x0c", b"\x85.\x85",
    b"\xe2\x80\xa8.\xe2\x80\xa8", b"\x1c.\x1c", b"\r\n\xef\xbc\x8e\r\n",
]  # fmt: skip


class SmugglingTests(AttackCase):
    """No message holds another, neither on its way in nor on its way out."""

    make = staticmethod(plain)

    def smuggle(self, look_alike, step=0):
        text = b"Subject: outer\r\n\r\nbefore" + look_alike + INNER
        return talk(self.port, HELLO + ENVELOPE + b"DATA\r\n" + text + b"QUIT\r\n", step)

    def test_look_alikes(self):
        """Whatever looks like the end of a text and is not: one answer, at most one message, no bare CR or LF sent on."""
        for look_alike in LOOK_ALIKES:
            for step in (0, 1, 7):
                got = codes(self.smuggle(look_alike, step))
                self.assertEqual(got[:4], [220, 250, 250, 250], look_alike)
                self.assertIn(got[4:], ([354, 250, 221], [354, 554]), (look_alike, step))

        for sender, _, text in self.settled():
            self.assertNotIn(b"evil@inner.test", sender)
            self.assertFalse(bare(text), text)
            self.assertEqual(text.count(b"Subject: outer"), 1)

    def test_at_the_beginning(self):
        """The same where the text begins."""
        for look_alike in (b".\n", b".\r", b".\r\r\n", b".\x00\r\n", b"..\r\n", b".\n.\n", b"\n", b"\r"):
            got = codes(talk(self.port, HELLO + ENVELOPE + b"DATA\r\n" + look_alike + INNER + b"QUIT\r\n"))
            self.assertIn(got[4:], ([354, 250, 221], [354, 554]), look_alike)

        for sender, _, text in self.settled():
            self.assertNotIn(b"evil@inner.test", sender)
            self.assertFalse(bare(text), text)

    def test_chunks(self):
        """In a chunk nothing ends the text but its size, and bare line ends are refused when it is over."""
        for look_alike in LOOK_ALIKES:
            text = b"Subject: outer\r\n\r\nbefore" + look_alike + INNER
            client = self.house.client()
            client.write(ENVELOPE + b"BDAT %d LAST\r\n" % len(text) + text + b"QUIT\r\n")
            got = codes(drain(client.socket))
            self.assertEqual(got[:2], [250, 250], look_alike)
            self.assertIn(got[2:], ([250, 221], [554, 221]), look_alike)
            client.close()

        for sender, _, text in self.settled():
            self.assertNotIn(b"evil@inner.test", sender)
            self.assertFalse(bare(text), text)

    def test_line_too_long(self):
        """A line beyond 64K spoils the message; its rest is text up to its true end, and the session is in step after it."""
        for step in (0, 10000):
            client = self.house.client()
            client.write(ENVELOPE + b"DATA\r\n")
            self.assertEqual(codes(b"".join(client.reply() for _ in range(3))), [250, 250, 354])
            send_in(
                client.socket,
                b"Subject: x\r\n\r\n" + b"x" * 70000 + b"\r\n" + INNER[:-5] + b"y" * 200000 + b"\r\n.\r\n",
                step,
            )
            self.assertTrue(client.reply().startswith(b"554 5.6.0"))

            self.assertTrue(client.mail("bob@one.test", mark=f"long{step}").startswith(b"250"))
            client.close()

        self.assertEqual([sender for sender, _, _ in self.settled() if b"inner" in sender], [])
        self.assertEqual(len(self.taken()), 2)

    def test_dots_at_every_edge(self):
        """A text of dots only arrives as it was, wherever the network and our own pieces cut it."""
        dots = (b".\r\n" * 3 + b"..\r\n.a\r\n") * 2000  # 34 KB of wire
        for step in (1, 7, 0):
            client = self.house.client()
            stuffed = (b"X-Mark: dots%d\r\n\r\n" % step) + dots.replace(b"\r\n.", b"\r\n..").replace(b".", b"..", 1)
            client.write(ENVELOPE + b"DATA\r\n")
            self.assertEqual(codes(b"".join(client.reply() for _ in range(3))), [250, 250, 354])
            send_in(client.socket, stuffed + b".\r\n", step)
            self.assertTrue(client.reply().startswith(b"250 2.0.0 ok"), step)
            client.close()

        got = {text.partition(b"X-Mark: ")[2].partition(b"\r\n\r\n") for _, _, text in self.settled()}
        self.assertEqual(got, {(b"dots%d" % step, b"\r\n\r\n", dots) for step in (1, 7, 0)})

    def test_dots_in_long_texts(self):
        """The same of texts that are files here and go out in pieces, at any offset."""
        for offset in range(3):
            text = b"X-Mark: far%d\r\n\r\n" % offset + b"x" * offset + b"\r\n" + b"..\r\n" * 120000
            self.assertTrue(self.house.client().mail("bob@one.test", text=text).startswith(b"250"))

        for _, _, text in self.settled():
            self.assertTrue(text.endswith(b"\r\n" + b".\r\n" * 120000))
        self.assertEqual(len(self.taken()), 3)

    def test_segments(self):
        """A session's replies do not depend on how its bytes were cut."""
        session = (
            HELLO
            + b"NOOP\r\nRSET\r\nMAIL FROM:<>\r\nRCPT TO:<x@foreign.test>\r\nRCPT TO:<bob@one.test>\r\nVRFY bob\r\n"
            b"DATA\r\nSubject: s\r\n\r\n..a\r\n.\r\nBDAT 3\r\nabcMAIL FROM:<a@b.test> SIZE=99999999999\r\nRCPT TO:bob\r\nQUIT\r\n"
        )
        seen = {step: re.sub(rb"ok \S+", b"ok", talk(self.port, session, step)) for step in (1, 7, 0)}

        self.assertEqual(seen[1], seen[0])
        self.assertEqual(seen[7], seen[0])
        self.assertEqual(codes(seen[0]), [220, 250, 250, 250, 250, 553, 250, 252, 354, 250, 503, 250, 501, 221])

    def test_controls_never_reflected(self):
        """A control character in HELO, MAIL or RCPT is refused, and stands in no reply, log line or header field."""
        forms = [b"EHLO c%ctest", b"HELO c%ctest", b"MAIL FROM:<a%cz@evil.test>", b"MAIL FROM:<a@evil%c.test>", b"RCPT TO:<bob%cz@one.test>",
                 b"MAIL FROM:<a@b.test> BODY=8BIT%cMIME", b"VRFY b%cb", b"NOOP %c", b"%cNOOP"]  # fmt: skip
        for octet in (*range(10), 11, 12, *range(14, 32), 127):
            client = self.house.client()
            client.say(b"MAIL FROM:<evil@source.test>")
            for form in forms:
                answer = client.say(form % octet)
                self.assertRegex(answer.decode("ascii"), r"^5\d\d [ -~]+\r\n$", (form, octet))
            client.close()
        for octet in (10, 13):
            for form in forms:
                got = talk(self.port, HELLO + form % octet + b"\r\nQUIT\r\n")
                self.assertNotIn(b"evil", got)
                self.assertNotIn(bytes([10, 10]), got)
                self.assertFalse(bare(got), (form, octet))
        self.assertTrue(self.house.client().say(b"MAIL FROM:<a@b.test> ENVID=a+0D+0AX").startswith(b"5"))

        log = self.gateway.text()[self.told :]
        self.assertEqual(set(re.findall(r"[^ -~\n]", log)), set())
        self.assertEqual(self.settled(), [])

    def test_strangers_tongues(self):
        """PROXY, XCLIENT and XFORWARD change nothing; HTTP and TLS spoken at us end the session before their body runs."""
        for line in (
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 25",
            b"XCLIENT ADDR=192.0.2.1 NAME=x",
            b"XFORWARD ADDR=192.0.2.1",
        ):
            client = self.house.client(hello=False)
            self.assertTrue(client.say(line).startswith(b"5"), line)
            client.close()
        mail = HELLO + ENVELOPE + b"DATA\r\nSubject: x\r\n\r\nx\r\n.\r\n"
        for opening in (
            b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n", b"Host: x\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n" * 40,
        ):  # fmt: skip
            got = codes(talk(self.port, opening + mail))
            self.assertEqual([got[0], got[1] // 100, len(got)], [220, 5, 2], opening)

        self.assertEqual(self.settled(), [])
        self.assertNotIn("192.0.2.1", self.gateway.text()[self.told :].replace("helo=192.0.2.1", ""))

    def test_cut_anywhere(self):
        """A connection that ends before the end of the text, by FIN or by RST, leaves nothing; sent again, it arrives once."""
        whole = HELLO + ENVELOPE + b"DATA\r\nX-Mark: cut\r\n\r\nhello\r\n.\r\n"
        places = {
            len(HELLO),
            len(HELLO + ENVELOPE),
            whole.index(b"X-Mark"),
            whole.index(b"hello"),
            *range(len(whole) - 6, len(whole)),
        }
        for at in sorted(places):
            for reset in (False, True):
                with socket.create_connection(("127.0.0.1", self.port), 10) as connection:
                    connection.sendall(whole[:at])
                    time.sleep(0.02)
                    if reset:
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    else:
                        connection.shutdown(socket.SHUT_WR)
                        drain(connection)

        self.assertEqual(self.settled(), [])
        self.assertIn(b"250 2.0.0 ok", talk(self.port, whole + b"QUIT\r\n"))
        self.assertEqual(len(self.settled()), 1)
        self.assertEqual(self.house.one.marks[b"cut"], 1)


class OrderTests(AttackCase):
    """No state outlives its transaction, and nothing is answered out of turn."""

    make = staticmethod(plain)

    def dialogue(self, *said, hello=True):
        client = self.house.client(hello=hello)
        got = [int(client.say(line)[:3]) for line in said]
        client.close()
        return got

    def test_chunk_without_mail(self):
        """After a chunk that belongs to nothing, DATA has nothing either."""
        self.assertEqual(
            self.dialogue(b"BDAT 7\r\nhello", b"DATA", b"RCPT TO:<bob@one.test>", b"BDAT 0 LAST"), [503] * 4
        )
        self.assertEqual(
            self.dialogue(b"MAIL FROM:<a@b.test>", b"BDAT 5\r\nabc", b"DATA", b"BDAT 0 LAST"), [250, 503, 503, 503]
        )

    def test_refused_text(self):
        """A message refused at its end takes its sender and recipients along."""
        client = self.house.client()
        loop = "Received: x\r\n" * 120 + "\r\n"

        self.assertTrue(client.mail("bob@one.test", text=loop).startswith(b"554 5.4.6"))

        self.assertEqual([client.say(line)[:3] for line in ("RCPT TO:<bob@one.test>", "DATA")], [b"503", b"503"])

    def test_verify(self):
        """VRFY tells nothing, of whomever, and touches no transaction, however odd its argument."""
        client = self.house.client()
        self.assertEqual(
            {client.say(f"VRFY {who}") for who in ("bob", "nobody", "<bob@one.test>", "<@>", '"')},
            {client.say("VRFY x")},
        )
        self.assertEqual(client.say("EXPN list")[:3], b"502")
        client.say("MAIL FROM:<a@b.test>")
        self.assertEqual(client.say("DATA")[:3], b"503")
        client.say("RCPT TO:<bob@one.test>")
        self.assertEqual(client.say(b"VRFY <odd@\xff\x00")[:1], b"5")
        self.assertEqual(client.say("VRFY <odd@")[:3], b"252")
        self.assertEqual(client.say("DATA")[:3], b"354")
        self.assertEqual(client.say("X-Mark: v\r\n\r\n.")[:3], b"250")

    def test_endless_talk(self):
        """NOOP, RSET, EHLO and empty chunks without end are cut off after a while, at no cost in memory."""
        before = resident(self.gateway.process.pid)
        for line in (
            b"NOOP\r\n",
            b"RSET\r\n",
            HELLO,
            b"VRFY a\r\n",
            b"BDAT 0\r\n",
            b"HELP\r\n",
            b"MAIL FROM:<a@b.test>\r\nRSET\r\n",
        ):
            got = codes(talk(self.port, HELLO + line * 20000))
            self.assertIn(421, got, line)
            self.assertLess(len(got), 250, line)
        self.assertLess(resident(self.gateway.process.pid) - before, 8 << 20)

    def test_endless_line(self):
        """A command line without end is cut off."""
        before = resident(self.gateway.process.pid)

        got = talk(self.port, b"MAIL FROM:<" + b"a" * 40_000_000)

        self.assertEqual(codes(got), [220, 500])
        self.assertLess(resident(self.gateway.process.pid) - before, 8 << 20)

    def test_nobody_accepted(self):
        """DATA without a recipient opens no text, and a text sent all the same is not run."""
        got = talk(
            self.port, HELLO + b"MAIL FROM:<a@b.test>\r\nRCPT TO:<x@foreign.test>\r\nDATA\r\nSubject: x\r\n" + INNER
        )

        self.assertEqual(codes(got), [220, 250, 250, 553, 503, 500])
        self.assertEqual(self.settled(), [])

    def test_pipelined(self):
        """What is sent ahead while a message is being stored is answered in order, after it."""
        one = b"DATA\r\nX-Mark: p%d\r\n\r\nhello\r\n.\r\n"
        session = (
            HELLO
            + b"".join(ENVELOPE + one % n + b"NOOP\r\nRCPT TO:<bob@one.test>\r\n" for n in range(20))
            + b"QUIT\r\n"
        )

        got = codes(talk(self.port, session))

        self.assertEqual(got, [220, 250, *[250, 250, 354, 250, 250, 503] * 20, 221])
        self.assertEqual(len(self.settled()), 20)


# Ways to write an address so that somebody's mail ends up with somebody else.
FOREIGN = [
    "u@foreign.test", "u@foreign.test.", "u@one.test@foreign.test", "u@foreign.test@one.test", "u@one.test,u@foreign.test",
    "@one.test:u@foreign.test", "@one.test,@foreign.test:u@foreign.test", "u@xone.test", "u@one.test.foreign.test",
    "u@[192.0.2.1]", "u@[IPv6:2001:db8::1]", "u@[127.0.0.1]", "u@.one.test", "u@one..test", "u@one.test..", "u@", "@", "u",
    "u@one.test>@foreign.test", "u@one.test <u@foreign.test>", "u@foreign.test#one.test", "u@foreign.test\\@one.test",
    "u@one.test;u@foreign.test", "u @one.test", "u@ one.test", "(one.test)u@foreign.test", "u@foreign.test(one.test)",
    "u@" + "a" * 64 + ".test", "u@" + "a." * 130 + "test", "u@one.test/foreign.test", "u@one.test:25", "u@-", "u@*", "u@%",
]  # fmt: skip
ODD = [
    "u%foreign.test@one.test", "foreign.test!u@one.test", '"u@foreign.test"@one.test', "@foreign.test:u@one.test",
    "=?utf-8?q?u=40foreign.test=3E?=@one.test", '"u\\"@foreign.test"@one.test', "u%foreign.test%x@one.test",
    '"u> RCPT TO:<x@foreign.test"@one.test', "u+foreign.test@one.test",
]  # fmt: skip
SHELLS = [";id;", "|/bin/sh", "$(touch$IFS/tmp/qmq-owned)", "`touch/tmp/qmq-owned`", "${run{/bin/sh}}", "-oX/tmp/qmq-owned",
          "../../etc/passwd", "/etc/passwd", ".", "..", "a|b", "~root", "%s%n", "{0.__class__}", "__proto__"]  # fmt: skip


class AddressTests(AttackCase):
    """An address leads to whom it names, or nowhere."""

    make = staticmethod(plain)

    def test_relaying(self):
        """No form of address makes us send mail of strangers to foreign domains: their hosts see nothing of it."""
        for form in FOREIGN:
            client = self.house.client()
            client.say("MAIL FROM:<a@source.test>")
            answer = client.say(f"RCPT TO:<{form}>")
            self.assertRegex(answer.decode(), r"^5(01|50|53) ", form)
            self.assertEqual(client.say("DATA")[:1], b"5")
            client.close()

        self.settled()
        self.assertEqual((WORLD.messages, self.taken(self.house.world)), ([], []))

    def test_odd_local_parts(self):
        """Percent signs, bangs, quoted @ and source routes are odd local parts, which our customer gets quoted or not at all."""
        for form in ODD:
            client = self.house.client()
            answer = client.mail(form)
            self.assertRegex(answer.decode(), r"^(250|5\d\d) ", form)
            client.close()

        for _, recipients, _ in self.settled():
            [recipient] = recipients
            self.assertTrue(recipient.endswith(b"@one.test"), recipient)
            local = recipient.removesuffix(b"@one.test")
            self.assertTrue(
                (b"@" not in local and b">" not in local) or re.fullmatch(rb'"(?:[^"\\]|\\.)*"', local), recipient
            )
        self.assertGreaterEqual(len(self.taken()), 5)
        self.assertEqual((WORLD.messages, self.taken(self.house.world)), ([], []))

    def test_shells(self):
        """What a shell, a path or a format would expand is a local part like any other."""
        for form in SHELLS:
            for address in (f'"{form}"@one.test', f"{form}@one.test"):
                client = self.house.client()
                self.assertRegex(client.mail(address, sender=address).decode(), r"^(250|5\d\d) ", address)
                client.close()

        got = {recipients[0].removesuffix(b"@one.test").strip(b'"') for _, recipients, _ in self.settled()}
        self.assertEqual(got, {form.encode() for form in SHELLS})
        self.assertFalse(os.path.exists("/tmp/qmq-owned"))

    def test_domains_compared_once(self):
        """Upper case and a trailing dot are the same domain; so are a name's two IDNA forms; look-alikes are others."""
        client = self.house.client()
        client.say("MAIL FROM:<a@source.test> SMTPUTF8")
        same = [
            "b@ONE.TEST",
            "b@One.Test.",
            "b@bücher.test",
            "b@BÜCHER.test",
            "b@xn--bcher-kva.test",
            "b@XN--BCHER-KVA.TEST",
            "b@bu\u0308cher.test",
        ]
        self.assertEqual([client.say(f"RCPT TO:<{one}>".encode())[:3] for one in same], [b"250"] * 7)
        other = [
            "b@one\uff0etest",
            "b@one\u3002test",
            "b@\uff4fne.test",
            "b@one.test\u200b",
            "b@öne.test",
            "b@one.t\u0435st",
        ]
        self.assertEqual({client.say(f"RCPT TO:<{one}>".encode())[:1] for one in other}, {b"5"})
        client.close()

    def test_utf8(self):
        """Without SMTPUTF8, and for what is no UTF-8, an address is refused, and the session goes on."""
        client = self.house.client()
        self.assertEqual(client.say("MAIL FROM:<ä@source.test>".encode())[:9], b"553 5.6.7")
        client.say("MAIL FROM:<a@source.test>")
        self.assertEqual(client.say("RCPT TO:<ä@one.test>".encode())[:9], b"553 5.6.7")
        client.say("RSET")
        client.say("MAIL FROM:<a@source.test> SMTPUTF8")
        for raw in (
            b"\xff",
            b"\xc0\xaf",
            b"\xed\xa0\x80",
            b"\xf4\x90\x80\x80",
            b"\xe2\x80",
            b"\xc2\x85",
            b"\xe2\x80\xa8",
            b"\xc3\xa4" * 200,
        ):
            self.assertRegex(client.say(b"RCPT TO:<" + raw + b"@one.test>").decode(), r"^(501|553) ")
        self.assertEqual(client.say("RCPT TO:<bob@one.test>")[:3], b"250")
        client.close()


def with_tls():
    """A customer, and STARTTLS."""
    return House(primary=f"certificate = {pem()}\nhelo = required")


class ServerTLSTests(AttackCase):
    """STARTTLS, as a man in the middle or a bad client would have it."""

    make = staticmethod(with_tls)

    def upgrade(self, client, context=None):
        """The session in TLS; what is read ahead in clear would be lost, as it should."""
        client.socket = (context or client_tls()).wrap_socket(client.socket)
        client.lines = client.socket.makefile("rb")

    def test_mail(self):
        """Mail by TLS arrives, and its Received field says so."""
        client = self.house.client()
        self.assertIn(b"STARTTLS", client.ehlo)
        self.assertEqual(client.say("STARTTLS")[:3], b"220")
        self.upgrade(client)
        self.assertNotIn(b"STARTTLS", client.say("EHLO client.test"))

        self.assertEqual(client.mail("bob@one.test")[:3], b"250")

        [(_, _, text)] = self.settled()
        self.assertIn(b"with ESMTPS", text)

    def test_injection(self):
        """What came in clear behind STARTTLS, in one segment, is neither run nor answered inside TLS."""
        for behind in (b"NOOP\r\n", HELLO + ENVELOPE + b"DATA\r\n", b"EHLO evil", b"\r\n", b"RSET\r\n" * 1000):
            client = self.house.client()
            client.write(b"STARTTLS\r\n" + behind)
            self.assertEqual(client.reply()[:3], b"220")
            self.upgrade(client)
            client.socket.settimeout(0.2)
            self.assertRaises(TimeoutError, client.socket.recv, 1)
            client.socket.settimeout(10)
            client.lines = client.socket.makefile("rb")
            self.assertEqual(client.say("MAIL FROM:<a@source.test>")[:3], b"503", behind)
            self.assertEqual(client.say("EHLO client.test")[:3], b"250")
            client.close()
        self.assertEqual(self.settled(), [])

    def test_order(self):
        """With an argument, before EHLO, twice; and a transaction begun in clear is forgotten."""
        client = self.house.client()
        self.assertEqual(client.say("STARTTLS now")[:3], b"501")
        self.assertEqual(client.say("MAIL FROM:<a@source.test>")[:3], b"250")
        self.assertEqual(client.say("RCPT TO:<bob@one.test>")[:3], b"250")
        self.assertEqual(client.say("STARTTLS")[:3], b"220")
        self.upgrade(client)
        self.assertEqual(
            [client.say(line)[:3] for line in ("RCPT TO:<bob@one.test>", "DATA", "MAIL FROM:<>")], [b"503"] * 3
        )
        self.assertEqual(client.say("EHLO client.test")[:3], b"250")
        self.assertEqual(client.say("STARTTLS")[:2], b"50")
        self.assertEqual(client.say("DATA")[:3], b"503")
        self.assertEqual(client.mail("bob@one.test")[:3], b"250")

    def test_old_protocols(self):
        """TLS below 1.2, and key exchange by static RSA, come to nothing; the session is closed."""
        old = {"ciphers": "ALL:@SECLEVEL=0", "minimum_version": ssl.TLSVersion.TLSv1}
        for settings in (
            {**old, "maximum_version": ssl.TLSVersion.TLSv1}, {**old, "maximum_version": ssl.TLSVersion.TLSv1_1},
            {"ciphers": "AES128-SHA:AES128-GCM-SHA256:@SECLEVEL=0", "maximum_version": ssl.TLSVersion.TLSv1_2},
        ):  # fmt: skip
            client = self.house.client()
            client.say("STARTTLS")
            raised = self.assertRaises(ssl.SSLError, self.upgrade, client, client_tls(**settings))
            self.assertRegex(str(raised).upper(), "ALERT")
            client.close()
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            client = self.house.client()
            client.say("STARTTLS")
            self.upgrade(client, client_tls(maximum_version=version, minimum_version=version))
            self.assertEqual(client.say("EHLO client.test")[:3], b"250")
            client.close()

    def test_broken_handshakes(self):
        """A handshake that is garbage, or is given up, ends that session alone; one that never ends holds up nobody."""
        hanging = []
        for said in (b"", b"\x16\x03\x01", b"\x16\x03\x01\x02\x00\x01"):
            for _ in range(15):
                client = self.house.client()
                client.say("STARTTLS")
                client.write(said)
                hanging.append(client)
        for garbage in (
            b"EHLO c.test\r\n" * 5,
            b"\x00" * 100,
            b"\x16\x03\x01\xff\xff" + b"x" * 70000,
            b"\x80\x2e\x01\x00\x02" * 20,
        ):
            client = self.house.client()
            client.say("STARTTLS")
            with contextlib.suppress(ConnectionError):
                client.write(garbage)
            self.assertNotIn(b"still open", drain(client.socket))
            client.close()

        began = time.monotonic()
        self.assertEqual(self.house.client().mail("bob@one.test")[:3], b"250")
        self.assertLess(time.monotonic() - began, 2)
        for client in hanging:
            client.close()


MODES = ("honest", "inject", "inject-later", "strip", "454", "garbage", "plain", "hang")


class CheatedTests(SynchronousTestCase):
    """Customers' hosts, or men before them, that cheat about STARTTLS."""

    def test_nothing_believed(self):
        """Nothing is reported as delivered that the true host did not take; TLS is used where it can be had, else clear."""
        leave()
        hosts = {mode: TLSSink(mode) for mode in MODES}
        gateway = Gateway(
            {f"{mode}.test": f"smtp:127.0.0.1:{host.port}" for mode, host in hosts.items()},
            sections=dict.fromkeys(MODES, "retry = 1s*5 60s"),
        )
        self.addCleanup(gateway.clear)
        for host in hosts.values():
            self.addCleanup(host.close)
        gateway.start()
        for mode in MODES:
            self.assertTrue(gateway.client().mail(f"bob@{mode}.test", mark=mode).startswith(b"250"))

        taking = {"honest": True, "strip": False, "454": False}
        until(lambda: all(hosts[mode].taken for mode in taking))
        until(lambda: re.search(" deferred .* queue=inject ", gateway.text()))
        time.sleep(2.5)  # a second attempt, and a third

        self.assertEqual(
            {mode: [inside for _, inside in hosts[mode].taken] for mode in taking}, {m: [t] for m, t in taking.items()}
        )
        log = gateway.text()
        for mode, host in hosts.items():
            self.assertEqual(len(re.findall(rf" delivered .* queue={mode} ", log)), len(host.taken), mode)
        stat = gateway.stat()
        for mode in ("inject", "inject-later"):
            self.assertEqual((hosts[mode].taken, stat[mode]["queued"]), ([], 1), mode)
        # What was said in clear behind the 220 is no reason to hand the mail over in clear.
        self.assertNotIn((b"MAIL", False), hosts["inject"].said)
        self.assertEqual(hosts["hang"].taken, [])
        for word in ("Traceback", "Unhandled"):
            self.assertNotIn(word, log, log[-3000:])


QMTP_PORT = []


def with_qmtp():
    """A customer whose instance listens for QMTP."""
    QMTP_PORT[:] = [free_port()]
    return House(adapt=lambda text: text.replace("qmtp-listen = none", f"qmtp-listen = 127.0.0.1:{QMTP_PORT[0]}", 1))


def net(data):
    """A netstring."""
    return b"%d:%b," % (len(data), data)


def package(text=b"\nSubject: q\n\nhello\n", sender=b"a@source.test", *recipients):
    """A QMTP package."""
    return net(text) + net(sender) + net(b"".join(map(net, recipients or (b"bob@one.test",))))


class QMTPTests(AttackCase):
    """An instance's QMTP port."""

    make = staticmethod(with_qmtp)

    def send(self, data, *, step=0, end=True):
        """What comes back until the end; we say no more after *data*."""
        with socket.create_connection(("127.0.0.1", QMTP_PORT[0]), 10) as connection:
            with contextlib.suppress(OSError):
                send_in(connection, data, step)
                if end:
                    connection.shutdown(socket.SHUT_WR)
            return drain(connection)

    def answers(self, data):
        """The first octets of the answers; what follows *data* is no length, and ends the session when all is answered."""
        got = self.send(data + b"x", end=False)
        self.assertNotIn(b"still open", got)
        return re.findall(rb"\d+:([KZD])", got)

    def test_segments(self):
        """Packages are taken however they are cut, and answered in order, a recipient each."""
        packages = package() + package(
            b"\rSubject: q\r\n\r\nhello\r\n", b"", b"bob@one.test", b"x@foreign.test", b"eve@one.test"
        )
        for step in (1, 7, 0):
            got = self.send(packages + b"x", step=step, end=False)
            self.assertEqual(re.findall(rb"\d+:([KZD])", got), [b"K", b"K", b"D", b"K"], got)
            self.assertNotIn(b"still open", got)

        self.assertEqual({text[-9:] for _, _, text in self.settled()}, {b"\r\nhello\r\n"})
        self.assertEqual((self.house.world.messages, len(self.taken())), ([], 6))

    def test_lengths(self):
        """A length that is not plain digits ends the session with nothing taken and nothing answered."""
        good = package()
        rest = good.partition(b":")[2]
        forms = [b"", b"+19", b"-19", b" 19", b"19 ", b"0x13", b"1_9", "١٩".encode(), "１９".encode(), "²".encode(), b"019", b"1e1", b"19.0",
                 b"18446744073709551635", b"4294967315", b"9" * 100, b"0" * 100 + b"19", b"9" * 100000, b"0" * 100000, b"\x0019", b"19\n", b"\t19"]  # fmt: skip
        for form in forms:
            for whole in (
                form + b":" + rest,
                good.replace(b"13:a@", form + b":a@"),
                good.replace(b"12:bob", form + b":bob"),
            ):
                got = self.send(whole)
                self.assertEqual(got, b"", (form, whole[:60]))
        for broken in (
            good.replace(b"hello\n,", b"hello\n"), good.replace(b"hello\n,", b"hello\n;"), good.replace(b"19:", b"18:", 1),
            good.replace(b"19:", b"20:", 1), good[:-1] + b"x", good.replace(b"12:bob", b"13:bob"), good.replace(b"12:bob", b"11:bob"),
            good.replace(b"16:12:", b"17:12:"), net(b"") + good, net(b"xSubject: x\n") + good, net(b"\x00x") + good, net(b"\x01x") + good,
            net(b"\n") + net(b"") + net(b"x"), b":" * 100, b"," * 100, HELLO + ENVELOPE, b"GET / HTTP/1.0\r\n\r\n",
        ):  # fmt: skip
            self.assertNotIn(b"K", self.send(broken), broken[:60])

        self.assertEqual(self.settled(), [])

    def test_addresses(self):
        """An address with a control octet is refused, each for itself; nothing of it goes on."""
        for octet in (*range(32), 127):
            bad = b"bob%c@one.test" % octet
            self.assertEqual(self.answers(package(b"\nx\n", b"a%c@b.test" % octet)), [b"D"], octet)
            self.assertEqual(
                self.answers(
                    package(b"\nx\n", b"a@b.test", bad, b"bob@one%c.test" % octet, b"bob@one.test>\r\nRCPT TO:<x@y")
                ),
                [b"D"] * 3,
            )
        for odd in (b"bob@foreign.test", b"bob@one.test@foreign.test", b"", b"@", b"bob@", b"bob@one.test> BODY=8BITMIME", b"b@one.test,b@x.test",
                    b"@one.test:x@foreign.test", b"\xff@one.test", b"a" * 2000 + b"@one.test"):  # fmt: skip
            self.assertEqual(self.answers(package(b"\nx\n", b"a@b.test", odd)), [b"D"], odd)

        self.assertEqual(self.settled(), [])
        self.assertEqual(self.house.world.messages, [])

    def test_odd_local_parts(self):
        """QMTP has no quotes: what needs them by SMTP gets them there, and stays one local part."""
        odd = [b"a b", b"x> BODY=7BIT <y", b'a"b', b"a\\b", b"u@foreign.test", b"a..b", b".a", b"a.", b"%s", b"a,b"]
        for local in odd:
            self.assertEqual(
                self.answers(package(b"\nx\n", local + b"@source.test", local + b"@one.test")), [b"K"], local
            )

        got = {recipients[0] for _, recipients, _ in self.settled()}
        self.assertEqual(len(got), len(odd))
        for recipient in got:
            self.assertRegex(recipient.decode(), r'^(?:[a-z%]+|"(?:[^"\\]|\\.)*")@one\.test$')

    def test_dialogue_in_bodies(self):
        """Bodies of both codes that hold SMTP's end marks and commands arrive as one text, or are refused; never a bare CR or LF."""
        taken = 0
        for code, line in ((b"\n", b"\n"), (b"\r", b"\r\n")):
            inner = INNER.replace(b"\r\n", line)
            for mark in (line + b"." + line, line + b".." + line, *LOOK_ALIKES):
                got = self.answers(package(code + b"Subject: outer" + line * 2 + b"before" + mark + inner))
                self.assertIn(got, ([b"K"], [b"D"]))
                taken += got == [b"K"]
                if mark == line + b"." + line:
                    self.assertEqual(got, [b"K"])

        self.assertEqual(len(self.settled()), taken)
        for sender, _, text in self.taken():
            self.assertNotIn(b"evil@inner.test", sender)
            self.assertFalse(bare(text), text)
            self.assertTrue(text.endswith(b"\r\nSubject: inner\r\n\r\nsmuggled\r\n.\r\n"), text)

    def test_cut_anywhere(self):
        """A package that is cut, by FIN or by RST, is not taken; sent again, it arrives once."""
        whole = package(b"\nX-Mark: q\n\nhello\n")
        for at in range(1, len(whole)):
            self.assertEqual(self.send(whole[:at]), b"")
            with socket.create_connection(("127.0.0.1", QMTP_PORT[0]), 10) as connection:
                connection.sendall(whole[:at])
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        self.assertEqual(self.settled(), [])
        self.assertEqual(self.answers(whole), [b"K"])
        self.assertEqual(len(self.settled()), 1)

    def test_nothing_vouched(self):
        """Over TCP nobody speaks in a peer's name: the extension is not taken, whatever it says."""
        for body in (b"\x01", b"\x01" + b"token=x", b"\x01" + bytes(60)):
            self.assertEqual(self.send(net(body) + package()), b"")
        self.assertEqual(self.settled(), [])

    def test_many_recipients(self):
        """Of 20 000 recipients the first 1000 are taken, and each of the others has its answer."""
        many = [b"u%d@one.test" % n for n in range(20000)]
        began = time.monotonic()
        got = self.answers(package(b"\nX-Mark: many\n\nx\n", b"a@b.test", *many))

        self.assertEqual((got[:1000], set(got[1000:]), len(got)), ([b"K"] * 1000, {b"Z"}, 20000))
        self.assertLess(time.monotonic() - began, 3)
        until(lambda: sum(len(recipients) for _, recipients, _ in self.taken()) == 1000)


def roomy():
    """One customer, and room for the messages of these tests."""
    return House(primary="databytes = 60M", sections={"one": "databytes = 60M"})


class CostTests(AttackCase):
    """What a client can make us spend is bounded, and the others do not feel it."""

    make = staticmethod(roomy)

    def pids(self):
        return [self.gateway.process.pid, *self.gateway.workers()]

    def text_of(self, text):
        """The time and the answer that a message takes."""
        client = self.house.client()
        began = time.monotonic()
        answer = client.mail("bob@one.test", text=text)
        client.close()
        return time.monotonic() - began, answer

    def test_never_reads(self):
        """A client that never reads its replies is not read any further, and costs no memory."""
        before = resident(*self.pids())
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", self.port))
            connection.sendall(HELLO + ENVELOPE)
            connection.settimeout(1)
            sent = 0
            with contextlib.suppress(TimeoutError):
                while sent < 200_000_000:
                    sent += connection.send(b"RCPT TO:<bob@one.test>\r\n" * 2000)
            self.assertLess(sent, 50_000_000)
            self.assertLess(resident(*self.pids()) - before, 4 << 20)

    def test_slow_clients(self):
        """With hundreds that are idle, or say an octet now and then, a good client is served at once."""
        before = resident(self.gateway.process.pid)
        openings = (
            b"",
            HELLO + b"MAI",
            HELLO + ENVELOPE + b"DATA\r\nSubject: ",
            HELLO + ENVELOPE + b"BDAT 1000000 LAST\r\nx",
        )
        slow = []
        for n in range(400):
            slow.append(socket.create_connection(("127.0.0.1", self.port), 10))
            slow[-1].sendall(openings[n % 4])
        slowest = 0
        for _ in range(3):
            for connection in slow:
                connection.sendall(b"x")
            seconds, answer = self.text_of("Subject: good\r\n\r\nx\r\n")
            self.assertEqual(answer[:3], b"250")
            slowest = max(slowest, seconds)
        self.assertLess(slowest, 0.5)
        self.assertLess((resident(self.gateway.process.pid) - before) / 400, 16 << 10)
        for connection in slow:
            connection.close()

    def test_many_recipients(self):
        """Of 20 000 RCPTs a thousand are taken and the others put off; the message goes to the thousand."""
        began = time.monotonic()
        client = self.house.client()
        client.write(b"MAIL FROM:<a@b.test>\r\n" + b"".join(b"RCPT TO:<u%d@one.test>\r\n" % n for n in range(20000)))
        got = codes(b"".join(client.reply() for _ in range(20001)))
        self.assertEqual((got[:1001], set(got[1001:])), ([250] * 1001, {452}))
        client.say("DATA")
        self.assertEqual(client.say("X-Mark: m\r\n\r\n.")[:3], b"250")
        client.close()

        self.assertLess(time.monotonic() - began, 3)
        until(lambda: sum(len(recipients) for _, recipients, _ in self.taken()) == 1000)

    def test_one_line(self):
        """40 MB in one line are read to their end, refused, and cost no memory."""
        before = resident(*self.pids())
        seconds, answer = self.text_of(b"Subject: x\r\n\r\n" + b"x" * 40_000_000 + b"\r\n")

        self.assertEqual(answer[:9], b"554 5.6.0")
        self.assertLess(resident(*self.pids()) - before, 8 << 20)
        self.assertLess(seconds, 10)

    def test_headers(self):
        """Twenty thousand fields, one of a megabyte, lines of 60 KB, odd names: a second at the most, taken or refused."""
        for text in (
            b"X-Field: value\r\n" * 20000 + b"\r\nx\r\n", b"Received: by x\r\n" * 20000 + b"\r\nx\r\n",
            b"Subject: x\r\n" + b" folded and folded again\r\n" * 40000 + b"\r\nx\r\n",
            b"To: " + b"u@one.test,\r\n " * 20000 + b"u@one.test\r\n\r\nx\r\n", b"X: " + b"y" * 60000 + b"\r\n\r\nx\r\n",
            b"__proto__: x\r\n__class__: y\r\n: z\r\nno colon\r\nSpace : x\r\n\x00: x\r\n\r\nx\r\n", b"", b"\r\n", b"\r\n\r\n", b"no header\r\n",
        ):  # fmt: skip
            seconds, answer = self.text_of(text)
            self.assertRegex(answer.decode(), "^(250|5)", text[:20])
            self.assertLess(seconds, 1, text[:20])


class ScarcityTests(SynchronousTestCase):
    """A gateway that runs out of something goes on."""

    def setUp(self):
        leave()
        self.sink = Sink()
        self.addCleanup(self.sink.close)

    def start(self, **settings):
        gateway = Gateway({"one.test": f"smtp:127.0.0.1:{self.sink.port}"}, **settings)
        self.addCleanup(gateway.clear)
        return gateway

    def test_descriptors(self):
        """Without descriptors new clients are told 421 or wait; open sessions and later ones are served as ever."""
        gateway = self.start()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        popen = subprocess.Popen

        def limited(command, **settings):
            return popen(["prlimit", "--nofile=64:64", *command], **settings)

        self.patch(subprocess, "Popen", limited)
        gateway.start()
        self.patch(subprocess, "Popen", popen)
        self.assertEqual(resource.getrlimit(resource.RLIMIT_NOFILE), (soft, hard))
        early = gateway.client()

        crowd = [socket.create_connection(("127.0.0.1", gateway.port), 10) for _ in range(150)]
        time.sleep(0.5)
        self.assertEqual(early.mail("bob@one.test", mark="early")[:3], b"250")
        greeted = []
        for connection in crowd:
            connection.settimeout(0.01)
            with contextlib.suppress(OSError):
                greeted.append(connection.recv(100)[:3])
        self.assertLessEqual(set(greeted), {b"220", b"421", b""})
        for connection in crowd:
            connection.close()

        until(lambda: gateway.client().mail("bob@one.test", mark="late").startswith(b"250"))
        until(lambda: self.sink.marks[b"early"] and self.sink.marks[b"late"])
        for word in ("Traceback", "Unhandled"):
            self.assertNotIn(word, gateway.text())

    def test_log_closed(self):
        """When nobody reads the log any more, mail goes on; a stop is a stop."""
        gateway = self.start()
        read, write = os.pipe()
        self.patch(gateway, "log", f"/proc/self/fd/{write}")
        gateway.process = process = subprocess.Popen(
            [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile=", "qmq", "--conf", gateway.conf],
            stdout=write, stderr=write, cwd=gateway.folder, start_new_session=True,
        )  # fmt: skip
        os.close(write)
        seen = b""
        while b" ready" not in seen:
            seen += os.read(read, 65536)
        self.assertEqual(gateway.client().mail("bob@one.test", mark="before")[:3], b"250")
        os.close(read)

        for n in range(200):
            self.assertEqual(gateway.client().mail("bob@one.test", mark=f"m{n}")[:3], b"250")
        os.kill(process.pid, signal.SIGHUP)
        time.sleep(0.3)
        self.assertEqual(gateway.client().mail("bob@one.test", mark="after")[:3], b"250")

        until(lambda: sum(self.sink.marks.values()) == 202)
        self.assertIsNone(process.poll())
        process.terminate()
        self.assertEqual(process.wait(15), 0)

    def test_log_stuck(self):
        """When whoever reads the log has stopped, mail does not wait for it."""
        gateway = self.start()
        read, write = os.pipe()
        self.addCleanup(os.close, read)
        gateway.process = subprocess.Popen(
            [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile=", "qmq", "--conf", gateway.conf],
            stdout=write, stderr=write, cwd=gateway.folder, start_new_session=True,
        )  # fmt: skip
        os.close(write)
        seen = b""
        while b" ready" not in seen:
            seen += os.read(read, 65536)
        client = gateway.client(timeout=10)
        for n in range(600):
            self.assertEqual(
                client.mail(f"{'u' * 60}@one.test", sender="a" * 60 + "@source.test", mark=f"m{n}")[:3], b"250", n
            )
        until(lambda: sum(self.sink.marks.values()) == 600, 30)
