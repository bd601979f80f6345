"""
The control socket of a process: what `qmq stat`, `qmq read`, `qmq now` and their like talk to.

A unix socket in SPOOL/run, mode 0600. A request is one JSON object on a line
with the word to do under "do"; the answer is one JSON object a line, the last
of which has "end". It is for the operator's own commands, not for the network.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from twisted.internet.defer import ensureDeferred
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger

from qmq.mail import Entry, path

_REQUEST_OCTETS = 65536
log = Logger()

Say = Callable[[dict[str, Any]], None]


class Desk:
    """
    What can be asked of a process: its queues, by name.

    *about* adds facts of the process itself to `stat` (the primary's sessions,
    the workers' process ids); *reload* is what `qmq reload` starts.
    """

    def __init__(
        self,
        process: str,
        queues: Mapping[str, Any],
        about: Callable[[], dict[str, Any]],
        reload: Callable[[], str],
    ) -> None:
        self._process = process
        self._queues = queues
        self._about = about
        self._reload = reload

    async def answer(self, request: Mapping[str, Any], say: Say) -> None:
        """Do what is asked; facts go to *say* one by one."""
        match request.get("do"):
            case "stat":
                queues = {name: queue.status() for name, queue in self._queues.items()}
                say({"process": self._process, "pid": os.getpid(), **self._about(), "queues": queues})
            case "read":
                await self._read(request, say)
            case "now":
                for name, queue in self._chosen(request):
                    say({"queue": name, "due": await queue.due_now(_query(request))})
            case "pause" | "resume" | "refuse" | "accept" as order:
                for name, queue in self._chosen(request):
                    getattr(queue, order)()  # the four words above, no other
                    say({"queue": name, "done": order})
            case "reload":
                say({"process": self._process, "reload": self._reload()})
            case unknown:
                say({"error": f"no such request: {unknown!r}"})

    async def _read(self, request: Mapping[str, Any], say: Say) -> None:
        limit = int(request.get("limit") or 1000)
        for name, queue in self._chosen(request):
            entries = await queue.spool.find(_query(request), int(request.get("after") or 0), limit)
            for entry in entries:
                say({"queue": name, **facts(entry)})

    def _chosen(self, request: Mapping[str, Any]) -> list[tuple[str, Any]]:
        wanted = request.get("queue")
        return [(name, queue) for name, queue in self._queues.items() if wanted in (None, "", name)]


def facts(entry: Entry) -> dict[str, Any]:
    """An entry as JSON can say it; addresses as in SMTP, times as seconds since 1970."""
    envelope = entry.message.envelope
    return {
        "id": envelope.token.id.decode("ascii"),
        "number": entry.number,
        "sender": _text(path(envelope.sender)),
        "recipients": [{"address": _text(path(r)), "reply": _said(entry.last.get(r))} for r in envelope.recipients],
        "bouncing": [{"address": _text(path(r)), "reply": _said(reply)} for r, reply in entry.bouncing],
        "site": _text(entry.site),
        "born": entry.born,
        "due": entry.due,
        "attempts": entry.attempts,
        "size": entry.message.size if entry.message.body is not None else None,
    }


def _said(reply: Any) -> str:
    return "" if reply is None else f"{reply.code} {reply.status} {reply.text}".strip()


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


def _query(request: Mapping[str, Any]) -> dict[str, str]:
    return {k: str(v) for k, v in request.items() if k in ("id", "site", "recipient", "sender", "domain") and v}


class _Counter(Protocol):
    """One operator's command."""

    def __init__(self, answer: Callable[[Mapping[str, Any], Say], Awaitable[None]]) -> None:
        self._answer = answer
        self._buffer = b""

    def dataReceived(self, data: bytes) -> None:
        """A request a line."""
        self._buffer += data
        if len(self._buffer) > _REQUEST_OCTETS:
            self.transport.abortConnection()  # type: ignore[union-attr]  # a connection has it
            return
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            ensureDeferred(self._reply(line))

    async def _reply(self, line: bytes) -> None:
        try:
            await self._answer(json.loads(line), self._say)
        except Exception as error:  # noqa: BLE001 - the operator is told, the process goes on
            log.failure("a request at the control socket failed")
            self._say({"error": str(error) or type(error).__name__})
        self._say({"end": True})

    def _say(self, fact: dict[str, Any]) -> None:
        if self.transport is not None:
            self.transport.write(json.dumps(fact).encode() + b"\n")


class ControlFactory(Factory):
    """Serves a Desk."""

    noisy = False

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def buildProtocol(self, addr: Any) -> Protocol:
        """One request or several, one connection."""
        return _Counter(self._desk.answer)
