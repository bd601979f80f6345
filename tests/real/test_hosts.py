"""Several hosts with one conf-qmq: each runs the roles that are its own."""

import shutil
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.real.gateway import Gateway, Sink, free_port, until


class HostsTests(SynchronousTestCase):
    """Two hosts, here two spools."""

    def test_same_file(self):
        """Host A runs the primary and the bounces, host B the customer, by one file: mail goes over, bounces come back."""
        sink, world = Sink(), Sink()
        sink.answers[b"RCPT"] = lambda line: b"550 5.1.1 unknown\r\n" if b"nobody" in line else None
        self.addCleanup(sink.close)
        self.addCleanup(world.close)
        there, back = free_port(), free_port()
        a = Gateway(
            {"one.test": f"smtp:127.0.0.1:{sink.port}"},
            sections={
                "one": f"handover = qmq:127.0.0.1:{there}\nqmtp-listen = 127.0.0.1:{there}\nqmq-peers = 127.0.0.1",
                "bounces": f"handover = qmq:127.0.0.1:{back}\nqmtp-listen = 127.0.0.1:{back}\nqmq-peers = 127.0.0.1",
            },
            bounce_route=f"smtp:127.0.0.1:{world.port}",
        )
        text = Path(a.conf).read_text()
        # Gateway writes a `qmtp-listen = none` for bounces, which another host could not reach.
        Path(a.conf).write_text(text.replace("role = bounce\nqmtp-listen = none\n", "role = bounce\n"))
        b = Gateway({"one.test": "mx"})
        shutil.copy(a.conf, b.conf)  # but for the spool, which is each host's
        Path(b.conf).write_text(Path(b.conf).read_text().replace(a.spool, b.spool))
        self.addCleanup(a.clear)
        self.addCleanup(b.clear)
        b.start(30, "--only", "one")
        a.start(30, "--only", "primary,bounces")

        answer = a.client().mail("bob@one.test", "nobody@one.test", mark="m")

        self.assertTrue(answer.startswith(b"250"), answer)
        until(lambda: sink.marks[b"m"] and world.messages)
        self.assertIn("one", b.stat())
        self.assertNotIn("one", a.stat())
        self.assertIn("reloaded", b.command("reload"))
        self.assertTrue(a.client().mail("bob@one.test", mark="n").startswith(b"250"))
        until(lambda: sink.marks[b"n"])
