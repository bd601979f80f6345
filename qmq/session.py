"""
The words of the front door: a client, its settings, what it says, and what checkers think of it.

Imports no Twisted. Checkers see these, and nothing else of the house.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any

from qmq.mail import Address, Octets, Reply, Seconds, value


@value
class Environment:
    """
    The settings of one client, by the names of qmail's variables (SPAMCONTROL 2.3).

    One object for all clients whom the same rule (tcprules, conf-qmq) covers.
    None, or nothing, is a variable that is not set. *variables* has all of them
    as text, those of other checkers too; *replies* are the REPLY_* texts.
    """

    relayclient: bytes | None = None  # set: may send to any domain; the text goes behind each recipient
    helocheck: str | None = None
    mfdnscheck: bool = False
    localmfcheck: str | None = None
    spf: int = 0
    maxrecipients: int = 0
    tarpitcount: int = 0
    tarpitdelay: int = 0
    recipients450: bool = False
    badmimetype: str | None = None
    badloadertype: str | None = None
    base64: bool = False
    databytes: Octets | None = None
    greetdelay: Seconds = 0
    rblsmtpd: str | None = None
    qhpsi: str | None = None
    qhpsiargs: tuple[str, ...] = ()
    qhpsirc: int = 1
    qhpsiminsize: Octets = 0
    qhpsimaxsize: Octets = 0
    qmailqueue: str | None = None
    deliverto: bytes = b""
    info: bytes = b""  # TCPREMOTEINFO
    replies: Mapping[str, str] = field(default_factory=dict, hash=False)
    variables: Mapping[str, str] = field(default_factory=dict, hash=False)

    def worded(self, reply: Reply, variable: str) -> Reply:
        """*reply* with the site's own text of that REPLY_* variable behind ours."""
        words = self.replies.get(variable)
        return Reply(reply.code, reply.status, f"{reply.text} {words}") if words else reply


class Conduct:
    """
    What a client has done since it connected; outlives RSET, EHLO and STARTTLS.

    The one thing of a session that changes: checkers count here, and may keep
    what they know of the client in *notes*, each under its own name.
    """

    __slots__ = ("early", "failed_recipients", "notes", "notorious")

    def __init__(self) -> None:
        self.early = False  # spoke before the banner
        self.failed_recipients = 0  # unknown to RECIPIENTS (SPAMCONTROL 2.10)
        self.notorious = False  # the tar pit's: its next DATA is its last command
        self.notes: dict[str, Any] = {}


@value
class Session:
    """One client of the primary, as checkers see it; a new value at each HELO, STARTTLS or AUTH."""

    client: str  # IP address
    port: int
    server: str  # our address the client came to
    server_port: int
    helo: bytes = b""
    esmtp: bool = False
    tls: str = ""  # protocol and cipher, empty in clear
    user: bytes = b""  # authenticated as; or TCPREMOTEINFO
    relay: bool = False  # a named client: may send to any domain (RELAYCLIENT)
    host: str = "unknown"  # the client's name in DNS, in lower case (TCPREMOTEHOST)
    number: int = 0  # counts connections; what the process id was to qmail-smtpd's log
    environment: Environment = Environment()
    conduct: Conduct = field(default_factory=Conduct, compare=False, repr=False)

    def named(self, helo: bytes, *, esmtp: bool) -> Session:
        """The same client after its HELO or EHLO; what dataclasses.replace would make, at a fifth of its cost."""
        return Session(
            self.client, self.port, self.server, self.server_port, helo, esmtp, self.tls, self.user, self.relay,
            self.host, self.number, self.environment, self.conduct,
        )  # fmt: skip


@value
class Transaction:
    """One mail transaction, as checkers see it."""

    id: bytes  # the queue id it will have
    sender: Address
    size: Octets = 0  # SIZE= of MAIL, 0 if not said
    smtputf8: bool = False
    recipients: tuple[Address, ...] = ()  # accepted so far
    commands: int = 0  # RCPT commands so far, the present one and refused ones too
    protocol: bytes = b""  # letters that checkers put behind the protocol's word: M


@value
class Verdict:
    """
    A checker's opinion.

    *reply* refuses (5yz) or defers (4yz). Said of the connection, HELO or MAIL,
    it is held until RCPT, so that the log has sender and recipient, and comes
    in the order of `checks` (SPAMCONTROL 2.5); *now*: at once. *close*: and
    hang up.

    Without a reply: *stop* accepts and asks no further checker of the phase;
    *vouch* says that this recipient may be relayed to, and goes on; *delay*
    holds the answer back; *fields* are put in front of the message (whole
    header fields, CRLF at the end); *protocol* goes behind the protocol's word
    in Received and log (M: the sender was verified).

    *reason* is for the log, SPAMCONTROL's Action::Type::Condition, with *info*
    between its quotes. Of several that accept a recipient the last one counts;
    ``Accept::SPF::`` keeps the condition before it.
    """

    reply: Reply | None = None
    stop: bool = False
    vouch: bool = False
    delay: Seconds = 0
    fields: bytes = b""
    reason: str = ""
    info: str = ""
    now: bool = False
    close: bool = False
    protocol: bytes = b""


VOUCH = Verdict(vouch=True)
