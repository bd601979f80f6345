"""
TLS for both sides: a server's certificate, and a client that takes what it gets but knows what it got.

Never below TLS 1.2, no compression, no renegotiation. The opportunistic client
(RFC 7435) goes on with any certificate, because the alternative is clear text;
whether the certificate holds for the host is noted, for logs, Received fields
and for whoever demands more.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Callable
from typing import Any, TypeVar, cast

import idna
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificates
from OpenSSL import SSL, crypto
from service_identity import CertificateError, VerificationError
from service_identity.pyopenssl import verify_hostname, verify_ip_address
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import CertificateOptions, TLSVersion
from zope.interface import implementer

T = TypeVar("T")

_CERTIFICATE_ADVICE = "it begins with -----BEGIN CERTIFICATE-----"
_KEY_ADVICE = "write it without a passphrase: openssl pkey -in OLD -out NEW"


class TLSTrouble(ValueError):
    """A certificate or key that can't be used; the text names the file and says what to do."""


def server_options(certificate: str, key: str | None = None) -> CertificateOptions:
    """
    What a listener needs, for ``transport.startTLS`` or ``SSL4ServerEndpoint``.

    *certificate* is a PEM file: ours first, then the chain; *key* another, or
    in the same file. Make one for each listener: session tickets of one are
    then no good at another. Raises TLSTrouble.
    """
    key = key or certificate
    ours, *chain = _parsed(certificate, "certificate", _CERTIFICATE_ADVICE, load_pem_x509_certificates)
    private = _parsed(key, "private key", _KEY_ADVICE, lambda pem: load_pem_private_key(pem, None))
    options = CertificateOptions(
        # Twisted is typed for pyOpenSSL's own classes, which pyOpenSSL deprecates in favour of these.
        privateKey=cast("Any", private),
        certificate=cast("Any", ours),
        extraCertChain=cast("Any", chain),
        raiseMinimumTo=TLSVersion.TLSv1_2,
        enableSessions=True,
        enableSessionTickets=True,
    )
    try:
        context = options.getContext()
    except SSL.Error as failure:
        raise TLSTrouble(
            f"{key}: this key does not belong to the first certificate in {certificate};"
            " put the server's own certificate first, the chain after it"
        ) from failure
    context.set_options(SSL.OP_NO_RENEGOTIATION)
    return options


def _parsed(path: str, what: str, advice: str, parse: Callable[[bytes], T]) -> T:
    try:
        with open(path, "rb") as file:
            pem = file.read(1 << 20)
    except OSError as failure:
        raise TLSTrouble(
            f"{path}: can't read the {what}: {failure.strerror}; name a file that the server's user may read"
        ) from failure
    try:
        return parse(pem)
    except (ValueError, TypeError, UnsupportedAlgorithm) as failure:
        raise TLSTrouble(f"{path}: no {what} in PEM form here; {advice}") from failure


def client_context(ca_file: str | None = None) -> SSL.Context:
    """A client's context that trusts the system's authorities, or those of *ca_file* alone; costly, so make it once."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    # A resumed session would come without the chain that we look at.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    if ca_file is None:
        context.set_default_verify_paths()
    else:
        try:
            context.load_verify_locations(ca_file)
        except SSL.Error as failure:
            raise TLSTrouble(f"{ca_file}: no authorities' certificates in PEM form can be read here") from failure
    return context


_system_context = functools.cache(client_context)


def client_options(hostname: str, context: SSL.Context | None = None) -> IOpenSSLClientConnectionCreator:
    """
    What ``transport.startTLS`` needs to speak to *hostname* (name or IP address).

    The handshake never fails for a certificate's sake; ask ``verified`` after it.
    """
    return _Opportunistic(hostname, context or _system_context())


class _Connection(SSL.Connection):
    """Knows whom it wants to speak to, and what the handshake showed; the application data is Twisted's."""

    def __init__(self, context: SSL.Context, hostname: str) -> None:
        super().__init__(context, None)
        self.hostname = hostname
        self.trusted = True  # until a link of the chain fails
        self.verified: bool | None = None  # not looked at yet


@implementer(IOpenSSLClientConnectionCreator)
class _Opportunistic:
    def __init__(self, hostname: str, context: SSL.Context) -> None:
        self._hostname = _ascii(hostname.removesuffix("."))
        self._context = context

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        connection = _Connection(self._context, self._hostname)
        connection.set_verify(SSL.VERIFY_PEER, _look)
        if self._hostname and not _is_address(self._hostname):  # RFC 6066 3: no address as server name
            connection.set_tlsext_host_name(self._hostname.encode("ascii"))
        return connection


def _look(connection: SSL.Connection, _cert: crypto.X509, _error: int, _depth: int, ok: int) -> bool:
    if not ok and isinstance(connection, _Connection):
        connection.trusted = False
    return True


def verified(transport: Any) -> bool:
    """After the handshake of a client: the certificate is good by our authorities, and for the host's name."""
    connection = _connection(transport)
    if not isinstance(connection, _Connection):
        return False
    if connection.verified is None:
        connection.verified = connection.trusted and _names_host(connection)
    return connection.verified


def session_text(transport: Any) -> str:
    """What was agreed on, as in "TLSv1.3 TLS_AES_256_GCM_SHA384 verified"; empty for a transport in clear."""
    connection = _connection(transport)
    if connection is None:
        return ""
    words = [connection.get_protocol_version_name(), connection.get_cipher_name() or "-"]
    return " ".join([*words, "verified"] if verified(transport) else words)


def _connection(transport: Any) -> SSL.Connection | None:
    handle = transport.getHandle() if hasattr(transport, "getHandle") else None
    return handle if isinstance(handle, SSL.Connection) else None


def _names_host(connection: _Connection) -> bool:
    if connection.get_peer_certificate() is None:
        return False
    try:
        if _is_address(connection.hostname):
            verify_ip_address(connection, connection.hostname)
        else:
            verify_hostname(connection, connection.hostname)
    except (VerificationError, CertificateError, ValueError):
        return False
    return True


def _ascii(hostname: str) -> str:
    if hostname.isascii():
        return hostname
    try:
        return idna.encode(hostname, uts46=True).decode("ascii")
    except idna.IDNAError:
        return ""  # verifies for nobody


def _is_address(hostname: str) -> bool:
    try:
        ipaddress.ip_address(hostname)
    except ValueError:
        return False
    return True
