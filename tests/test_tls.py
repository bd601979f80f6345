import contextlib
import datetime as dt
import ipaddress
import os
import tempfile
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import CertificateOptions, TLSVersion
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.test.iosim import FakeTransport, connect
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from qmq.tls import TLSTrouble, client_context, client_options, server_options, session_text, verified

NOW = dt.datetime(2026, 11, 23, tzinfo=dt.UTC)
PEM = serialization.Encoding.PEM


class Authority:
    """Issues certificates; by itself, it is the root."""

    def __init__(self, name: str, issuer: "Authority | None" = None) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = (issuer or self).issue(self.name, self.key, authority=True)

    def issue(
        self, name: x509.Name, key: Any, *hosts: str, authority: bool = False, days: int = 3650
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - dt.timedelta(days=3650))
            .not_valid_after(NOW + dt.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if hosts:
            names: list[x509.GeneralName] = [
                x509.IPAddress(ipaddress.ip_address(h)) if h[0].isdigit() else x509.DNSName(h) for h in hosts
            ]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self.key, hashes.SHA256())


def pem_key(key: Any, passphrase: bytes | None = None) -> bytes:
    """The key in PEM form, perhaps with a passphrase."""
    how = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, how)


class Files(SynchronousTestCase):
    """A folder, an authority, and a server's certificate for mail.example.org and 192.0.2.1."""

    def setUp(self) -> None:
        """Make them."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.root = Authority("root")
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mail.example.org")])
        self.issued = self.root.issue(self.name, self.key, "mail.example.org", "192.0.2.1")
        self.certificate = self.file("cert.pem", self.issued.public_bytes(PEM))
        self.key_file = self.file("key.pem", pem_key(self.key))
        self.ca_file = self.file("ca.pem", self.root.certificate.public_bytes(PEM))

    def file(self, name: str, content: bytes) -> str:
        """A file in the folder."""
        path = os.path.join(self.folder, name)
        with open(path, "wb") as file:
            file.write(content)
        return path


class Party(Protocol):
    """Keeps what it got and how it ended."""

    def __init__(self) -> None:
        self.got = b""
        self.lost: Any = None

    def dataReceived(self, data: bytes) -> None:
        self.got += data

    def connectionLost(self, reason: Any = None) -> None:
        self.lost = reason


def handshake(server: Any, client: Any) -> tuple[Party, Party]:
    """Two parties with TLS between them, after the handshake (or its failure)."""
    parties = Party(), Party()
    clock = Clock()
    wrapped = [
        TLSMemoryBIOFactory(options, is_client, Factory.forProtocol(lambda party=party: party), clock=clock)
        for options, is_client, party in [(server, False, parties[0]), (client, True, parties[1])]
    ]
    protocols = [factory.buildProtocol(None) for factory in wrapped]
    pump = connect(
        protocols[0],
        FakeTransport(protocols[0], isServer=True),
        protocols[1],
        FakeTransport(protocols[1], isServer=False),
    )
    pump.flush()
    parties[1].transport.write(b"EHLO")
    for _ in range(10):
        clock.advance(0.1)
        pump.flush()
    return parties


class HandshakeTests(Files):
    def shake(self, hostname: str, server: Any = None, ca_file: str | None = None) -> tuple[Party, Party]:
        server = server or server_options(self.certificate, self.key_file)
        return handshake(server, client_options(hostname, client_context(ca_file or self.ca_file)))

    def test_verified(self) -> None:
        """A certificate by an authority we trust, for the host's name, is verified; so is one for its address."""
        for hostname in ("mail.example.org", "Mail.Example.ORG.", "192.0.2.1"):
            server, client = self.shake(hostname)

            self.assertEqual(server.got, b"EHLO")
            self.assertTrue(verified(client.transport), hostname)
            self.assertRegex(session_text(client.transport), r"\ATLSv1\.3 TLS_\w+ verified\Z")
            self.assertRegex(session_text(server.transport), r"\ATLSv1\.3 TLS_\w+\Z")
            self.assertFalse(verified(server.transport))

    def test_not_verified(self) -> None:
        """A wrong name, an unknown authority, or an expired certificate is noted, and the connection goes on."""
        other = self.file("other.pem", Authority("other").certificate.public_bytes(PEM))
        old = self.root.issue(self.name, self.key, "mail.example.org", days=-1)
        expired = server_options(self.file("old.pem", old.public_bytes(PEM)), self.key_file)
        nameless = self.root.issue(self.name, self.key)
        without = server_options(self.file("nameless.pem", nameless.public_bytes(PEM)), self.key_file)

        for parties in [
            self.shake("mx.example.org"),
            self.shake("192.0.2.2"),
            self.shake("mail.example.org", ca_file=other),
            self.shake("mail.example.org", server=expired),
            self.shake("mail.example.org", server=without),
            self.shake("\u0378.example"),
        ]:
            self.assertEqual(parties[0].got, b"EHLO")
            self.assertFalse(verified(parties[1].transport))
            self.assertRegex(session_text(parties[1].transport), r"\ATLSv1\.3 TLS_\w+\Z")

    def test_chain(self) -> None:
        """The chain after the server's own certificate is sent along."""
        middle = Authority("middle", self.root)
        issued = middle.issue(self.name, self.key, "mail.example.org")
        both = issued.public_bytes(PEM) + middle.certificate.public_bytes(PEM) + pem_key(self.key)

        _, client = self.shake("mail.example.org", server_options(self.file("both.pem", both)))

        self.assertTrue(verified(client.transport))

    def test_server_name(self) -> None:
        """The host's name is sent to the server, an address is not (RFC 6066)."""
        for hostname, sent in [("mail.example.org", b"mail.example.org"), ("bücher.example", b"xn--bcher-kva.example"),
                               ("192.0.2.1", None)]:  # fmt: skip
            server, _ = self.shake(hostname)

            self.assertEqual(server.transport.getHandle().get_servername(), sent)

    def test_old_protocols(self) -> None:
        """Neither side goes below TLS 1.2; TLS 1.2 itself is spoken."""
        options = server_options(self.certificate, self.key_file)
        for version, spoken in [(TLSVersion.TLSv1_2, True), (TLSVersion.TLSv1_1, False)]:
            old = CertificateOptions(insecurelyLowerMinimumTo=TLSVersion.TLSv1_0, lowerMaximumSecurityTo=version)
            server, client = handshake(options, old)
            self.assertEqual(server.got == b"EHLO", spoken)
            self.assertEqual(client.lost is None, spoken)

            old_server = CertificateOptions(
                privateKey=options.privateKey,
                certificate=options.certificate,
                insecurelyLowerMinimumTo=TLSVersion.TLSv1_0,
                lowerMaximumSecurityTo=version,
            )
            server, client = self.shake("mail.example.org", old_server)
            self.assertEqual(server.got == b"EHLO", spoken)
            if spoken:
                self.assertEqual(session_text(client.transport).split()[0], "TLSv1.2")

    def test_tickets(self) -> None:
        """A session of one listener can be resumed there, and not at another listener."""
        context = client_context(self.ca_file)
        first, second = (server_options(self.certificate, self.key_file) for _ in range(2))
        context.set_session_cache_mode(SSL.SESS_CACHE_CLIENT)
        context.set_options(SSL.OP_NO_TLSv1_3)  # there tickets come after the handshake

        def resumed(server: Any, session: Any) -> tuple[bool, Any]:
            ends = SSL.Connection(server.getContext(), None), SSL.Connection(context, None)
            ends[0].set_accept_state()
            ends[1].set_connect_state()
            if session is not None:
                ends[1].set_session(session)
            for _ in range(6):
                for end, peer in (ends, ends[::-1]):
                    with contextlib.suppress(SSL.WantReadError):
                        end.do_handshake()
                    with contextlib.suppress(SSL.WantReadError):
                        peer.bio_write(end.bio_read(65536))
            ends[1].shutdown()  # else the session counts as broken
            return SSL._lib.SSL_session_reused(ends[1]._ssl) == 1, ends[1].get_session()

        _, session = resumed(first, None)

        self.assertTrue(resumed(first, session)[0])
        self.assertFalse(resumed(second, session)[0])

    def test_in_clear(self) -> None:
        """A transport in clear has no session text and nothing is verified."""
        self.assertEqual(session_text(StringTransport()), "")
        self.assertFalse(verified(StringTransport()))

    def test_interface(self) -> None:
        """The client's options are what Twisted's startTLS asks for; the system's authorities are the default."""
        verifyObject(IOpenSSLClientConnectionCreator, client_options("mail.example.org"))


class FileTests(Files):
    """Each error names the file and what to do about it."""

    def trouble(self, certificate: str, key: str | None = None) -> str:
        return str(self.assertRaises(TLSTrouble, server_options, certificate, key))

    def test_missing(self) -> None:
        """A file that is not there, or may not be read, is named."""
        self.assertIn(
            "/nonexistent/cert.pem: can't read the certificate: No such file", self.trouble("/nonexistent/cert.pem")
        )
        self.assertIn(
            "/nonexistent/key: can't read the private key", self.trouble(self.certificate, "/nonexistent/key")
        )
        self.assertIn("name a file", self.trouble(self.folder))

    def test_no_certificate(self) -> None:
        """A file without a certificate, or with a broken one, is named."""
        broken = self.file("broken.pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")

        self.assertIn("key.pem: no certificate in PEM form", self.trouble(self.key_file))
        self.assertIn("broken.pem: no certificate in PEM form", self.trouble(broken))

    def test_no_key(self) -> None:
        """A file without a key, or with a key that wants a passphrase, is named, and nobody is asked for it."""
        locked = self.file("locked.pem", pem_key(self.key, b"secret"))

        self.assertIn("cert.pem: no private key in PEM form", self.trouble(self.certificate))
        self.assertIn("without a passphrase", self.trouble(self.certificate, locked))

    def test_other_key(self) -> None:
        """A key that does not belong to the certificate is found at start, not at the first handshake."""
        other = self.file("other.pem", pem_key(ec.generate_private_key(ec.SECP256R1())))

        self.assertIn("does not belong", self.trouble(self.certificate, other))

    def test_no_authorities(self) -> None:
        """A file of authorities that is none is named."""
        self.assertRaises(TLSTrouble, client_context, self.key_file)
        self.assertRaises(TLSTrouble, client_context, "/nonexistent")
