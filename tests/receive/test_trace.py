from email.utils import parsedate_to_datetime

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qmq.mail import Address, Origin
from qmq.receive.trace import Arrival, Trace, hops, loops, protocol
from qmq.session import Session


def session(**how):
    said = {"client": "192.0.2.1", "port": 4, "server": "", "server_port": 25, "helo": b"c.example", "esmtp": True}
    return Session(**{**said, **how})


class ReceivedTests(SynchronousTestCase):
    def field(self, session, only=None, smtputf8=False):
        trace = Trace(b"mx.example", lambda: 0)
        return trace.received(trace.begun(session, protocol(session, smtputf8=smtputf8)), b"s-1f", only)

    def test_form(self):
        """The field tells who, by whom, how, as what, for whom and when, and is folded."""
        field = self.field(session(tls="TLSv1.3 TLS_AES_256_GCM_SHA384"), Address(b"a b", b"x.example"))

        self.assertEqual(
            field,
            b"Received: from c.example ([192.0.2.1])\r\n"
            b"\tby mx.example with ESMTPS (TLSv1.3 TLS_AES_256_GCM_SHA384) id s-1f\r\n"
            b'\tfor <"a b"@x.example>;\r\n'
            b"\tThu, 1 Jan 1970 00:00:00 +0000\r\n",
        )

    def test_ipv6(self):
        """An IPv6 address is marked as one."""
        self.assertIn(b"([IPv6:2001:db8::1])", self.field(session(client="2001:db8::1")))

    def test_name(self):
        """The client's name in DNS stands before its address, if it has one."""
        self.assertIn(b"(host.example [192.0.2.1])", self.field(session(host="host.example")))

    def test_local(self):
        """A client of a unix socket has no address."""
        self.assertIn(b"(local)", self.field(session(client="")))

    def test_arrival(self):
        """All messages of a session begin alike, but for the letters that checkers add and for SMTPUTF8."""
        arrival = Arrival(Trace(b"mx.example", lambda: 0), session(client="::1", tls="x", user=b"u"))

        begun, origin = arrival.of(b"", smtputf8=False)

        self.assertEqual(begun, b"Received: from c.example ([IPv6:::1])\r\n\tby mx.example with ESMTPSA (x) id ")
        self.assertEqual(origin, Origin(b"ESMTPSA", b"::1", 4, b"c.example", b"u"))
        self.assertIs(arrival.of(b"", smtputf8=False)[1], origin)
        self.assertEqual(arrival.of(b"M", smtputf8=True)[1].protocol, b"UTF8SMTPSAM")

    def test_protocols(self):
        """The word after "with" tells ESMTP, TLS and SMTPUTF8 apart."""
        words = [
            protocol(session(esmtp=esmtp, tls=tls, user=user), smtputf8=utf8)
            for esmtp, tls, user, utf8 in [
                (False, "", b"", False), (True, "", b"", False), (True, "x", b"", False),
                (True, "", b"", True), (True, "x", b"", True), (True, "x", b"u", False),
            ]
        ]  # fmt: skip

        self.assertEqual(words, [b"SMTP", b"ESMTP", b"ESMTPS", b"UTF8SMTP", b"UTF8SMTPS", b"ESMTPSA"])

    @given(st.binary(max_size=300), st.binary(max_size=64), st.binary(max_size=64), st.text(max_size=64))
    def test_nothing_breaks_out(self, helo, local, domain, host):
        """Whatever a client says it is called, the field stays one field of its four lines."""
        field = self.field(session(helo=helo, host=host), Address(local, domain))

        self.assertEqual(field.count(b"\r\n"), 4)
        self.assertEqual(field.replace(b"\r\n\t", b"").count(b"\n"), 1)
        self.assertNotIn(b"\x00", field)
        self.assertLess(max(map(len, field.split(b"\r\n"))), 998)

    @given(st.integers(0, 4102444800))
    def test_date(self, now):
        """The date is the one of the wall clock."""
        trace = Trace(b"mx.example", lambda: now + 0.9)

        for _ in range(2):
            self.assertEqual(parsedate_to_datetime(trace.date().decode()).timestamp(), now)


class HopsTests(SynchronousTestCase):
    def test_counted(self):
        """Received and Delivered-To fields count, in any case, but not their like or their folds."""
        header = (
            b"Received: a\r\n\treceived: fold\r\nRECEIVED: b\r\nX-Received: c\r\n"
            b"delivered-to: d\r\nReceived-SPF: e\r\nSubject: received: f\r\n"
        )

        self.assertEqual(hops(header), 3)
        self.assertEqual(hops(b""), 0)

    @given(
        st.lists(st.sampled_from((b"received:", b"Delivered-To: x", b"\r\n", b"\r\n", b"a: b\r\n", b"\t")), max_size=30)
    )
    def test_loop(self, parts):
        """A text loops if its header has so many of them, however short they are."""
        text = b"".join(parts)
        header = b"" if text.startswith(b"\r\n") else text.partition(b"\r\n\r\n")[0]

        for most in (1, 2, 3):
            self.assertEqual(loops(text, most), hops(header) >= most)
