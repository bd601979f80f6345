"""
qmail's variables, one table: what may be set for a client, what it means, and how it is said.

The names are those of qmail-smtpd and SPAMCONTROL (2.3); they come from
tcprules, from the process, or as words of conf-qmq, and end as one Environment.
Each value is looked at here, so that no check meets one that makes no sense
(the original put REPLY_* into its replies unseen: SPAMCONTROL 2.20, 13).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from qmq.mail import value
from qmq.session import Environment

Raw = Mapping[str, str | None]  # by the variable's name; None: not set here, whatever a weaker layer says

_LONGEST = 300  # of a text that goes into a reply or a header field, in octets
_LONGEST_COMMAND = 4096
_DIGITS = re.compile(r"\s*([0-9]{1,18})")
_PRINTABLE = re.compile(r"[\x20-\x7e]*")


class BadVariable(ValueError):
    """A value that a variable cannot have: what is wrong, what to write instead."""

    def __init__(self, text: str, remedy: str) -> None:
        super().__init__(f"{text}; {remedy}")
        self.text = text
        self.remedy = remedy


@value
class Variable:
    """
    A variable: the attribute of Environment it sets ("": kept as text alone), and what it is.

    *kind* is how conf-qmq says it: flag (yes, no), count, time, size or text.
    """

    name: str
    attribute: str
    parse: Callable[[str], Any]
    kind: str
    help: str

    @property
    def word(self) -> str:
        """Its name in conf-qmq: ``REPLY_HELO`` is ``reply-helo``."""
        return self.name.lower().replace("_", "-")


def _number(text: str) -> int:
    """The digits it begins with; what stands behind them was never looked at."""
    match = _DIGITS.match(text)
    if match is None:
        raise BadVariable(f"{text!r} is no number", "write digits, such as 20")
    return int(match[1])


def _within(low: int, high: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        found = _number(text)
        if not low <= found <= high:
            raise BadVariable(f"{found} is not within {low} and {high}", f"write {low} to {high}")
        return found

    return number


def _present(_: str) -> bool:
    """Set is on, whatever it is set to."""
    return True


def _text(text: str) -> str:
    """Of one line, as it can stand in a reply or a header field."""
    if not _PRINTABLE.fullmatch(text):
        raise BadVariable("only printable ASCII can stand there", "write one line of plain text")
    if len(text) > _LONGEST:
        raise BadVariable(f"{len(text)} octets are too many", f"write at most {_LONGEST}")
    return text


def _octets(text: str) -> bytes:
    return _text(text).encode()


def _address_part(text: str) -> bytes:
    """What is put behind an address, or is one."""
    if re.search(r"[\s<>]", _text(text)):
        raise BadVariable(f"{text!r} cannot be part of an address", "write it without blanks and brackets")
    return text.encode()


def _command(text: str) -> str | None:
    if "\0" in text or "\n" in text or len(text) > _LONGEST_COMMAND:
        raise BadVariable("that is no command", "write one line, such as /usr/bin/clamdscan")
    return text or None


def _helocheck(text: str) -> str:
    """One of the characters, or "" for the list alone; longer than one was that too."""
    if len(text) == 1 and text not in "!.=AM":
        raise BadVariable(f"{text!r} is no HELO check", "write one of ! . = A M, or nothing for badhelo alone")
    return text if len(text) == 1 else ""


def _localmfcheck(text: str) -> str:
    if len(text) == 1 and text not in "!=?":
        raise BadVariable(f"{text!r} is no check of local senders", "write one of ! = ?, a domain, or nothing")
    return _text(text).lower()


def _character(text: str) -> str | None:
    """One, or none at all; ``-`` is off."""
    if len(_text(text)) > 1:
        raise BadVariable(f"{text!r} is more than one character", "write one character; - is off")
    return None if text == "-" else text


def _host(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,255}", text):
        raise BadVariable(f"{text!r} is no host name", "write a name, such as mx.example.org")
    return text.lower()


_TABLE = (
    Variable("RELAYCLIENT", "relayclient", _address_part, "flag",
             "may send to any domain; a text goes behind each recipient"),
    Variable("HELOCHECK", "helocheck", _helocheck, "text",
             "refuses by HELO: list (badhelo alone), ! (empty), . (both), = (not the client's name), "
             "A (no address), M (no MX)"),
    Variable("MFDNSCHECK", "mfdnscheck", _present, "flag", "the sender's domain must be in DNS"),
    Variable("LOCALMFCHECK", "localmfcheck", _localmfcheck, "text",
             "relay clients' senders: list (a domain of ours), DOMAIN, ! (mailfromrules), = (as authenticated), "
             "? (as in the certificate)"),
    Variable("SPF", "spf", _within(0, 6), "count",
             "0 off, 1 notes only, 2 defers on DNS trouble, 3 refuses fail, 4 softfail, 5 neutral, 6 none too"),
    Variable("SPFINFO", "", _text, "text", "the result of SPF, if somebody else has asked"),
    Variable("MAXRECIPIENTS", "maxrecipients", _number, "count", "RCPT commands of a message; then 452; 0: any"),
    Variable("TARPITCOUNT", "tarpitcount", _number, "count", "recipients until the tar pit; 0: none"),
    Variable("TARPITDELAY", "tarpitdelay", _number, "time",
             "each RCPT in the tar pit waits so long; notorious (999): no waiting, cut off at DATA"),
    Variable("RECIPIENTS450", "recipients450", _present, "flag", "unknown recipients get 450, not 550"),
    Variable("GREETDELAY", "greetdelay", _within(0, 300), "time", "the banner waits so long"),
    Variable("RBLSMTPD", "rblsmtpd", _text, "text",
             "what a DNS list said of the client; empty: no list is asked"),
    Variable("BADMIMETYPE", "badmimetype", _character, "text",
             "badmimetypes are refused; ! blanks in base64 too, + for strangers only, - off"),
    Variable("BADLOADERTYPE", "badloadertype", _character, "text",
             "badloadertypes are refused; the character with which they begin, + for strangers only, - off"),
    Variable("BASE64", "base64", _present, "flag", "only messages with base64 in them are scanned"),
    Variable("DATABYTES", "databytes", _number, "size", "largest message; none (0): databytes-most"),
    Variable("QHPSI", "qhpsi", _command, "text", "the virus scanner: a program, called with the message's file"),
    Variable("QHPSIARG1", "", _text, "text", "its second argument"),
    Variable("QHPSIARG2", "", _text, "text", "its third argument"),
    Variable("QHPSIARG3", "", _text, "text", "its fourth argument"),
    Variable("QHPSIRC", "qhpsirc", _within(1, 255), "count", "the exit code by which it says virus (else 1)"),
    Variable("QHPSIMINSIZE", "qhpsiminsize", _number, "size", "shorter messages are not scanned"),
    Variable("QHPSIMAXSIZE", "qhpsimaxsize", _number, "size", "longer messages are not scanned; none (0): all are"),
    Variable("QMAILQUEUE", "qmailqueue", _command, "text", "a filter in qmail-queue's place: it reads the message"),
    Variable("DELIVERTO", "deliverto", _address_part, "text", "an address the filters find before the recipients"),
    Variable("TCPREMOTEINFO", "info", _octets, "text", "who the client is, as if it had authenticated"),
    Variable("TCPREMOTEHOST", "", _host, "text", "the client's name, whatever DNS says"),
    Variable("REPLY_HELO", "", _text, "text", "goes behind our words when HELO is refused"),
    Variable("REPLY_MAILBOX", "", _text, "text", "likewise: no such mailbox"),
    Variable("REPLY_MAXSIZE", "", _text, "text", "likewise: too large"),
    Variable("REPLY_BADMAILFROM", "", _text, "text", "likewise: the sender is in badmailfrom"),
    Variable("REPLY_BADRCPTTO", "", _text, "text", "likewise: the recipient is in badrcptto"),
    Variable("REPLY_SENDEREXIST", "", _text, "text", "likewise: the sender's domain is not in DNS"),
    Variable("REPLY_NOGATEWAY", "", _text, "text", "likewise: relaying denied"),
    Variable("REPLY_SENDERINVALID", "", _text, "text", "likewise: a relay client's sender"),
    Variable("REPLY_CONTENT", "", _text, "text", "likewise: the content"),
    Variable("REPLY_GREYLISTED", "", _text, "text", "likewise: come again later"),
)  # fmt: skip
VARIABLES: Mapping[str, Variable] = {variable.name: variable for variable in _TABLE}
# SPAMCONTROL knows them, we do not yet (2.3): who sets one is told.
NOT_HERE = {
    "SMTPAUTH": "qmq has no SMTP AUTH yet",
    "UCSPITLS": "STARTTLS is offered if [primary] has a certificate",
    "POSTGREY": "qmq asks no greylisting server yet",
}
# Their values are programs with their words.
COMMANDS = frozenset({"QHPSI", "QMAILQUEUE"})
_ARGUMENTS = ("QHPSIARG1", "QHPSIARG2", "QHPSIARG3")


def environment(raw: Raw) -> Environment:
    """
    The Environment of these variables; raises BadVariable, which names the variable.

    Unknown ones are kept as text, for strangers' checkers.
    """
    variables = {name: text for name, text in raw.items() if text is not None}
    attributes: dict[str, Any] = {}
    replies: dict[str, str] = {}
    for name, text in variables.items():
        found = parsed(name, text)
        variable = VARIABLES.get(name)
        if variable is not None and variable.attribute:
            attributes[variable.attribute] = found
        elif name.startswith("REPLY_") and text:
            replies[name] = text
    arguments = []
    for name in _ARGUMENTS:  # the first that is missing ends them, as a null ends argv
        if name not in variables:
            break
        arguments.append(variables[name])
    return Environment(**attributes, qhpsiargs=tuple(arguments), replies=replies, variables=variables)


def parsed(name: str, text: str) -> Any:
    """What a variable's text means; raises BadVariable, which names the variable."""
    variable = VARIABLES.get(name)
    parse = variable.parse if variable is not None else _text if name.startswith("REPLY_") else str
    try:
        return parse(text)
    except BadVariable as bad:
        raise BadVariable(f"{name}: {bad.text}", bad.remedy) from None


def of_process(variables: Mapping[str, str]) -> dict[str, str]:
    """Those of the process's variables that are in the table, or that we have not yet."""
    return {name: text for name, text in variables.items() if name in VARIABLES or name in NOT_HERE}


def merged(*layers: Raw) -> dict[str, str | None]:
    """The layers in one, from weak to strong; what a stronger one unsets stays in it as None."""
    found: dict[str, str | None] = {}
    for layer in layers:
        found.update(layer)
    return found
