"""
The hosts behind the gateway: one process, one port for each, every message's time of receipt noted.

`python -m bed.sink COUNT` says on its standard output, in JSON lines, which ports
it has and what it was asked for; it is asked on its standard input, and ends with
it. A host may be told to behave badly: MODES.
"""

import asyncio
import gc
import json
import socket
import sys
import time

MARK = b"X-Bed: "
# What a host may do; ways to begin and to end are in Host.behave.
MODES = {
    "well": "takes all mail at once",
    "slow": "takes 100 ms for each message",
    "defer": "says 421 to everything",
    "tarpit": "answers after 30 s, one octet a second",
    "blackhole": "answers no SYN, and on open connections nothing",
}
_SLOW = 0.1
_TARPIT = 30.0
_EHLO = b"250-sink.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE 200000000\r\n"
_OK = b"250 2.0.0 ok\r\n"


class Session(asyncio.Protocol):
    """One connection of the gateway's."""

    def __init__(self, host):
        self.host = host
        self.buffer = b""
        self.text = False
        self.late = []  # replies that wait for their time, with the message they are about
        self.calls = []

    def connection_made(self, transport):
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.host.sessions.add(self)
        if self.host.mode == "defer":
            transport.write(b"421 4.3.2 not now\r\n")
            transport.close()
        else:
            self.answer([b"220 sink.test ESMTP\r\n"], [])

    def data_received(self, data):
        self.buffer = self.buffer + data if self.buffer else data
        if self.host.mode == "blackhole":
            return
        replies, taken = [], []
        while self.buffer:
            reply = self.body(taken) if self.text else self.command()
            if reply is None:
                break
            replies.append(reply)
        if replies:
            self.answer(replies, taken)

    def command(self):
        """The reply to the next command; None if it is not whole yet."""
        line, end, rest = self.buffer.partition(b"\n")
        if not end:
            return None
        self.buffer = rest
        verb = line[:4].upper()
        if self.host.mode == "defer":
            return b"421 4.3.2 not now\r\n"
        if verb == b"DATA":
            self.text = True
            return b"354 go\r\n"
        return _EHLO if verb == b"EHLO" else b"221 bye\r\n" if verb == b"QUIT" else _OK

    def body(self, taken):
        """Take a message that is whole."""
        text, end, rest = self.buffer.partition(b"\r\n.\r\n")
        if not end:
            return None
        self.buffer, self.text = rest, False
        at = text.find(MARK)
        taken.append(text[at + len(MARK) : text.find(b"\r", at)].decode() if at >= 0 else "?")
        return _OK

    def answer(self, replies, taken):
        """What was taken is noted when its 250 leaves: before, it is still the gateway's."""
        mode, loop = self.host.mode, asyncio.get_running_loop()
        if mode == "slow" and taken:
            self.calls.append(loop.call_later(_SLOW, self.now, replies, taken))
        elif mode == "tarpit":
            self.late += [(bytes([octet]), []) for octet in b"".join(replies)[:-1]] + [(b"\n", taken)]
            if len(self.late) <= len(b"".join(replies)):  # nothing was waiting before
                self.calls.append(loop.call_later(_TARPIT, self.dribble))
        else:
            self.now(replies, taken)

    def dribble(self):
        octet, taken = self.late.pop(0)
        self.now([octet], taken)
        if self.late:
            self.calls.append(asyncio.get_running_loop().call_later(1, self.dribble))

    def now(self, replies, taken):
        if self.transport.is_closing():
            return
        at = time.monotonic()
        self.transport.write(b"".join(replies))
        self.host.taken += [(mark, at) for mark in taken]
        if any(reply.startswith((b"421", b"221")) for reply in replies):
            self.transport.close()

    def connection_lost(self, _):
        self.host.sessions.discard(self)
        for call in self.calls:
            call.cancel()


class Host:
    """One port."""

    def __init__(self):
        self.mode = "well"
        self.taken = []  # (mark, time of CLOCK_MONOTONIC)
        self.sessions = set()
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.listen(1024)
        self.port = self.socket.getsockname()[1]
        self.server = None
        self.crowd = []

    async def serve(self):
        """Take connections."""
        loop = asyncio.get_running_loop()
        # A copy of the descriptor: the port listens on when the server is closed, and never refuses.
        self.server = await loop.create_server(lambda: Session(self), sock=self.socket.dup(), backlog=1024)

    async def behave(self, mode):
        """Change; what was under way in another mode is cut, as by a host that starts anew."""
        if mode == self.mode:
            return
        if self.mode not in {"well", "slow"}:
            for session in tuple(self.sessions):
                session.transport.abort()
        if self.mode == "blackhole":
            for one in self.crowd:
                one.close()
            self.crowd.clear()
            self.socket.listen(1024)
            await self.serve()
        self.mode = mode
        if mode == "blackhole":
            self.server.close()
            # Linux drops the SYN when the queue of a listening socket is full.
            self.socket.listen(0)
            for _ in range(4):
                self.crowd.append(one := socket.socket())
                one.setblocking(False)
                one.connect_ex(("127.0.0.1", self.port))


async def run(count):
    """Serve and do as told: {"do": "mode", "host": N, "mode": MODE}, {"do": "count"}, {"do": "dump", "path": PATH}."""
    hosts = [Host() for _ in range(count)]
    for host in hosts:
        await host.serve()
    gc.freeze()
    gc.disable()
    print(json.dumps({"ports": [host.port for host in hosts]}), flush=True)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        asked = json.loads(line)
        answer = {"done": True}
        if asked["do"] == "mode":
            await hosts[asked["host"]].behave(asked["mode"])
        elif asked["do"] == "count":
            answer["taken"] = [len(host.taken) for host in hosts]
        elif asked["do"] == "dump":
            with open(asked["path"], "w", encoding="ascii") as file:
                json.dump([host.taken for host in hosts], file)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(run(int(sys.argv[1])))
