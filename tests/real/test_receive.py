"""The ESMTP listener on real sockets: real TLS, injection behind STARTTLS, a client that never reads."""

import datetime as dt
import smtplib
import socket
import ssl
import tempfile

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.internet.defer import succeed
from twisted.internet.ssl import PrivateCertificate
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from zope.interface import implementer

from qmq.checks.rcpthosts import Factory
from qmq.interfaces import INextHop
from qmq.mail import Reply, Token
from qmq.receive.context import Context
from qmq.receive.draft import Drafts
from qmq.receive.policy import Policy
from qmq.receive.reception import Limits, Reception
from qmq.receive.smtp import SMTPFactory


@implementer(INextHop)
class Taker:
    """Takes everything."""

    def __init__(self):
        self.texts = []

    def send(self, message):
        self.texts.append(b"".join(message.chunks()))
        return succeed([Reply(250, "2.0.0", "taken")] * len(message.envelope.recipients))


class Facts:
    def accepted(self, *_):
        pass

    passed = refused = noted = accepted


def certificate():
    """A self-signed certificate, as Twisted's context factory."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mx.ours.example")])
    now = dt.datetime.now(dt.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return PrivateCertificate.loadPEM(private + signed.public_bytes(pem)).options()


@pytest.fixture
def listener():
    """A listener for ours.example: its hop, its factory, its address."""
    from twisted.internet import reactor

    hop, clock = Taker(), Clock()
    rcpthosts = Factory().make(Context(lambda domain: domain == b"ours.example", 0, clock), {})
    reception = Reception(
        me=b"mx.ours.example",
        policy=Policy([("rcpthosts", rcpthosts)], clock),
        hop=hop,
        drafts=Drafts(tempfile.mkdtemp(), inline=1000),
        next_token=lambda: Token(b"spool", 1),
        log=Facts(),
        clock=clock,
        wall=lambda: 0,
        limits=Limits(talk=10**9),
        starttls=True,
    )
    factory = SMTPFactory(reception, context=certificate())
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    yield hop, factory, ("127.0.0.1", port.getHost().port), clock
    for conversation in tuple(factory.sessions):
        conversation.abort()
    import pytest_twisted

    pytest_twisted.blockon(port.stopListening())


def unverified():
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def test_tls(listener):
    """Mail comes in over STARTTLS, short and long, and its Received field tells the cipher."""
    hop, _, address, _ = listener

    def client():
        with smtplib.SMTP(*address, local_hostname="client.example", timeout=10) as smtp:
            smtp.starttls(context=unverified())
            for size in (10, 300_000):
                text = "Subject: x\r\n\r\n" + ("y" * 98 + "\r\n") * (size // 100 + 1)
                smtp.sendmail("a@client.example", ["b@ours.example"], text)

    await deferToThread(client)

    assert [len(text) > 300_000 for text in hop.texts] == [False, True]
    for text in hop.texts:
        assert b"with ESMTPS (TLSv1.3 TLS_" in text.split(b"Subject")[0]


async def test_injection(listener):
    """Commands in the segment of STARTTLS are answered neither in clear nor inside TLS."""
    hop, _, address, _ = listener

    def client():
        with socket.create_connection(address, timeout=10) as plain:
            plain.recv(1000)
            plain.sendall(b"EHLO a\r\n")
            plain.recv(1000)
            plain.sendall(b"STARTTLS\r\nEHLO evil\r\nMAIL FROM:<>\r\nRCPT TO:<b@ours.example>\r\n")
            ready = plain.recv(1000)
            with unverified().wrap_socket(plain) as secret:
                secret.sendall(b"DATA\r\nQUIT\r\n")
                said = b""
                while more := secret.recv(1000):
                    said += more
        return ready, said

    ready, said = await deferToThread(client)

    assert ready == b"220 2.0.0 ready for TLS\r\n"
    assert said == b"503 5.5.1 MAIL first\r\n221 2.0.0 bye\r\n"
    assert hop.texts == []


async def test_never_reads(listener):
    """A client that sends and sends, and never reads, is no longer read from, holds a bounded buffer, and is cut."""
    _, factory, address, clock = listener

    def flood():
        client = socket.create_connection(address, timeout=0.5)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sent = 0
        try:
            while sent < 200_000_000:
                sent += client.send(b"NOOP\r\n" * 10000)
        except TimeoutError:
            pass
        return client, sent

    client, sent = await deferToThread(flood)

    assert sent < 200_000_000
    (conversation,) = factory.sessions
    waiting = len(conversation.transport.dataBuffer) + conversation.transport._tempDataLen
    assert 65536 < waiting < 1_000_000
    for now in range(62):
        clock.advance(1)
        assert bool(now < 61) is conversation._open
    client.close()
