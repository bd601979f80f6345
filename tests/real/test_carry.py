import json
import os
import subprocess
import tarfile

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.real.gateway import QMQ, Gateway, Sink, until
from tests.real.peers import Postfix, program

BUSY = b"451 4.2.0 busy\r\n"


class CarryTestCase(SynchronousTestCase):
    """alpha and beta, whose host is busy."""

    def setUp(self):
        self.sink = Sink()
        self.sink.answers[b"RCPT"] = BUSY
        self.addCleanup(self.sink.close)
        route = f"smtp:127.0.0.1:{self.sink.port}"
        self.gateway = Gateway({"alpha.example": route, "beta.example": route})
        self.addCleanup(self.gateway.clear)
        self.gateway.start()
        self.tar = os.path.join(self.gateway.folder, "out.tar")

    def fill(self, messages):
        """Messages to alpha, deferred."""
        client = self.gateway.client()
        for mark in range(1, messages + 1):
            text = f"Subject: {mark}\r\n\r\n" + "x" * 70 + "\r\n" * (3000 if mark % 4 == 0 else 1)
            assert client.mail(f"u{mark}@alpha.example", mark=mark, text=text).startswith(b"250")
        client.close()
        until(lambda: self.gateway.stat()["alpha"]["deferred"] >= messages)

    def queued(self, name):
        return self.gateway.stat()[name]["queued"]


@pytest.mark.slow
class CarryTests(CarryTestCase):
    @pytest.mark.limit(120)
    def test_moved(self):
        """Exported with --delete and imported twice elsewhere: every message arrives once, with its age, and whole."""
        self.fill(20)

        said = self.gateway.command("export", "--queue", "alpha", "--to", self.tar, "--delete")
        self.assertIn("20 messages in", said)
        self.assertEqual(self.queued("alpha"), 0)
        with tarfile.open(self.tar) as tar:
            facts = [
                json.load(tar.extractfile(name))
                for name in tar.getnames()
                if name.startswith("alpha/") and "json" in name
            ]
        births = {one["id"]: one["born"] for one in facts}
        self.assertEqual(len(births), 20)
        self.gateway.command("import", self.tar, "--queue", "beta")
        self.assertEqual(self.queued("beta"), 0)
        for _ in range(2):
            self.assertIn("20 messages taken", self.gateway.command("import", self.tar, "--queue", "beta", "--yes"))
        self.assertEqual(self.queued("beta"), 20)
        listed = [json.loads(line) for line in self.gateway.command("list", "--json").splitlines()]
        self.assertEqual(
            [round(one, 3) for one in sorted(one["born"] for one in listed)],
            [int(born * 1000) / 1000 for born in sorted(births.values())],
        )

        self.sink.answers.clear()
        self.gateway.command("now", "beta")
        until(lambda: sum(self.sink.marks.values()) >= 20)
        until(lambda: self.queued("beta") == 0)
        self.gateway.command("import", self.tar, "--queue", "beta", "--yes")
        until(lambda: self.queued("beta") == 0)

        self.assertEqual(self.sink.marks, {str(mark).encode(): 1 for mark in range(1, 21)})
        self.assertTrue(any(text.endswith(b"x" * 70 + b"\r\n" * 3000) for *_, text in self.sink.messages))

    @pytest.mark.limit(120)
    def test_copied(self):
        """Without --delete the messages stay and are delivered; the archive has them as they lie in the queue."""
        self.fill(3)

        self.gateway.command("export", "--all", "--to", self.tar)

        self.assertEqual(self.queued("alpha"), 3)
        with tarfile.open(self.tar) as tar:
            texts = {name: tar.extractfile(name).read() for name in tar.getnames() if name.endswith(".eml")}
        self.sink.answers.clear()
        self.gateway.command("now", "alpha")
        until(lambda: len(self.sink.messages) == 3)
        self.assertEqual(sorted(texts.values()), sorted(text for *_, text in self.sink.messages))

    @pytest.mark.limit(120)
    def test_loose(self):
        """A mailbox file's messages are imported for whom one says; a recipient that is refused is named."""
        box = os.path.join(self.gateway.folder, "box")
        with open(box, "wb") as file:
            file.writelines(b"From x Mon Jan  1 00:00:00 2024\nX-Mark: %d\n\nhello\n\n" % mark for mark in range(3))
        self.sink.answers.clear()

        words = ("import", box, "--queue", "alpha", "--recipient", "u@alpha.example", "--yes")
        self.gateway.command(*words)
        self.gateway.command(*words)

        until(lambda: sum(self.sink.marks.values()) >= 3)
        until(lambda: self.queued("alpha") == 0)
        self.assertEqual(self.sink.marks, {b"0": 1, b"1": 1, b"2": 1})


@pytest.mark.slow
class PostfixDialectTests(CarryTestCase):
    """Side by side with a Postfix that has the same mail."""

    @pytest.mark.limit(120)
    def test_same(self):
        """`qmq postqueue -j` has the keys of Postfix's, in its order, of the same kinds; `qmq mailq` its columns."""
        postfix = Postfix(
            main=f"default_transport = smtp:[127.0.0.1]:{self.sink.port}\nenable_long_queue_ids = yes\n"
        ).start()
        self.addCleanup(postfix.clear)
        postfix.sendmail(b"Subject: x\n\nhello\n", "u@alpha.example", "v@alpha.example", sender="s@source.test")
        client = self.gateway.client()
        client.mail("u@alpha.example", "v@alpha.example", sender="s@source.test")
        until(lambda: self.gateway.stat()["alpha"]["deferred"])

        def theirs(flag):
            done = subprocess.run(
                [program("postqueue"), "-c", postfix.etc, flag], capture_output=True, text=True, check=True
            )
            return done.stdout

        until(lambda: "delay_reason" in theirs("-j"))
        (model,) = [json.loads(line) for line in theirs("-j").splitlines()]
        (ours,) = [json.loads(line) for line in self.gateway.command("postqueue", "-j").splitlines()]
        self.assertEqual([*model, "queue"], list(ours))
        self.assertEqual({k: type(v) for k, v in model.items()}, {k: type(ours[k]) for k in model})
        self.assertEqual([list(r) for r in model["recipients"]], [list(r) for r in ours["recipients"]])
        for word in ("queue_name", "sender", "forced_expire"):
            self.assertEqual(ours[word], model[word])

        columns = [_columns(text) for text in (theirs("-p"), self.gateway.command("mailq"))]
        self.assertEqual(columns[0], columns[1])

    @pytest.mark.limit(120)
    def test_pipeline(self):
        """The pipeline of postsuper's manual deletes what it names."""
        self.fill(3)
        listing = self.gateway.command("postqueue", "-j")
        chosen = [
            one["queue_id"]
            for one in map(json.loads, listing.splitlines())
            if one["recipients"][0]["address"] == "u1@alpha.example"
        ]

        done = subprocess.run(
            [*QMQ, "postsuper", "-d", "-", "--conf", self.gateway.conf],
            input="\n".join(chosen),
            capture_output=True,
            text=True,
        )

        self.assertEqual(done.stderr, f"postsuper: {chosen[0]}: removed\npostsuper: Deleted: 1 message\n")
        self.assertEqual(self.queued("alpha"), 2)


def _columns(listing):
    """Where the columns of a list begin, and what stands in those that are alike."""
    lines = listing.splitlines()
    return (
        lines[0],
        [line[47:] for line in lines if line.startswith(" " * 47) and line[47] != " "],
        lines[1][47:],
        lines[-1],
    )
