"""
Which mailboxes of ours exist (SPAMCONTROL 2.11).

Asked of outsiders only, behind rcpthosts. Look-ups in files are answered at
once; a program is waited for, and the gateway serves others meanwhile. It is
given the address and three NULs on descriptor 3, as checkpassword is, and exits
with 0 (exists), 111 (can't tell for now) or anything else (does not exist). It
is asked for ``list-@dom`` too if it does not know ``list-any@dom``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from zope.interface import implementer

from qmq.interfaces import Answer, ICheckerFactory, IRecipientChecker, ISelective
from qmq.mail import Address, Reply, Seconds
from qmq.programs import Programs, ProgramTrouble, executable
from qmq.receive.context import Owner, Some
from qmq.rules import options as said
from qmq.rules.recipients import ANSWERED, FOUND, PASSED, WILD, Keys, Program, Recipients, Source, keys, read, unknown
from qmq.rules.watched import Files, Watched
from qmq.session import Environment, Session, Transaction, Verdict

_ACCEPTED = {reason: Verdict(reason=reason) for reason in (FOUND, ANSWERED, WILD, PASSED)}
_LATER = Verdict(reply=Reply(451, "4.3.0", "cannot look mailboxes up for now, try again later"))
# What becomes of a recipient of whom nobody can tell for now. The original hung up; or accepted, if it was built so.
_TROUBLE: Mapping[str, Verdict | None] = {
    "close": Verdict(reply=Reply(421, "4.3.0", "cannot look mailboxes up for now, closing"), close=True),
    "defer": _LATER,
    "accept": None,
}
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_EXISTS, _CANNOT_TELL = 0, 111

Judged = Recipients | Verdict | None


class RuleFiles:
    """
    The primary's file of sources, and those that instances have of their own.

    *primary* may be missing: then there are no rules. Not so *named* and the
    instances' own ones, for whoever names a file wants it asked: while one can't
    be read its recipients are deferred.
    """

    def __init__(
        self,
        files: Files,
        read_rules: Callable[[str], Recipients],
        owner: Callable[[bytes], Any],
        folder: str,
        primary: Watched[Recipients | None] | None,
        named: str = "",
    ) -> None:
        self._files = files
        self._read = read_rules
        self._owner = owner
        self._folder = folder
        self._primary = primary
        self._named = named
        self._watched: dict[str, Watched[Recipients | None]] = {}
        self._failed: dict[str, tuple[int, str]] = {}  # when we looked, and what we said of it

    def none(self, some: Some) -> bool:
        """Whether nothing counts for anybody: no file of the primary's, and no instance has one of its own."""
        return self._primary is not None and self._primary.absent() and not some(_has_its_own)

    def of(self, domain: bytes) -> Judged:
        """What counts for recipients in this domain: rules, none, or what to say because they can't be read."""
        owner = self._owner(domain)
        if owner is not None and owner.recipients:
            return self.at(os.path.join(self._folder, owner.recipients))
        if self._primary is not None:
            return self._primary.now()
        return self.at(self._named)

    def at(self, path: str) -> Recipients | Verdict:
        """What a file that must be there says."""
        looked, text = self._failed.get(path, (-1, ""))
        if looked == self._files.round:
            return _LATER
        try:
            if path not in self._watched:
                self._watched[path] = self._files.watch(path, self._read, None)
            rules = self._watched[path].now()
            if rules is not None:
                self._failed.pop(path, None)
                return rules
            trouble = f"{path}: there is no such file"
        except ValueError as error:
            trouble = str(error)
        if trouble != text:
            self._files.warn(f"{trouble}; its recipients are deferred")
        self._failed[path] = self._files.round, trouble
        return _LATER


@implementer(IRecipientChecker, ISelective)
class KnownRecipients:
    """
    Refuses recipients whom no source knows.

    *rules* gives what counts for a domain, *none* says that nothing does for any; *ask* whether a program knows an
    address, or fails with ProgramTrouble: then *trouble* is the answer.
    """

    def __init__(
        self,
        rules: Callable[[bytes], Judged],
        ask: Callable[[Program, bytes, Session], Any],
        warn: Callable[[str], None],
        *,
        none: Callable[[], bool] = lambda: False,
        trouble: Verdict | None = None,
        breaks: Sequence[bytes] = (b"-",),
        limit: Seconds = 30,
    ) -> None:
        self._rules = rules
        self._ask = ask
        self._warn = warn
        self._none = none
        self._trouble = trouble
        self._breaks = breaks
        self.limit = limit

    def concerns(self, environment: Environment, phase: str) -> bool:
        """Clients that may not relay, if there are any rules."""
        return environment.relayclient is None and not self._none()

    def recipient(self, session: Session, transaction: Transaction, recipient: Address) -> Answer:
        """Why it is known, or a refusal; None for relay clients, and where there are no rules."""
        if session.relay:
            return None
        rules = self._rules(recipient.domain)
        if rules is None or isinstance(rules, Verdict):
            return rules
        if not recipient.domain and recipient.local.lower() == b"postmaster":
            return None  # RFC 5321 4.5.1: there always is one
        wanted = keys(recipient, self._breaks)
        sources = rules.sources(wanted.domain)
        for place, source in enumerate(sources):
            if isinstance(source, Program):
                return self._wait(session, recipient, wanted, sources[place:])
            if reason := source.knows(wanted):
                return _ACCEPTED[reason]
        return unknown(session)

    async def _wait(
        self, session: Session, recipient: Address, wanted: Keys, sources: Sequence[Source]
    ) -> Verdict | None:
        """Go on from the first program."""
        # As the original wrote it; but NULs end the address on descriptor 3, and must not stand in it.
        addresses = [a for a in (recipient.local + b"@" + wanted.domain, wanted.short) if a and b"\0" not in a]
        for source in sources:
            if not isinstance(source, Program):
                if reason := source.knows(wanted):
                    return _ACCEPTED[reason]
                continue
            for address in addresses:
                try:
                    known = await self._ask(source, address, session)
                except ProgramTrouble as trouble:
                    words = trouble.stderr.decode("ascii", "backslashreplace").split("\n")[0].strip()
                    self._warn(f"recipients: {trouble}" + (f": {words!a}" if words else ""))
                    return self._trouble
                if known:
                    return _ACCEPTED[ANSWERED]
        return unknown(session)


def _has_its_own(owner: Owner) -> bool:
    return bool(owner.recipients)


async def ask(programs: Programs, seconds: Seconds, program: Program, address: bytes, session: Session) -> bool:
    """Whether the program knows the address; raises ProgramTrouble if it can't tell."""
    code = await programs.run(program.argv, {3: address + b"\0\0\0"}, _environ(session), seconds)
    if code == _CANNOT_TELL:
        raise ProgramTrouble(f"{program.argv[0]} cannot tell for now", code.stderr)
    return code == _EXISTS


def _environ(session: Session) -> dict[str, str]:
    environ = {
        "PATH": _PATH,
        "PROTO": "TCP",
        "TCPREMOTEIP": session.client,
        "TCPREMOTEPORT": str(session.port),
        "TCPLOCALIP": session.server,
        "TCPLOCALPORT": str(session.server_port),
    }
    if session.host != "unknown":
        environ["TCPREMOTEHOST"] = session.host
    return environ


@implementer(ICheckerFactory)
class Factory:
    """Makes KnownRecipients."""

    name = "recipients"
    help = "refuses mailboxes that do not exist: control/recipients"
    options = {  # noqa: RUF012 - read only, as interfaces say
        "file": "the file of sources (else control/recipients)",
        "trouble": "if a program cannot tell for now: close (421), defer (451) or accept",
        "time": "how long a program may take (20s); then it is killed, and could not tell",
        "at-once": "how many programs may run at once (20)",
        "waiting": "how many more may wait for their turn (100); of others nobody can tell",
        "breaks": "characters behind which list-any is cut to look list- up too (-)",
    }

    def make(self, context: Any, options: Mapping[str, str]) -> KnownRecipients:
        """Raises BadLine for a line that is none, and a source that is not there, cannot be read or run."""
        said.known(self.name, options, self.options)
        seconds = said.seconds(self.name, options, "time", 20)
        programs = Programs(
            context.reactor,
            at_once=said.count(self.name, options, "at-once", 20, 1),
            waiting=said.count(self.name, options, "waiting", 100),
        )
        home = os.path.dirname(os.path.abspath(context.control))
        read_rules = partial(read, home=home, files=context.files, find=partial(executable, folder=home))
        path = context.path("recipients", options)
        watched = context.watch(path, read_rules, None)
        named = path if "file" in options else ""
        if named and watched.now() is None:
            raise ValueError(f"recipients: there is no file {path}; make it, or say another")
        breaks = options.get("breaks", "-").strip()
        rules = RuleFiles(context.files, read_rules, context.owner, context.folder, None if named else watched, named)
        return KnownRecipients(
            rules.of,
            partial(ask, programs, seconds),
            context.files.warn,
            none=partial(rules.none, context.some),
            trouble=_TROUBLE[said.choice(self.name, options, "trouble", tuple(_TROUBLE))],
            breaks=tuple(octet.encode() for octet in breaks),
            limit=4 * seconds,
        )
