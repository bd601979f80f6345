import os

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qmq.mail import NULL_SENDER, Address, Envelope, MemoryBody, Message, Token
from qmq.rules.filters import deferred, queue_envelope, refused, surroundings
from qmq.session import Environment, Session

PLAIN = Environment()
ANN = Address(b"a", b"b.test")
BOB, EVE = Address(b"bob", b"one.test"), Address(b"eve e", b"two.test")


def message(sender=ANN, recipients=(BOB, EVE)):
    return Message(Envelope(Token(b"s", 1), sender, recipients), b"", MemoryBody(b""))


def around(environment=PLAIN, of=None, **kw):
    session = Session("192.0.2.1", 40000, "192.0.2.25", 25, environment=environment, **kw)
    return surroundings(session, of or message())


class SurroundingsTests(SynchronousTestCase):
    def test_session(self):
        """A filter is told who the client is, what it said, and who are sender and recipients."""
        found = around(helo=b"client.test", host="mx.client.test")

        self.assertEqual(found.pop("PATH"), os.environ["PATH"])
        self.assertEqual(
            found,
            {
                "PROTO": "TCP", "TCPREMOTEIP": "192.0.2.1", "TCPREMOTEPORT": "40000", "TCPREMOTEHOST": "mx.client.test",
                "TCPLOCALIP": "192.0.2.25", "TCPLOCALPORT": "25", "HELOHOST": "client.test", "MAILFROM": "a@b.test",
                "RCPTTO": "bob@one.test eve e@two.test ",
            },
        )  # fmt: skip
        self.assertEqual(around(of=message(NULL_SENDER))["MAILFROM"], "")

    def test_deliverto(self):
        """DELIVERTO comes before the recipients."""
        self.assertEqual(
            around(Environment(deliverto=b"x@y.test"), message(recipients=(BOB,)))["RCPTTO"], "x@y.test bob@one.test "
        )

    def test_who(self):
        """A relay client, and a user, are said to be that."""
        found = around(relay=True, user=b"bob")

        self.assertEqual([found[name] for name in ("RELAYCLIENT", "AUTHUSER", "TCPREMOTEINFO")], ["", "bob", "bob"])
        found = around(Environment(info=b"joe"), user=b"joe")
        self.assertEqual(found["TCPREMOTEINFO"], "joe")
        self.assertNotIn("AUTHUSER", found)
        self.assertNotIn("RELAYCLIENT", around())

    def test_variables(self):
        """The client's variables are there, but do not hide what is known, nor lead a wrapper to itself."""
        found = around(
            Environment(variables={"MINE": "x", "QMAILQUEUE": "/filter", "TCPREMOTEIP": "no", "A=B": "", "PATH": "/p"})
        )

        self.assertEqual((found["MINE"], found["TCPREMOTEIP"], found["PATH"]), ("x", "192.0.2.1", "/p"))
        self.assertTrue({"QMAILQUEUE", "A=B"}.isdisjoint(found))

    @given(st.binary(max_size=60), st.text(max_size=20))
    @settings(max_examples=60, deadline=None)
    def test_any_octets(self, octets, text):
        """Whatever was said, no value has a NUL or an end of line in it, and each can be given to a process."""
        found = around(
            Environment(variables={text: text}),
            message(Address(octets, octets), (Address(octets, b"x"),)),
            helo=octets,
            user=octets,
        )

        for name, value in found.items():
            self.assertNotRegex(name + value, "[\0\r\n]")
        fit = octets.translate(None, b"\0\r\n")
        self.assertEqual(os.fsencode(found["HELOHOST"]), fit)

    def test_envelope(self):
        """The envelope is as qmail-queue reads it."""
        self.assertEqual(queue_envelope(message()), b"Fa@b.test\0Tbob@one.test\0Teve e@two.test\0\0")
        self.assertEqual(queue_envelope(message(NULL_SENDER, (BOB,))), b"F\0Tbob@one.test\0\0")

    def test_verdicts(self):
        """Refusals have the site's words; without a judgement a message comes again."""
        session = Session(
            "192.0.2.1", 40000, "192.0.2.25", 25, environment=Environment(replies={"REPLY_CONTENT": "call us"})
        )

        verdict = refused(session, "Spam_Message", "spam")

        self.assertEqual(
            (verdict.reply.code, verdict.reply.status, verdict.reason, verdict.info),
            (554, "5.3.2", "Reject::DATA::Spam_Message", "spam"),
        )
        self.assertTrue(verdict.reply.text.endswith(" call us"))
        self.assertEqual((deferred("X", "y").reply.code, deferred("X", "y").reply.status), (451, "4.3.0"))
