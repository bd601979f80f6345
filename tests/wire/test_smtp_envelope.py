"""The envelope as one piece of commands."""

from twisted.trial.unittest import SynchronousTestCase

from qmq.mail import Address, Envelope, MemoryBody, Message, Token
from qmq.wire.smtp_envelope import Extensions, envelope_commands


def said(*recipients):
    """The RCPTs, without their verbs."""
    envelope = Envelope(Token(b"q", 1), Address(b"a", b"source.test"), tuple(recipients))
    commands = envelope_commands(Message(envelope, b"", MemoryBody(b"x\r\n")), Extensions(), "mta", binary=False)
    return [line.removeprefix(b"RCPT TO:") for line in commands.splitlines()[1:]]


class EnvelopeTests(SynchronousTestCase):
    """Which local parts are said as they are."""

    def test_dots(self):
        """Dots at the ends of a local part, or two in a row, are quoted, alone and among plain ones, whichever Python it is."""
        for odd in (b"a.", b".a", b"a..b", b".", b"a.b."):
            quoted = b'<"%s"@one.test>' % odd
            self.assertEqual(said(Address(odd, b"one.test")), [quoted])
            self.assertEqual(
                said(Address(b"x.y", b"one.test"), Address(odd, b"one.test"), Address(b"z", b"one.test")),
                [b"<x.y@one.test>", quoted, b"<z@one.test>"],
            )

    def test_hostile(self):
        """A thousand recipients of which the last is odd are told from plain ones as quickly."""
        many = [Address(b"a.b.c%d" % n, b"one.test") for n in range(1000)]

        self.assertEqual(said(*many, Address(b"a..", b"one.test"))[-1], b'<"a.."@one.test>')
