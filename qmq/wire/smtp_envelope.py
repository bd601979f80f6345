"""
What an SMTP server offers, and the envelope of a message in words that this server knows.

A message that needs more than the server has is not tried: the limit is the
server's, so the refusal names it.
"""

from __future__ import annotations

import re

from qmq.mail import Message, Octets, Reply, path, value, wire_sender

# RFC 5322 2.1: header and text are parted by an empty line. A header longer than this is looked at no further.
_HEADER_OCTETS: Octets = 262144

# An envelope whose addresses need no care: dot-atoms in ASCII (RFC 5322 3.2.3) at names of hosts. One look instead of
# one for each thing that an address may have.
_ATOM = rb"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]++"
# Only what repeats single octets is possessive: of groups Python 3.11.0 to 3.11.4 take more than matches (gh-106052).
_ADDRESS = rb"<%b(?:\.%b)*@[a-z0-9._-]++>" % (_ATOM, _ATOM)
_PLAIN = re.compile(rb"MAIL FROM:%b[ -~]*+\r\n(?:RCPT TO:%b\r\n)+" % (_ADDRESS, _ADDRESS)).fullmatch


@value
class Extensions:
    """What a server offered at EHLO and a client can use; none at HELO."""

    pipelining: bool = False
    chunking: bool = False
    binarymime: bool = False
    eightbit: bool = False
    smtputf8: bool = False
    starttls: bool = False
    size: Octets | None = None  # None: not offered; 0: no limit named (RFC 1870 4)


def extensions(ehlo: Reply) -> Extensions:
    """What EHLO's answer offers (RFC 5321 4.1.1.1); unknown words are passed over."""
    offered = {}
    for line in ehlo.text.split("\n")[1:]:
        keyword, _, rest = line.replace("=", " ").partition(" ")
        offered[keyword.upper()] = rest.strip(" ")
    size = offered.get("SIZE")
    return Extensions(
        pipelining="PIPELINING" in offered,
        chunking="CHUNKING" in offered,
        binarymime="BINARYMIME" in offered and "CHUNKING" in offered,
        eightbit="8BITMIME" in offered,
        smtputf8="SMTPUTF8" in offered,
        starttls="STARTTLS" in offered,
        # RFC 1870 4: up to 20 digits.
        size=None if size is None else int(size) if size.isdigit() and size.isascii() and len(size) <= 20 else 0,
    )


def envelope_commands(message: Message, offered: Extensions, mta: str, *, binary: bool) -> bytes | Reply:
    """
    MAIL and the RCPTs, a line each with CRLF at its end; or why *mta* can't take the message.

    *binary*: BINARYMIME can be sent (BDAT is at hand).
    """
    envelope = message.envelope
    parameters = b""
    if (limit := offered.size) is not None:
        size = message.size
        if 0 < limit < size:
            return Reply(552, "5.3.4", f"the message of {size} octets exceeds the limit of {limit} octets", mta)
        parameters = b" SIZE=%d" % size
    if envelope.body_type == b"8BITMIME":
        # To a server that does not offer it 8-bit text goes as it is: all take it, and a bounce helps nobody.
        if offered.eightbit:
            parameters += b" BODY=8BITMIME"
    elif envelope.body_type == b"BINARYMIME":
        if not binary:
            return Reply(554, "5.6.3", "this host does not take binary messages (BINARYMIME)", mta)
        parameters += b" BODY=BINARYMIME"
    sender = envelope.sender
    said = b"MAIL FROM:<%s@%s>%s\r\n" % (sender.local, sender.domain, parameters) + b"".join(
        [b"RCPT TO:<%s@%s>\r\n" % (one.local, one.domain) for one in envelope.recipients]
    )
    if _PLAIN(said) is not None and not envelope.smtputf8:
        return said
    return _with_care(message, offered, mta, parameters)


def _with_care(message: Message, offered: Extensions, mta: str, parameters: bytes) -> bytes | Reply:
    """The commands of an envelope with an address that is not of the plainest kind, or with none."""
    envelope = message.envelope
    recipients = envelope.recipients
    if not recipients:
        return Reply(554, "5.5.1", "no recipients")
    mail = b"MAIL FROM:<%s>%s" % (path(wire_sender(envelope.sender)), parameters)
    said = b"\r\n" + b"".join([b"RCPT TO:<%s>\r\n" % path(recipient) for recipient in recipients])
    # An address with a line end in it would be a command of its own to the server.
    ends = len(recipients) + 1
    if b"\n" in mail or b"\r" in mail or said.count(b"\n") != ends or said.count(b"\r") != ends or b"\0" in mail + said:
        return Reply(553, "5.1.3", "a control character in an address")
    ascii_alone = mail.isascii() and said.isascii()
    if envelope.smtputf8 or not ascii_alone:
        if offered.smtputf8:
            mail += b" SMTPUTF8"
        elif not ascii_alone or not _ascii_header(message):
            text = "this host does not take internationalized addresses or header fields (SMTPUTF8)"
            return Reply(553, "5.6.7", text, mta)
    return mail + said


def _ascii_header(message: Message) -> bool:
    """Whether the header is plain ASCII, so that a message declared SMTPUTF8 can go without (RFC 6531 3.2)."""
    seen = b""
    for chunk in message.chunks():
        seen += chunk
        header, end, _ = seen.partition(b"\r\n\r\n")
        if end or len(seen) > _HEADER_OCTETS:
            return header.isascii()
    return seen.isascii()
