"""
`qmq sendmail`: what programs call to send mail, with the options of Postfix's sendmail(1).

It must start quickly, since scripts call it for each message: of conf-qmq it
reads but who we are and where the primary listens, and loads no Twisted.
"""

from __future__ import annotations

import os
import pwd
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from email.utils import formatdate
from typing import IO, Any

import click

from qmq.cli.compose import BadText, completed, header_of, qualified, recipients_of, text_lines
from qmq.cli.mailboxes import BadMailbox, mailboxes
from qmq.cli.options import default_conf
from qmq.cli.sendmail_options import Call, parse, usage
from qmq.cli.submit import NotSent, Place, Submission, converse, probe, submit
from qmq.conf.read import Document, read
from qmq.conf.units import BadValue, listen, octets
from qmq.conf.written import Findings
from qmq.mail import Octets
from qmq.wire.text import LINE_OCTETS

_HEADER: Octets = 1 << 20  # as the primary's `header` by default
_TEXT: Octets = 1 << 30  # what is read at all; the primary's `databytes` is told by itself, and lower
_IN_MEMORY: Octets = 1 << 20
_NOT_ALIASES = "newaliases: qmq has no aliases; nothing to do"


class _Raw(click.Command):
    """Its arguments are read by itself, as sendmail's always were: click would not know ``-oi`` from ``-o -i``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Everything is the one argument; --help stays click's."""
        if args == ["--help"]:
            return super().parse_args(ctx, args)
        ctx.params["arguments"] = tuple(args)
        return []


@click.command(
    cls=_Raw,
    options_metavar="[-t] [-i] [-f SENDER] [-F NAME] [OPTION...]",
    context_settings={"help_option_names": ["--help"]},
)
@click.argument("arguments", nargs=-1, metavar="[RECIPIENT]...")
def sendmail(arguments: tuple[str, ...]) -> None:
    """
    Send the message on standard input, as sendmail does.

    \b
      -t         recipients stand in To, Cc and Bcc too; Bcc is taken away
      -i, -oi    a line with a dot alone does not end the message
      -f, -r     the envelope's sender; <> is the null sender
      -F         the sender's full name, for a From field that is missing
      -v         say what the gateway answered
      -bs        speak SMTP on standard input and output
      -bv        ask whether the recipients would be taken
      -bp        list the queues, as mailq does
      -q, -qI ID, -qR SITE   try again now: all, one message, one domain
      --conf FILE            conf-qmq; else $QMQ_CONF, ./conf-qmq, /etc/qmq/conf-qmq

    The other options of Postfix's sendmail are taken and change nothing.
    The message goes to the primary by SMTP: all of its recipients get it, or,
    if the exit code is not 0, none.
    """  # noqa: D301 - \b is click's: keep these lines
    try:
        _run(parse(list(arguments)))
    except NotSent as error:
        click.echo(f"sendmail: {error}", err=True)
        sys.exit(error.code)
    except OSError as error:  # standard input or output is gone
        click.echo(f"sendmail: {error.strerror or error}", err=True)
        sys.exit(os.EX_IOERR)


def _run(call: Call) -> None:
    call.conf = call.conf or os.environ.get("QMQ_CONF") or default_conf()
    match call.mode:
        case "list":
            _queues(call, ["-p"])
        case "flush":
            _queues(call, call.flush)
        case "aliases":
            click.echo(_NOT_ALIASES, err=True)
        case "smtp":
            converse(_Site(call.conf).place)
        case "verify":
            _verify(call, _Site(call.conf))
        case "deliver":
            _deliver(call, _Site(call.conf))


def _queues(call: Call, words: list[str]) -> None:
    from qmq.cli.dialects import postqueue  # noqa: PLC0415 - it loads Twisted, which who sends mail need not wait for

    postqueue.main([*words, "--conf", call.conf], prog_name="postqueue")


class _Site:
    """What conf-qmq says that we need; raises NotSent (EX_CONFIG)."""

    def __init__(self, conf: str) -> None:
        findings = Findings()
        document = read(os.path.abspath(conf), findings)
        if not (document.plan or document.sections):
            why = str(findings.errors[0]) if findings.errors else f"{conf}: says nothing"
            raise NotSent(os.EX_CONFIG, f"{why}; name it by --conf, or in QMQ_CONF")
        try:
            said = next(iter(_said(document, "primary", "listen").replace(",", " ").split()), "tcp:25")
            self.place: Place = listen(said)
            self.line = (
                octets(_said(document, "primary", "line")) if _said(document, "primary", "line") else LINE_OCTETS
            )
        except BadValue as error:
            raise NotSent(os.EX_CONFIG, f"{document.path}: {error}; see `qmq check`") from None
        self.me = _said(document, "qmq", "me") or _classic_me(document) or socket.gethostname()


def _said(document: Document, section: str, key: str) -> str:
    found = document.sections.get(section)
    return found.settings[key].text if found is not None and key in found.settings else ""


def _classic_me(document: Document) -> str:
    folder = os.path.join(os.path.dirname(document.path), _said(document, "qmq", "control") or "control")
    try:
        with open(os.path.join(folder, "me"), encoding="utf-8") as file:
            return file.readline(1000).strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _deliver(call: Call, site: _Site) -> None:
    """Read the message, find its recipients, hand it over."""
    user, name = _account()
    sender = qualified(user.encode() if call.sender is None else call.sender, site.me)
    recipients = _arguments(call)
    if sys.stdin is None:  # closed by whoever called
        raise NotSent(os.EX_NOINPUT, "standard input is closed: there is no message")
    source = sys.stdin.buffer
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as text:
        try:
            header, eight_bit = _read(call, site, source, text, recipients, (call.name or name, sender))
        except BadText as error:
            raise NotSent(os.EX_DATAERR, str(error)) from None
        recipients = list(dict.fromkeys(qualified(one, site.me) for one in recipients))
        if not recipients:
            where = "the header names no recipient" if call.extract else "name recipients, or give -t"
            raise NotSent(os.EX_USAGE, f"nobody to send to: {where}")
        size = len(header) + text.tell()
        answer = submit(
            site.place, site.me, Submission(sender, recipients, _pieces(header, text), size, eight_bit=eight_bit)
        )
    if call.verbose:
        click.echo(answer)


def _read(
    call: Call, site: _Site, source: IO[bytes], text: IO[bytes], recipients: list[bytes], author: tuple[str, bytes]
) -> tuple[bytes, bool]:
    """The header as it goes out, with its empty line; the body is in *text*. Whether there is an octet above 127."""
    try:
        lines = text_lines(source.readline, dot_ends=call.dot_ends, longest=site.line)
        fields, first = header_of(lines, _HEADER)
        if call.extract:
            recipients += recipients_of(fields)
        author_text = (author[0], author[1].decode("utf-8", "surrogateescape"))
        message_id = f"<{int(time.time()):x}.{secrets.token_hex(8)}@{site.me}>"
        header = completed(fields, author_text, message_id, formatdate(localtime=True)) + b"\r\n"
        eight_bit = not header.isascii()
        for line in _with(first, lines):
            eight_bit = eight_bit or not line.isascii()
            text.write(line)
            if text.tell() > _TEXT:
                raise BadText(f"the message is longer than {_TEXT} octets")
    except OSError as error:
        raise NotSent(os.EX_IOERR, f"the message cannot be read or set aside: {error.strerror}") from None
    return header, eight_bit


def _with(first: bytes, lines: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from lines


def _pieces(header: bytes, text: Any) -> Iterator[bytes]:
    yield header
    text.seek(0)
    while piece := text.read(65536):
        yield piece


def _arguments(call: Call) -> list[bytes]:
    """The recipients that the arguments name: each may be a list, as in a header."""
    found = []
    for one in call.recipients:
        try:
            named = [address for address in mailboxes(os.fsencode(one)) if address]
        except BadMailbox as error:
            raise NotSent(os.EX_DATAERR, str(error)) from None
        if not named:
            raise NotSent(os.EX_DATAERR, f"{one!r} is no recipient")
        found += named
    return found


def _account() -> tuple[str, str]:
    """Who calls, and the full name: NAME, or what the account has."""
    try:
        entry = pwd.getpwuid(os.getuid())
    except KeyError:
        return f"uid{os.getuid()}", os.environ.get("NAME", "")
    full = entry.pw_gecos.partition(",")[0].replace("&", entry.pw_name.capitalize())
    return entry.pw_name, os.environ.get("NAME") or full


def _verify(call: Call, site: _Site) -> None:
    sender = qualified(_account()[0].encode() if call.sender is None else call.sender, site.me)
    recipients = [qualified(one, site.me) for one in _arguments(call)]
    if not recipients:
        usage("-bv: name the recipients")
    worst = os.EX_OK
    for recipient, code, text in probe(site.place, site.me, sender, recipients):
        click.echo(f"{recipient.decode('utf-8', 'replace')}: {code} {text}")
        if code >= 500:
            worst = os.EX_NOUSER
        elif code >= 400 and worst == os.EX_OK:
            worst = os.EX_TEMPFAIL
    sys.exit(worst)
