"""
The control socket of a process: what `qmq stat`, `qmq list`, `qmq hold` and their like talk to.

A unix socket in SPOOL/run, mode 0600. A request is one JSON object on a line:
the word to do under "do", the queues meant under "queue" (a name, a list of
names; nothing: all that are here). The answer is one JSON object a line, the
last of which has "end", and "queues" with the names of those that were meant.
An "error" is the whole request's, and with "wrong" it is the asker's; a
"trouble" is one queue's, and the others go on. While there is nothing to tell
a "beat" says that the process lives. Whoever hangs up is not worked for any more.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, FirstError, ensureDeferred, gatherResults
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from zope.interface import implementer

from qmq.admin import carry, words
from qmq.admin.words import Say
from qmq.interfaces import SpoolTrouble
from qmq.mail import Seconds

# A list of thousands of ids is a request, too.
_REQUEST_OCTETS = 1 << 18
_BEAT: Seconds = 1
# Queues looked into at once: one whose disk hangs does not hold up the others.
_AT_ONCE = 8
ACTS = ("hold", "release", "now", "delete", "bounce", "move")
SWITCHES = ("pause", "resume", "refuse", "accept")
log = Logger()

Doing = Callable[[Mapping[str, Any], Say], Awaitable[None] | None]


class Desk:
    """
    What can be asked of a process: its queues, by name, as they are when asked.

    *about* adds facts of the process itself to `stat` (the primary's sessions,
    the workers' process ids); *doings* are the gateway's own words (reload,
    diff, restart), which only its main process has.
    """

    def __init__(
        self,
        process: str,
        queues: Callable[[], Mapping[str, Any]],
        about: Callable[[], dict[str, Any]],
        doings: Mapping[str, Doing],
        wall: Callable[[], Seconds] = time.time,
    ) -> None:
        self._process = process
        self._queues = queues
        self._about = about
        self._doings = doings
        self._wall = wall
        self._words: dict[str, Callable[..., Awaitable[None]]] = {
            "list": partial(words.listed, wall=wall),
            "count": words.counted,
            "show": partial(words.shown, wall=wall),
            "cat": words.written,
            "export": partial(carry.carried, wall=wall),
            **dict.fromkeys(ACTS, words.acted),
            **dict.fromkeys(SWITCHES, _switch),
        }

    async def answer(self, request: Mapping[str, Any], say: Say) -> None:
        """Do what is asked; facts go to *say* one by one, the end too."""
        chosen = self._chosen(request)
        word = request.get("do")
        try:
            if not isinstance(word, str) or not await self._do(word, request, chosen, say):
                known = ", ".join(sorted({"stat", *self._words, *self._doings}))
                say({"error": f"no such request: {word!r}; known are {known}", "wrong": True})
        except ValueError as error:
            say({"error": str(error), "wrong": True})
        say({"end": True, "queues": sorted(chosen), "known": sorted(self._queues())})

    async def _do(self, word: str, request: Mapping[str, Any], chosen: Mapping[str, Any], say: Say) -> bool:
        """Whether there is such a word."""
        if word == "stat":
            say({"process": self._process, "pid": os.getpid(), **self._about(), "queues": self._stat(chosen)})
        elif doing := self._doings.get(word):
            done = doing(request, say)
            if done is not None:
                await done
        elif word in self._words:
            await _each(chosen, partial(self._words[word], request=request, say=say), say)
        else:
            # What is for the main process is asked of all, since only they know which is it.
            return bool(request.get("main"))
        return True

    def _stat(self, chosen: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        now, found = self._wall(), {}
        for name, queue in chosen.items():
            age = now - queue.spool.birth
            found[name] = {**queue.status(), "age": max(0.0, age) if age > float("-inf") else None}
        return found

    def _chosen(self, request: Mapping[str, Any]) -> dict[str, Any]:
        wanted = request.get("queue") or ()
        names = (wanted,) if isinstance(wanted, str) else wanted
        # A queue is not moved to itself: it has the message, so it would say K, and the message would be gone.
        but = request.get("to") if request.get("do") == "move" else None
        return {name: q for name, q in self._queues().items() if name != but and (not names or name in names)}


async def _switch(name: str, queue: Any, request: Mapping[str, Any], say: Say) -> None:
    """Pause, resume, refuse, accept."""
    word = request["do"]
    done = {"pause": queue.pause, "resume": queue.resume, "refuse": queue.refuse, "accept": queue.accept}[word]()
    if done is not None:
        await done
    say({"queue": name, "done": word})


async def _each(queues: Mapping[str, Any], do: Callable[[str, Any], Awaitable[None]], say: Say) -> None:
    """*do* with each queue, some at once; a queue that fails says so, a wrong request (ValueError) ends all."""
    todo = iter(queues.items())
    wrong: list[ValueError] = []

    async def some() -> None:
        for name, queue in todo:
            if wrong:
                return
            try:
                await do(name, queue)
            except CancelledError:
                raise
            except ValueError as error:
                wrong.append(error)
            except SpoolTrouble as error:
                say({"queue": name, "trouble": str(error)})
            except Exception as error:  # noqa: BLE001 - one queue's fault, told: the others go on
                log.failure("a request of {queue} failed", queue=name)
                say({"queue": name, "trouble": str(error) or type(error).__name__})

    try:
        await gatherResults([ensureDeferred(some()) for _ in range(min(_AT_ONCE, len(queues)))], consumeErrors=True)
    except FirstError as error:
        error.subFailure.raiseException()  # cancelled
    if wrong:
        raise wrong[0]


@implementer(IPushProducer)
class _Counter(Protocol):
    """One operator's command: its requests are answered one after the other."""

    def __init__(self, answer: Callable[[Mapping[str, Any], Say], Awaitable[None]], clock: IReactorTime | None) -> None:
        self._answer = answer
        self._buffer = b""
        self._asked: list[bytes] = []
        self._serving: Deferred[None] | None = None
        self._full: Deferred[None] | None = None
        self._told = False
        self._clock = clock
        self._beat = LoopingCall(self._tell_beat)

    def connectionMade(self) -> None:
        """What it does not read is not fetched for it."""
        self.transport.registerProducer(self, True)  # type: ignore[union-attr]  # a connection has it

    def dataReceived(self, data: bytes) -> None:
        """A request a line."""
        self._buffer += data
        if len(self._buffer) > _REQUEST_OCTETS:
            self.transport.abortConnection()  # type: ignore[union-attr]  # a connection has it
            return
        *lines, self._buffer = self._buffer.split(b"\n")
        self._asked += lines
        if self._asked and self._serving is None:
            self._serving = serving = ensureDeferred(self._serve())
            serving.addErrback(lambda failure: failure.trap(CancelledError))
            serving.addBoth(self._served)

    def connectionLost(self, reason: Any = None) -> None:
        """Nobody listens any more: stop working for them."""
        self._asked.clear()
        if self._serving is not None:
            self._serving.cancel()

    async def _serve(self) -> None:
        if self._clock is not None:
            self._beat.clock = self._clock
            self._beat.start(_BEAT, now=False)
        while self._asked:
            await self._reply(self._asked.pop(0))

    def _served(self, result: Any) -> Any:
        self._serving = None
        if self._beat.running:
            self._beat.stop()
        return result

    async def _reply(self, line: bytes) -> None:
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise ValueError("a request is a JSON object")  # noqa: TRY004, TRY301 - told below as any wrong one
            await self._answer(request, self)
        except CancelledError:
            raise
        except ValueError as error:
            self({"error": str(error), "wrong": True})
            self({"end": True})
        except Exception as error:  # noqa: BLE001 - the operator is told, the process goes on
            log.failure("a request at the control socket failed")
            self({"error": str(error) or type(error).__name__})
            self({"end": True})

    def __call__(self, fact: dict[str, Any]) -> None:
        self._told = True
        self._write(fact)

    def _write(self, fact: dict[str, Any]) -> None:
        if self.transport is not None and self.connected:
            self.transport.write(json.dumps(fact).encode() + b"\n")

    def _tell_beat(self) -> None:
        """Not while they don't read: they have enough to see that we live."""
        told, self._told = self._told, False
        if not told and self._full is None:
            self._write({"beat": True})

    # Say, and the transport's producer

    async def room(self) -> None:
        """As Say."""
        if self._full is not None:
            await self._full

    def pauseProducing(self) -> None:
        """They don't read as fast as we tell."""
        if self._full is None:
            self._full = Deferred()

    def resumeProducing(self) -> None:
        """They have read."""
        full, self._full = self._full, None
        if full is not None:
            full.callback(None)

    def stopProducing(self) -> None:
        """They are gone; connectionLost follows."""


class ControlFactory(Factory):
    """Serves a Desk; with a *clock* it beats while a request takes long."""

    noisy = False

    def __init__(self, desk: Desk, clock: IReactorTime | None = None) -> None:
        self._desk = desk
        self._clock = clock

    def buildProtocol(self, addr: Any) -> Protocol:
        """One request or several, one connection."""
        return _Counter(self._desk.answer, self._clock)
