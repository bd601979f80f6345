"""Recipients that real programs know, and a real host behind the gateway."""

from pathlib import Path
from typing import Any

import pytest_twisted
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults
from twisted.internet.protocol import Factory as Listening
from twisted.protocols.basic import LineReceiver

from qmq.checks.callout import Factory as CalloutFactory
from qmq.checks.recipients import Factory
from qmq.mail import address
from qmq.receive.context import Context
from qmq.session import Session, Transaction
from tests.checks.test_callout import Owner

TRANSACTION = Transaction(b"spool-1", address(b"a@x.example"))
STRANGER = Session("192.0.2.1", 40000, "192.0.2.25", 25)
# As checkpassword's kin read: the address, up to the first NUL.
CHECK = """#!/bin/sh
address=$(tr '\\0' '\\n' <&3 | head -1)
case "$address" in
  bob@one.test) exit 0;;
  list-@one.test) exit 0;;
  later@one.test) echo "no directory" >&2; exit 111;;
  crash@one.test) kill -SEGV $$;;
  slow@one.test) sleep 30;;
  env@one.test) test "$TCPREMOTEIP" = 192.0.2.1 -a "$1 $2" = "a b" -a -z "$HOME" ;;
  *) exit 1;;
esac
"""


def made(folder: Path, **options: str) -> Any:
    """A checker whose program is CHECK."""
    from twisted.internet import reactor

    (folder / "control").mkdir()
    (folder / "bin").mkdir()
    (folder / "bin" / "check").write_text(CHECK)
    (folder / "bin" / "check").chmod(0o755)
    (folder / "control" / "recipients").write_text("@one.test|bin/check a b\n")
    context = Context(lambda _: True, 0, reactor, control=str(folder / "control"), reactor=reactor)  # type: ignore[arg-type]
    return Factory().make(context, options)


async def code(checker: Any, raw: bytes) -> object:
    """The reply's code, or the reason of an acceptance."""
    answer = checker.recipient(STRANGER, TRANSACTION, address(raw))
    verdict = await answer if hasattr(answer, "__await__") else answer
    return verdict and (verdict.reply.code if verdict.reply else verdict.reason)


@pytest_twisted.ensureDeferred
async def test_programs(tmp_path: Path) -> None:
    """A program is given address, arguments and environment, and its exit code decides; trouble hangs up."""
    checker = made(tmp_path, time="1s")
    accepted = "Accept::RCPT::Recipients_Pam"

    answers = await gatherResults(
        [
            ensureDeferred(code(checker, name + b"@one.test"))
            for name in (b"bob", b"list-x", b"env", b"eve", b"later", b"crash", b"slow")
        ]
    )

    assert answers == [accepted, accepted, accepted, 550, 421, 421, 421]


@pytest_twisted.ensureDeferred
async def test_program_is_gone(tmp_path: Path) -> None:
    """A program that can't be executed any more gives one answer, and no "unknown"."""
    checker = made(tmp_path, trouble="defer")
    (tmp_path / "bin" / "check").chmod(0)
    (tmp_path / "bin" / "check").unlink()

    assert await code(checker, b"bob@one.test") == 451


class Host(LineReceiver):
    """Knows bob."""

    delimiter = b"\r\n"

    def connectionMade(self) -> None:
        self.sendLine(b"220 host")

    def lineReceived(self, line: bytes) -> None:
        verb = line[:4].upper()
        said = b"550 who?" if verb == b"RCPT" and b"bob" not in line else b"250 ok"
        self.sendLine(b"221 bye" if verb == b"QUIT" else said)


@pytest_twisted.ensureDeferred
async def test_callout() -> None:
    """The host behind an instance is asked by SMTP; when it is down a closed instance defers."""
    from twisted.internet import reactor

    listener: Any = reactor.listenTCP(0, Listening.forProtocol(Host), interface="127.0.0.1")  # type: ignore[attr-defined]
    site = b"smtp:127.0.0.1:%d" % listener.getHost().port
    context = Context(
        lambda _: True, 0, reactor, me="gateway.test", owner=lambda _: Owner("closed"), site=lambda _: site, reactor=reactor  # type: ignore[arg-type, return-value]
    )  # fmt: skip
    checker = CalloutFactory().make(context, {})
    try:
        asked: list[Deferred[object]] = [
            ensureDeferred(code(checker, b"%b%d@one.test" % (name, n))) for n in range(20) for name in (b"bob", b"eve")
        ]
        assert await gatherResults(asked) == ["Accept::RCPT::Recipients_Callout", 550] * 20
    finally:
        await listener.stopListening()

    assert await code(checker, b"bob1@one.test") == "Accept::RCPT::Recipients_Callout"
    assert await code(checker, b"bob99@one.test") == 450
