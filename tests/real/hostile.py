"""What attacks need: a certificate, a downstream host that cheats about TLS, bytes cut as one likes, a gateway kept for many tests."""

import atexit
import datetime as dt
import re
import socket
import ssl
import tempfile
import threading
import time
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.real.gateway import Client, Gateway, Sink


def certificate(folder):
    """A PEM file with a self-signed certificate and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mail.test")])
    now = dt.datetime.now(dt.UTC)
    ours = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - dt.timedelta(1)).not_valid_after(now + dt.timedelta(9))
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    path = Path(folder, "mail.pem")
    path.write_bytes(
        ours.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )  # fmt: skip
    return str(path)


_pem = []


def pem():
    """One certificate for all."""
    if not _pem:
        _pem.append(certificate(tempfile.mkdtemp(prefix="qmq-test-")))
    return _pem[0]


def client_tls(**settings):
    """A context that trusts everybody; *settings* are attributes of it, `ciphers` apart."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if ciphers := settings.pop("ciphers", ""):
        context.set_ciphers(ciphers)
    for name, value in settings.items():
        setattr(context, name, value)
    return context


# What a man in the middle hopes will be taken for the answers to EHLO, MAIL, RCPT, DATA and the dot.
INJECTED = b"250 sink.test\r\n" + b"250 ok\r\n" * 2 + b"354 go\r\n" + b"250 delivered\r\n" * 20


class TLSSink:
    """
    A host that offers STARTTLS and then does as *mode* says.

    ``honest``; ``inject`` (answers behind the 220, in one packet; inside TLS it
    refuses all mail), ``inject-later`` (in a second packet), ``strip`` (not
    offered), ``454``, ``garbage`` (in place of a handshake), ``plain`` (goes on
    in clear), ``hang``. *taken* are the messages that it truly took, and
    whether by TLS.
    """

    def __init__(self, mode):
        self.mode = mode
        self.taken = []
        self.said = []  # commands, and whether in TLS
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(pem())
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                ours, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._guarded, args=(ours,), daemon=True).start()

    def _guarded(self, ours):
        try:
            ours.settimeout(60)
            self._serve(ours)
        except OSError:
            pass
        finally:
            ours.close()

    def _serve(self, ours):
        ours.sendall(b"220 sink.test ESMTP\r\n")
        inside = False
        lines = ours.makefile("rb")
        while line := lines.readline():
            verb = line[:4].upper().strip()
            self.said.append((verb, inside))
            if verb == b"EHLO":
                offer = b"" if inside or self.mode == "strip" else b"250-STARTTLS\r\n"
                ours.sendall(b"250-sink.test\r\n" + offer + b"250-PIPELINING\r\n250 8BITMIME\r\n")
            elif verb == b"STAR":
                if self.mode == "454":
                    ours.sendall(b"454 4.7.0 not now\r\n")
                    continue
                ours = self._start_tls(ours)
                if ours is None:
                    return
                inside = isinstance(ours, ssl.SSLSocket)
                lines = ours.makefile("rb")
            elif self.mode.startswith("inject"):
                ours.sendall(b"221 bye\r\n" if verb == b"QUIT" else b"451 4.0.0 the true server takes nothing\r\n")
            elif verb == b"DATA":
                ours.sendall(b"354 go\r\n")
                text = b""
                while (body := lines.readline()) != b".\r\n":
                    if not body:
                        return
                    text += body
                self.taken.append((text, inside))
                ours.sendall(b"250 ok\r\n")
            elif verb == b"QUIT":
                ours.sendall(b"221 bye\r\n")
                return
            else:
                ours.sendall(b"250 ok\r\n")

    def _start_tls(self, ours):
        ready = b"220 go ahead\r\n"
        if self.mode == "inject":
            ours.sendall(ready + INJECTED)
        elif self.mode == "inject-later":
            ours.sendall(ready)
            time.sleep(0.1)
            ours.sendall(INJECTED)
        elif self.mode == "garbage":
            ours.sendall(ready)
            ours.sendall(b"\x00\xff garbage" * 100)
            return None
        elif self.mode == "hang":
            ours.sendall(ready)
            time.sleep(30)
            return None
        elif self.mode == "plain":
            ours.sendall(ready)
            return ours
        else:
            ours.sendall(ready)
        return self.context.wrap_socket(ours, server_side=True)

    def close(self):
        """End."""
        self.listener.close()


def send_in(connection, data, step):
    """Write *data* in segments of *step* octets; 0: all at once."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for at in range(0, len(data), step or len(data)):
        connection.sendall(data[at : at + (step or len(data))])


def drain(connection, seconds=5.0):
    """All that comes until the end of the connection, or until nothing has come for *seconds*."""
    connection.settimeout(seconds)
    whole = b""
    try:
        while data := connection.recv(65536):
            whole += data
    except TimeoutError:
        whole += b"<still open>"
    except ConnectionError:
        pass
    return whole


def talk(port, data, step=0, seconds=5.0):
    """Say all of *data* on a new connection, and what came back until its end."""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        try:
            send_in(connection, data, step)
        except ConnectionError:
            pass
        return drain(connection, seconds)


def codes(replies):
    """The codes of replies, in order; of one of several lines, the last."""
    return [int(code) for code in re.findall(rb"^(\d{3}) ", replies, re.MULTILINE)]


class House:
    """A gateway for several tests, with sinks for its customers, for everybody else, and for bounces."""

    def __init__(self, domains=("one.test",), *, adapt=lambda text: text, **settings):
        self.sinks = {domain.split(".")[0]: Sink() for domain in domains}
        self.world = Sink()
        routes = {domain: f"smtp:127.0.0.1:{self.sinks[domain.split('.')[0]].port}" for domain in domains}
        self.gateway = Gateway(routes, bounce_route=f"smtp:127.0.0.1:{self.world.port}", **settings)
        conf = Path(self.gateway.conf)
        conf.write_text(adapt(conf.read_text()))
        self.gateway.start()

    @property
    def one(self):
        """The first customer's host."""
        return self.sinks["one"]

    def client(self, **settings) -> Client:
        """A session."""
        return self.gateway.client(**settings)

    def close(self):
        """End."""
        self.gateway.clear()
        for sink in (*self.sinks.values(), self.world):
            sink.close()


_open = {}


def house(make):
    """The house that *make* makes; kept until another one is asked for: trial knows no setUpClass."""
    if make not in _open:
        leave()
        _open[make] = make()
    return _open[make]


def leave():
    """Close the house that is kept."""
    while _open:
        _open.popitem()[1].close()


atexit.register(leave)
