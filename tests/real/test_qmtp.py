"""Client and server over real sockets, unix and TCP: what memory cannot show."""

import os
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater

from qmq.deliver.qmtp import QMTPClient, dial_qmtp
from qmq.mail import Address, DeliveryFailure, Envelope, FileBody, MemoryBody, Message, Origin, Replies, Reply, Token
from qmq.receive.draft import Drafts
from qmq.receive.qmtp import QMTPFactory

A = Address(b"a", b"b.c")
OK = Reply(250, "2.0.0", "ok")


def message(seq, body=None):
    return Message(Envelope(Token(b"mx", seq), A, (A,), Origin()), b"X: y\r\n", body or MemoryBody(b"%d\r\n" % seq))


class Hop:
    """Keeps, and answers after *seconds*."""

    def __init__(self, reactor):
        self.reactor = reactor
        self.seconds = 0.0
        self.texts: list[bytes] = []

    def send(self, message: Message) -> Deferred[Replies]:
        return self.send_in_doubt(message, 0)

    def send_in_doubt(self, message: Message, low: int) -> Deferred[Replies]:
        self.texts.append(b"".join(message.body.chunks()))
        return deferLater(self.reactor, self.seconds, lambda: [OK] * len(message.envelope.recipients))


class House:
    """A server on a unix socket and a TCP port."""

    def __init__(self, folder: Path) -> None:
        from twisted.internet import reactor

        self.reactor = reactor
        self.hop = Hop(reactor)
        drafts = folder / "drafts"
        drafts.mkdir()
        self.drafts = str(drafts)
        self.path = str(folder / "s")
        self.factory = QMTPFactory(
            clock=reactor, wall=reactor.seconds, drafts=Drafts(self.drafts), hop=self.hop,
            next_token=lambda: Token(b"x", 1), accept=lambda *_: None, me=b"alpha",
            peers=(ip_network("127.0.0.0/8"),), extension=True,
        )  # fmt: skip
        self.ports = [
            reactor.listenUNIX(self.path, self.factory),
            reactor.listenTCP(0, self.factory, interface="127.0.0.1"),
        ]
        self.clients: list[QMTPClient] = []

    def client(self, **options):
        client = QMTPClient(
            self.reactor,
            lambda factory: self.reactor.connectUNIX(self.path, factory),
            extension=True,
            low=lambda: 1,
            mta="alpha",
            **options,
        )
        self.clients.append(client)
        return client

    async def close(self) -> None:
        await gatherResults([client.stop() for client in self.clients])
        for port in self.ports:
            await maybeDeferred(port.stopListening)
        await self.factory.stop()


@pytest.fixture
def house(tmp_path) -> Iterator[House]:
    return House(tmp_path)


async def test_many_messages(house):
    """A thousand messages over four connections arrive once each, and each is answered."""
    client = house.client()
    answers = await gatherResults([client.send(message(seq)) for seq in range(1000)])

    assert all(reply.ok and reply.mta == "alpha" for (reply,) in answers)
    assert sorted(house.hop.texts) == sorted(b"X: y\r\n%d\r\n" % seq for seq in range(1000))
    await house.close()


async def test_large_bodies(house, tmp_path):
    """Bodies of many megabytes pass whole beside small ones, and leave no file behind."""
    path = tmp_path / "body"
    text = os.urandom(48).hex().encode() + b"\r\n"
    path.write_bytes(b"\r\n" + text * 100000)
    client = house.client(connections=2)
    bodies = [FileBody(str(path), 9800002) if seq % 4 == 0 else None for seq in range(12)]
    answers = await gatherResults([client.send(message(seq, body)) for seq, body in enumerate(bodies)])

    assert {reply.text for (reply,) in answers} == {"ok"}
    assert sorted(map(len, house.hop.texts))[-3:] == [9800008] * 3
    assert max(house.hop.texts, key=len) == b"X: y\r\n\r\n" + text * 100000
    assert os.listdir(house.drafts) == []
    await house.close()


async def test_server_goes_and_comes_back(house):
    """While nobody listens messages are in doubt at once; when somebody does again they pass."""
    client = house.client()
    assert (await client.send(message(1)))[0].ok
    await house.ports[0].stopListening()
    house.hop.seconds = 0.05
    sent = client.send(message(2))
    await deferLater(house.reactor, 0.02)
    await house.factory.stop()
    assert (await sent)[0].ok, "what was taken is answered before the session closes"
    await deferLater(house.reactor, 0.02)
    reply = (await client.send(message(3)))[0]
    assert (reply.code, reply.status, reply.mta) == (451, "4.4.1", "")
    house.factory._stopped = None
    house.ports[0] = house.reactor.listenUNIX(house.path, house.factory)
    await deferLater(house.reactor, 0.15)
    assert (await client.send(message(4)))[0].ok
    await house.close()


async def test_answers_not_read(house):
    """A client that sends and never reads costs a bounded number of messages: reading from it stops."""
    connected: Deferred[Protocol] = Deferred()

    class Deaf(Protocol):
        def connectionMade(self):
            self.transport.pauseProducing()
            connected.callback(self)

    from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol

    await connectProtocol(UNIXClientEndpoint(house.reactor, house.path), Deaf())
    deaf = await connected
    package = b"1:\r,0:,%d:%b," % (8000, b"5:a@b.c," * 1000)
    deaf.transport.write(package * 400)
    await deferLater(house.reactor, 1.0)
    taken = len(house.hop.texts)
    assert 0 < taken < 400
    await deferLater(house.reactor, 0.3)
    assert len(house.hop.texts) == taken
    deaf.transport.abortConnection()
    await deferLater(house.reactor, 0.05)
    await house.close()


class Work:
    """A site's work."""

    def __init__(self, *ready):
        self.ready = list(ready)
        self.replies = []
        self.over: Deferred[object] = Deferred()

    def take(self):
        return self.ready.pop(0) if self.ready else None

    def finished(self, message, replies):
        self.replies += replies

    def idle(self, connection):
        connection.close()

    def lost(self, connection, reason):
        self.over.callback(reason)


async def test_delivery_to_a_site(house):
    """A site that speaks QMTP over TCP gets its messages one behind the other, from the address we are told to use."""
    work = Work(*map(message, range(2, 10)))
    connection = await dial_qmtp(house.reactor, "127.0.0.1", house.ports[1].getHost().port, work, bind=("127.0.0.2", 0))
    connection.send(message(1))

    assert await work.over is None
    assert [reply.text for reply in work.replies] == ["ok"] * 9
    assert house.hop.texts == [b"X: y\r\n%d\r\n" % seq for seq in range(1, 10)]
    await house.close()


async def test_site_that_nobody_is(house):
    """Where nobody listens the failure is a 451, and cancelling a call that hangs ends it."""
    port = house.ports[1].getHost().port
    await house.ports[1].stopListening()
    with pytest.raises(DeliveryFailure) as failure:
        await dial_qmtp(house.reactor, "127.0.0.1", port, Work())
    assert failure.value.reply.status == "4.4.1"
    calling = dial_qmtp(house.reactor, "127.0.0.1", port, Work())
    calling.addErrback(lambda _: None)
    calling.cancel()
    await house.close()
