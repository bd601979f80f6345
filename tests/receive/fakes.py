"""A listener in memory: the real wire, conversation, dialogue, policy and drafts; a pretended hop, clock and client."""

import os
import tempfile
from itertools import count

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from qmq.checks.rcpthosts import Factory
from qmq.interfaces import INextHop
from qmq.mail import Reply, Token
from qmq.receive.context import Context
from qmq.receive.draft import Drafts
from qmq.receive.policy import Policy
from qmq.receive.reception import Limits, Reception
from qmq.receive.smtp import SMTPFactory

TAKEN = Reply(250, "2.0.0", "taken")


@implementer(INextHop)
class FakeHop:
    """Keeps what it is given; takes all of it, unless *answer* or *held* says otherwise."""

    def __init__(self):
        self.sent = []  # (message, text)
        self.answer = lambda message: [TAKEN] * len(message.envelope.recipients)
        self.held = None  # a list: Deferreds to fire

    def send(self, message):
        self.sent.append((message, b"".join(message.chunks())))
        if self.held is not None:
            self.held.append(Deferred())
            return self.held[-1]
        return succeed(self.answer(message))

    @property
    def envelopes(self):
        return [message.envelope for message, _ in self.sent]

    @property
    def bodies(self):
        return [b"".join(message.body.chunks()) for message, _ in self.sent]


class FakeLog:
    def __init__(self):
        self.facts = []
        self.passes = []  # (recipient, reason, info)

    def accepted(self, id, session, sender, recipients, size):  # noqa: A002
        self.facts.append(("accepted", id, sender, tuple(recipients), size))

    def passed(self, session, transaction, recipient, reason, info=""):
        self.passes.append((recipient, reason, info))

    def refused(self, session, transaction, recipient, reply, reason, info=""):
        self.facts.append(("refused", transaction and transaction.sender, recipient, reply.code, reason))

    def noted(self, session, transaction, recipient, reason, info=""):
        self.facts.append(("noted", recipient, reason, info))


class Wired(StringTransport):
    """A transport that can be cut and pretends STARTTLS."""

    def __init__(self, client="192.0.2.1"):
        super().__init__(
            hostAddress=IPv4Address("TCP", "192.0.2.25", 25), peerAddress=IPv4Address("TCP", client, 40000)
        )
        self.tls_with = None

    def startTLS(self, context):
        self.tls_with = (context, self.value())

    def getHandle(self):
        return self

    def get_protocol_version_name(self):
        return "TLSv1.3"

    def get_cipher_name(self):
        return "TLS_AES_256_GCM_SHA384"


class Client:
    """One client's connection."""

    def __init__(self, factory, address="192.0.2.1"):
        self.transport = Wired(address)
        self.conversation = factory.buildProtocol(self.transport.getPeer())
        self.conversation.makeConnection(self.transport)
        self.banner = self.heard()

    def say(self, *lines):
        """Send the lines in one packet; what came back."""
        return self.send(b"".join(line + b"\r\n" for line in lines))

    def send(self, data):
        self.conversation.dataReceived(data)
        return self.heard()

    def heard(self):
        lines = self.transport.value().decode("ascii").split("\r\n")[:-1]
        self.transport.clear()
        return lines

    def codes(self, *lines):
        return [line[:3] for line in self.say(*lines) if line[3] == " "]

    @property
    def closed(self):
        return self.transport.disconnecting

    def leave(self):
        self.conversation.connectionLost(Failure(ConnectionDone()))


LETTER = (b"EHLO client.example", b"MAIL FROM:<a@client.example>", b"RCPT TO:<b@ours.example>", b"DATA")
TEXT = b"Subject: hello\r\n\r\nHello.\r\n"


class ListenerCase(SynchronousTestCase):
    """Tests of a listener that takes mail for ours.example."""

    def setUp(self):
        self.clock = Clock()
        self.hop = FakeHop()
        self.log = FakeLog()
        self.folder = tempfile.mkdtemp()
        self.addCleanup(os.rmdir, self.folder)
        self.numbers = count(1)

    def listen(
        self,
        *checkers,
        limits=None,
        drafts=None,
        context=None,
        rcpthosts=True,
        reception=None,
        **how,
    ):
        checkers = list(checkers)
        if rcpthosts:
            knows = Context(lambda domain: domain == b"ours.example", 0, self.clock)
            checkers.append(("rcpthosts", Factory().make(knows, {})))
        at = Reception(
            me=b"mx.ours.example",
            policy=Policy(checkers, self.clock),
            hop=self.hop,
            drafts=drafts or Drafts(self.folder),
            next_token=lambda: Token(b"spool", next(self.numbers)),
            log=self.log,
            clock=self.clock,
            wall=lambda: 1700000000.5,
            limits=limits or Limits(),
            starttls=context is not None,
            **(reception or {}),
        )
        return SMTPFactory(at, context=context, **how)

    def client(self, *checkers, **how):
        return Client(self.listen(*checkers, **how))
