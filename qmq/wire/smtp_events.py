"""What an SMTP client can say: the events of the server's wire, in the order of their frequency."""

from __future__ import annotations

from qmq.mail import Address, Octets, Reply, value


@value
class RcptTo:
    """RCPT TO; awaits a reply."""

    recipient: Address


@value
class BodyPart:
    """
    A piece of the message: CRLF lines, dot-stuffing undone.

    *end*: DATA's final dot or a BDAT chunk's last octet was read: a reply is
    awaited (else none). *last*: the message is complete. *fault*: the message
    broke a rule of the wire (line too long); said at the end only, as the reply
    to give.
    """

    data: bytes
    end: bool = False
    last: bool = False
    fault: Reply | None = None


@value
class MailFrom:
    """MAIL FROM with its parameters (SIZE, BODY, SMTPUTF8); awaits a reply."""

    sender: Address
    size: Octets = 0
    body_type: bytes = b"7BIT"
    smtputf8: bool = False


@value
class DataStart:
    """DATA; a 354 reply opens the body, any other leaves the wire in command mode."""


@value
class Chunk:
    """BDAT: *size* octets follow as BodyParts, whatever is thought of it; awaits no reply (RFC 3030)."""

    size: Octets
    last: bool


@value
class Hello:
    """HELO or EHLO; awaits a reply (EHLO's lines are the dialogue's to say)."""

    name: bytes
    extended: bool


@value
class Reset:
    """RSET."""


@value
class Noop:
    """NOOP."""


@value
class Quit:
    """QUIT; after the reply the connection is closed."""


@value
class Verify:
    """VRFY."""


@value
class Help:
    """HELP."""


@value
class StartTLS:
    """STARTTLS; after a 220 reply whatever is buffered is forgotten (RFC 3207 4.2)."""


@value
class Malformed:
    """
    Not a command, or bad syntax: *reply* is what to answer.

    *close*: nothing that follows can be trusted (bare CR or LF in the text, an
    endless line, an HTTP request): answer and hang up.
    """

    reply: Reply
    close: bool = False


Event = (
    RcptTo
    | BodyPart
    | MailFrom
    | DataStart
    | Chunk
    | Hello
    | Reset
    | Noop
    | Quit
    | Verify
    | Help
    | StartTLS
    | Malformed
)
