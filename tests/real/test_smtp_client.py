"""The SMTP client against servers on real sockets, in clear and in TLS."""

import datetime as dt
import socket
import struct

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater

from qmq.deliver.dial import Dialler
from qmq.deliver.manner import Manner
from qmq.mail import Address, Envelope, FileBody, MemoryBody, Message, Token
from qmq.tls import client_options, server_options, session_text


def message(body) -> Message:
    envelope = Envelope(Token(b"t", 1), Address(b"s", b"example.com"), (Address(b"a", b"example.org"),))
    return Message(envelope, b"", body)


class Work:
    """A site whose reports can be waited for."""

    def __init__(self, *waiting: Message) -> None:
        self.waiting = list(waiting)
        self.replies: list = []
        self.quiet: Deferred = Deferred()
        self.connection = None

    def take(self):
        return self.waiting.pop(0) if self.waiting else None

    def finished(self, message, replies) -> None:
        self.replies += replies

    def idle(self, connection) -> None:
        self.quiet.callback("idle")

    def lost(self, connection, reason) -> None:
        if not self.quiet.called:
            self.quiet.callback("lost")


class Server(Protocol):
    """A plain-minded SMTP server; the factory has its words and its habits."""

    def connectionMade(self) -> None:
        self.buffer = b""
        self.text = False
        self.factory.connections += 1
        self.transport.write(b"220 hi\r\n")

    def dataReceived(self, data: bytes) -> None:
        self.buffer += data
        while self.buffer:
            if self.text:
                text, end, rest = self.buffer.partition(b"\r\n.\r\n")
                if not end:
                    return
                self.factory.texts.append(text + b"\r\n")
                self.buffer, self.text = rest, False
                if self.factory.reset:
                    self.transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.transport.abortConnection()
                    return
                self.transport.write(b"250 2.0.0 taken\r\n")
                continue
            line, end, self.buffer = self.buffer.partition(b"\r\n")
            if not end:
                self.buffer = line
                return
            self.command(line)

    def command(self, line: bytes) -> None:
        factory = self.factory
        match line[:4]:
            case b"EHLO" | b"LHLO":
                offer = b"250-STARTTLS\r\n" if factory.tls and not self.transport.TLS else b""
                self.transport.write(b"250-mx\r\n" + offer + b"250 PIPELINING\r\n")
            case b"STAR":
                self.transport.write(b"220 go\r\n" + factory.behind)
                if factory.plain:
                    self.transport.write(b"250 this is no TLS\r\n")
                elif not factory.behind:
                    self.transport.startTLS(factory.tls)
            case b"DATA":
                self.text = True
                self.transport.write(b"354 go\r\n")
            case b"QUIT":
                self.transport.write(b"221 bye\r\n")
                self.transport.loseConnection()
            case _:
                self.transport.write(b"250 ok\r\n")


class Habits(Factory):
    protocol = Server

    def __init__(self, tls=None, *, reset: bool = False, behind: bytes = b"", plain: bool = False) -> None:
        self.texts: list[bytes] = []
        self.connections = 0
        self.tls = tls
        self.reset = reset
        self.behind = behind
        self.plain = plain


@pytest.fixture
def reactor():
    from twisted.internet import reactor

    return reactor


@pytest.fixture
def listen(reactor, request):
    """Listens with this factory; gives the site."""
    ports = []

    def begin(factory: Habits) -> bytes:
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        ports.append(port)
        return b"smtp:127.0.0.1:%d" % port.getHost().port

    yield begin
    for port in ports:
        port.stopListening()


@pytest.fixture
def certificate(tmp_path) -> str:
    """A certificate of our own making, for localhost."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return str(path)


TLS = Manner(helo=b"me.example", tls=client_options, tls_text=session_text)
CLEAR = Manner(helo=b"me.example")


async def deliver(reactor, site: bytes, manner: Manner, *messages: Message):
    """Deliver these on one connection; the connection and what was reported."""
    work = Work(*messages[1:])
    dialler = Dialler(reactor, None, manner)
    connection = await dialler.dial(site, work)
    connection.send(messages[0])
    await work.quiet
    connection.close()
    while dialler.connections:
        await deferLater(reactor, 0.01)
    await deferLater(reactor, 1.1)  # the sweep ends by itself
    return connection, work


async def test_many_in_clear(reactor, listen):
    """Messages follow each other on one connection."""
    habits = Habits()
    bodies = [b"%d\r\n.\r\n..\r\n" % i for i in range(200)]
    _, work = await deliver(reactor, listen(habits), CLEAR, *[message(MemoryBody(body)) for body in bodies])

    assert [reply.code for reply in work.replies] == [250] * 200
    assert [text.replace(b"\r\n..", b"\r\n.") for text in habits.texts] == bodies
    assert habits.connections == 1


@pytest.mark.parametrize("manner", [CLEAR, TLS])
async def test_long_text(reactor, listen, certificate, tmp_path, manner):
    """A text of 5 MB arrives as it was, in clear and in TLS, with a short one behind it."""
    data = b"".join(b".%d\r\n" % i for i in range(600000))
    (tmp_path / "long").write_bytes(data)
    habits = Habits(server_options(certificate))
    connection, work = await deliver(
        reactor,
        listen(habits),
        manner,
        message(FileBody(str(tmp_path / "long"), len(data))),
        message(MemoryBody(b"x\r\n")),
    )

    assert [reply.code for reply in work.replies] == [250, 250]
    assert (b"\r\n" + habits.texts[0]).replace(b"\r\n..", b"\r\n.") == b"\r\n" + data
    assert habits.texts[1] == b"x\r\n"
    assert connection.tls.startswith("TLSv1.3") if manner is TLS else connection.tls == ""


async def test_plain_after_220(reactor, listen, certificate):
    """A server that agrees to TLS and speaks none gets its mail in clear, on a second connection."""
    habits = Habits(server_options(certificate))
    habits.plain = True
    habits.protocol = Late
    connection, work = await deliver(reactor, listen(habits), TLS, message(MemoryBody(b"x\r\n")))

    assert [reply.code for reply in work.replies] == [250]
    assert connection.tls == ""
    assert habits.connections == 2


class Late(Server):
    """Says something else than a TLS handshake, when the handshake is begun."""

    def command(self, line: bytes) -> None:
        if line[:4] == b"STAR":
            self.transport.write(b"220 go\r\n")
        else:
            super().command(line)

    def dataReceived(self, data: bytes) -> None:
        if data[:1] == b"\x16":
            self.transport.write(b"500 what?\r\n")
            return
        super().dataReceived(data)


async def test_response_injection(reactor, listen, certificate):
    """Replies behind the 220 in clear end the connection before a message is sent."""
    from qmq.mail import DeliveryFailure

    habits = Habits(server_options(certificate), behind=b"250 mx\r\n250 ok\r\n250 ok\r\n354 go\r\n250 taken\r\n")
    with pytest.raises(DeliveryFailure) as failure:
        await deliver(reactor, listen(habits), TLS, message(MemoryBody(b"x\r\n")))

    assert failure.value.reply.code == 451
    assert habits.texts == []
    assert habits.connections == 1
    await deferLater(reactor, 1.1)


async def test_reset_after_dot(reactor, listen):
    """A connection that is reset behind the final dot leaves the message deferred, its fate unknown."""
    habits = Habits(reset=True)
    _, work = await deliver(reactor, listen(habits), CLEAR, message(MemoryBody(b"x\r\n")))

    assert [(reply.code, reply.mta) for reply in work.replies] == [(451, "")]
    assert "unknown" in work.replies[0].text


async def test_lmtp_by_socket(reactor, tmp_path):
    """LMTP is spoken over a socket in the file system."""
    habits = Habits()
    port = reactor.listenUNIX(str(tmp_path / "s"), habits)
    _, work = await deliver(reactor, b"lmtp:%s" % str(tmp_path / "s").encode(), CLEAR, message(MemoryBody(b"x\r\n")))
    port.stopListening()

    assert [reply.code for reply in work.replies] == [250]


async def test_nobody_listens(reactor):
    """A refused connection is a temporary failure."""
    from qmq.mail import DeliveryFailure

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(DeliveryFailure) as failure:
            await Dialler(reactor, None, CLEAR).dial(b"smtp:127.0.0.1:%d" % taken.getsockname()[1], Work())

    assert failure.value.reply.status == "4.4.1"
    await deferLater(reactor, 1.1)
