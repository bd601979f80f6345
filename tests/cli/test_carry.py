import io
import json
import os
import tarfile

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qmq.cli.archive import BadArchive, Carried, Unread, Writer, envelope_of, messages_of
from qmq.cli.loose import loose_messages
from qmq.mail import HELD, NULL_SENDER, FileBody, Message, Token, address
from tests.admin.fakes import LATER, NOW, FakeQueue, entry
from tests.cli.processes import ProcessesTestCase
from tests.conf.folders import ConfTestCase


def facts(number=1, **more):
    """What a Desk tells of a message that is exported."""
    origin = {"protocol": "ESMTP", "client": "192.0.2.1", "helo": "x", "user": "", "made_here": False, "port": 25}
    return {
        "queue": "alpha", "id": f"abc-{number}", "number": number, "sender": "s@x.org", "born": NOW, "bouncing": [],
        "recipients": [{"address": "r@y.org", "reply": "451 no"}], "body_type": "7BIT", "smtputf8": False,
        "origin": origin, **more,
    }  # fmt: skip


def archive(*messages):
    """An archive of these facts and texts, as a file."""
    file = io.BytesIO()
    writer = Writer(file)
    for one, text in messages:
        writer.add(one, io.BytesIO(text), len(text))
    writer.finish()
    file.seek(0)
    return file


def tar(*members):
    """A tar archive with these names and texts; a str is a member's type (2: symbolic link)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as made:
        for name, text in members:
            member = tarfile.TarInfo(name)
            if isinstance(text, bytes):
                member.size = len(text)
                made.addfile(member, io.BytesIO(text))
            else:
                member.type, member.linkname = text.encode(), "/etc/passwd"
                made.addfile(member)
    file.seek(0)
    return file


ABOUT = ("archive.json", json.dumps({"format": "qmq-export", "version": 1, "id": "0123456789abcdef"}).encode())
END = ("end.json", b"{}")

_LEAF = st.sampled_from([None, True, -1, 1 << 70, 0.5, "", "x", "a@x.org", "\ud800", "\0"])
_JSON = _LEAF | st.lists(_LEAF | st.dictionaries(st.just("address"), _LEAF), max_size=2) | st.just(facts()["origin"])


class ArchiveTests(SynchronousTestCase):
    def test_round(self):
        """What was exported is imported: sender, recipients, age, whence it came, and the text to the octet."""
        texts = [b"", b"Subject: x\r\n\r\n\x00\xff.\r\n.\r\n", b"y" * 100_000]
        read = []
        for one in messages_of(archive(*((facts(n, id=f"abc-{n}"), text) for n, text in enumerate(texts, 1)))):
            envelope = envelope_of(one)
            read.append((one.name, one.text.read(), envelope.recipients))
            self.assertEqual(envelope.sender, address(b"s@x.org"))
            self.assertEqual(
                (envelope.origin.born, envelope.origin.client, envelope.origin.port), (NOW, b"192.0.2.1", 25)
            )

        recipients = (address(b"r@y.org"),)
        self.assertEqual(read, [(f"alpha/abc-{n}", text, recipients) for n, text in enumerate(texts, 1)])

    def test_token(self):
        """A message has the same token each time it is imported, and no other message has it."""
        file = archive((facts(1), b"a"), (facts(2), b"b"))
        first = [one.token for one in messages_of(file)]
        file.seek(0)

        self.assertEqual([one.token for one in messages_of(file)], first)
        self.assertEqual(len({*first, *(one.token for one in messages_of(archive((facts(1), b"a"))))}), 3)
        self.assertEqual(first[0], Token(first[0].peer, 1))
        self.assertTrue(first[0].peer.startswith(b"import."))

    def test_same_message_twice(self):
        """A message for two hosts is two members, which do not overwrite each other when the archive is unpacked."""
        file = archive((facts(1), b"a"), (facts(2, id="abc-1"), b"a"))
        with tarfile.open(fileobj=file) as found:
            names = found.getnames()

        self.assertEqual(len(set(names)), len(names))

    def test_senders(self):
        """The null sender, a double bounce's, quoted and international ones come back as they were."""
        for text, sender in {
            "": NULL_SENDER, "#@[]": address(b"#@[]"), '"a b"@x.org': address(b"a b@x.org"),
            "jürgen@bücher.example": address("jürgen@bücher.example".encode()),
        }.items():  # fmt: skip
            (one,) = list(messages_of(archive((facts(sender=text), b""))))
            self.assertEqual(envelope_of(one).sender, sender)

    def test_bouncing(self):
        """Whose bounce was not sent yet is tried again: nobody is forgotten."""
        (one,) = list(
            messages_of(archive((facts(recipients=[], bouncing=[{"address": "b@y.org", "reply": "550"}]), b"")))
        )

        self.assertEqual(envelope_of(one).recipients, (address(b"b@y.org"),))


class HostileArchiveTests(SynchronousTestCase):
    def read(self, *members):
        return list(messages_of(tar(*members)))

    def test_names(self):
        """Links, devices and names that lead elsewhere are no messages, and nothing is written anywhere."""
        found = self.read(
            ABOUT, ("a", "2"), ("b", "1"), ("c", "3"), ("d", "5"),
            ("../../etc/x.eml", b"text"), END,
        )  # fmt: skip

        self.assertEqual(
            [(one.name, one.why) for one in found],
            [
                ("a", "is no file"),
                ("b", "is no file"),
                ("c", "is no file"),
                ("../../etc/x.eml", "its .json does not stand before it"),
            ],
        )

    def test_order(self):
        """A text belongs to the envelope right before it, and to no other."""
        one = json.dumps({**facts(), "n": 1}).encode()
        found = self.read(ABOUT, ("a.json", one), ("b.eml", b"x"), ("c.json", one.replace(b'"n": 1', b'"n": 2')), END)

        self.assertEqual([type(each) for each in found], [Unread, Unread, Unread])

    def test_numbers(self):
        """A number that comes twice is not taken twice: the queue would take the second for the first, and lose it."""
        one = json.dumps({**facts(), "n": 1}).encode()
        found = self.read(ABOUT, ("a.json", one), ("a.eml", b"x"), ("b.json", one), ("b.eml", b"y"), END)

        self.assertIsInstance(found[0], Carried)
        self.assertEqual(found[1], Unread("b", "its number is 1, where one above 1 is wanted"))

    def test_foreign(self):
        """Another tar archive, another version, another file: told for what it is."""
        for members, why in (
            ([("a.json", b"{}")], "does not come first"), ([], "breaks off"), ([("archive.json", b"{}")], "no archive of qmq"),
            ([("archive.json", ABOUT[1].replace(b"1,", b"2,"))], "version 2"), ([("archive.json", b"[" * 100_000)], "archive.json"),
            ([ABOUT], "breaks off"),
        ):  # fmt: skip
            with self.assertRaisesRegex(BadArchive, why):
                self.read(*members)
        with self.assertRaises(BadArchive):
            list(messages_of(io.BytesIO(b"From x\n" * 1000)))

    def test_cut(self):
        """An archive that breaks off gives what is whole in it, and says that it breaks off."""
        whole = archive((facts(1), b"a" * 3000), (facts(2), b"b" * 3000)).getvalue()
        for size in (0, 300, 1024, 3000, 6000, 8000, 10_000):
            found = []
            with self.assertRaises(BadArchive):
                for one in messages_of(io.BytesIO(whole[:size])):
                    found.append(one)  # noqa: PERF402 - what came before the error counts
            self.assertLessEqual(len(found), 2)

    def test_envelopes(self):
        """What is no envelope is refused by name."""
        for wrong in (
            {"sender": None}, {"sender": "a b"}, {"sender": "x@y.org\nRCPT"}, {"recipients": {}}, {"recipients": []},
            {"recipients": ["a@x.org"]}, {"recipients": [{"address": "nobody"}]}, {"body_type": "9BIT"}, {"origin": []},
            {"origin": {**facts()["origin"], "helo": "x\0y"}}, {"origin": {**facts()["origin"], "port": 70000}},
            {"born": float("inf")}, {"born": -1}, {"born": "now"}, {"sender": "\ud800@x.org"}, {"recipients": [{"address": ""}]},
        ):  # fmt: skip
            one = Carried("a", "0" * 16, 1, facts(**wrong), io.BytesIO(), 0)
            with self.assertRaises(ValueError, msg=wrong):
                envelope_of(one)

    @given(st.dictionaries(st.sampled_from(list(facts())), _JSON))
    def test_any(self, wrong):
        """Whatever an archive says: an envelope, or a ValueError with a text."""
        try:
            envelope_of(Carried("a", "0" * 16, 1, facts(**wrong), io.BytesIO(), 0))
        except ValueError as error:
            self.assertTrue(str(error))


class LooseTests(ConfTestCase):
    def loose(self, source, recipients=(b"r@y.org",)):
        found = loose_messages(source, NULL_SENDER, [address(one) for one in recipients])
        return [(name, envelope.token, text.read(), envelope.body_type) for name, envelope, text, _ in found]

    def test_folder(self):
        """A folder's .eml files, in order, with lines that end in CRLF."""
        conf = self.write(
            "", {"mail/b.eml": "Subject: ü\n\nb\n", "mail/a.eml": "Subject: a\r\n\r\na", "mail/c.txt": ""}
        )

        found = self.loose(os.path.join(os.path.dirname(conf), "mail"))

        self.assertEqual([(name, text) for name, _, text, _ in found], [
            ("a.eml", b"Subject: a\r\n\r\na\r\n"), ("b.eml", "Subject: ü\r\n\r\nb\r\n".encode()),
        ])  # fmt: skip
        self.assertEqual([body_type for *_, body_type in found], [b"7BIT", b"8BITMIME"])

    def test_mailbox(self):
        """A mailbox file's messages, without the line that parts them."""
        path = os.path.join(os.path.dirname(self.write("")), "box")
        with open(path, "wb") as file:
            file.write(
                b"From a Mon Jan  1 00:00:00 2024\nSubject: a\n\na\n\nFrom b Mon Jan  1 00:00:00 2024\nSubject: b\n\nb\n"
            )

        self.assertEqual([text.splitlines()[0] for _, _, text, _ in self.loose(path)], [b"Subject: a", b"Subject: b"])

    def test_token(self):
        """The same text for the same recipients is the same message; for others it is another."""
        path = os.path.join(os.path.dirname(self.write("", {"a.eml": "Subject: a\n\na\n"})), "a.eml")
        tokens = [self.loose(path, recipients)[0][1] for recipients in ((b"r@y.org",), (b"r@y.org",), (b"q@y.org",))]

        self.assertEqual(tokens[0], tokens[1])
        self.assertNotEqual(tokens[0], tokens[2])


class ExportTests(ProcessesTestCase):
    """alpha in one process, beta in another."""

    def setUp(self):
        super().setUp()
        self.alpha = FakeQueue(entry(1, reply=LATER), entry(2, size=200_000), entry(3, due=None))
        self.beta = FakeQueue(entry(9, "u@beta.example"))
        self.process("worker-1", {"alpha": self.alpha})
        self.process("worker-2", {"beta": self.beta})
        self.target = os.path.join(os.path.dirname(self.conf), "out.tar")

    def exported(self):
        with open(self.target, "rb") as file:
            return {one.name: one.text.read() for one in messages_of(file)}

    def test_copy(self):
        """Everything that matches is in the archive, whole, and still in its queue."""
        texts = {n: b"".join(one.message.chunks()) for n, one in self.alpha.spool.entries.items()}

        output = self.qmq("export", "--all", "--to", self.target).stdout

        found = self.exported()
        self.assertEqual(sorted(found), ["alpha/abcdef-1", "alpha/abcdef-2", "alpha/abcdef-3", "beta/abcdef-9"])
        self.assertEqual([found[f"alpha/abcdef-{n}"] for n in (1, 2, 3)], [texts[n] for n in (1, 2, 3)])
        self.assertEqual(output, f"4 messages in {self.target}\n")
        self.assertEqual(self.alpha.said + self.beta.said, [])
        self.assertEqual(os.stat(self.target).st_mode & 0o777, 0o600)

    def test_delete(self):
        """With --delete they are held first; what is in delivery is neither in the archive nor deleted."""
        result = self.qmq("export", "--queue", "alpha", "--to", self.target, "--delete")

        self.assertEqual(sorted(self.exported()), ["alpha/abcdef-1", "alpha/abcdef-2"])
        self.assertEqual(sorted(self.alpha.spool.entries), [3])
        self.assertEqual([order[0] for order in self.alpha.said], ["hold", "delete"])
        self.assertEqual(self.alpha.said[1][1], {"state": "held", "id": "abcdef-1 abcdef-2"})
        self.assertIn("2 messages in", result.stdout)
        self.assertIn("1 message in delivery just now", result.stderr)
        self.assertEqual(sorted(self.beta.spool.entries), [9])

    def test_released_meanwhile(self):
        """What somebody releases before it is deleted is not deleted; that is told, with exit code 1."""
        real = self.alpha.act

        def act(order, query, *rest, **more):
            if order == "delete":
                self.alpha.spool.entries[1].due = NOW
            return real(order, query, *rest, **more)

        self.alpha.act = act
        result = self.qmq("export", "--queue", "alpha", "--to", self.target, "--delete", code=1)

        self.assertEqual(sorted(self.alpha.spool.entries), [1, 3])
        self.assertIn("1 of them could not be deleted", result.stderr)

    def test_same_id_in_delivery(self):
        """A message of which a part is in delivery stays whole: its id would delete that part too, once it is held."""
        other = entry(4, site=b"mx:other.example", due=None)
        other.message = Message(self.alpha.spool.entries[1].message.envelope, b"", other.message.body)
        self.alpha.spool.entries[4] = other

        self.qmq("export", "--queue", "alpha", "--to", self.target, "--delete")

        self.assertEqual(sorted(self.exported()), ["alpha/abcdef-2"])
        self.assertEqual(sorted(self.alpha.spool.entries), [1, 3, 4])
        self.assertEqual(self.alpha.spool.entries[1].due, HELD)

    def test_gone_meanwhile(self):
        """A message that is delivered while it is read is left out."""
        one = self.alpha.spool.entries[1]
        one.message = Message(one.message.envelope, b"", FileBody("/nowhere/at/all", 10))

        self.qmq("export", "--all", "--to", self.target)

        self.assertEqual(sorted(self.exported()), ["alpha/abcdef-2", "alpha/abcdef-3", "beta/abcdef-9"])

    def test_refused(self):
        """Nothing chosen, a file that is there, a folder that is not: nothing is held, nothing written."""
        self.qmq("export", "--to", self.target, code=2)
        self.qmq("export", "--all", "--to", self.conf, "--delete", code=2)
        self.qmq("export", "--all", "--to", self.target, "--delete", "--state", "waiting", code=2)
        self.assertEqual(self.alpha.said, [])
        self.qmq("export", "--all", "--to", "/nowhere/at/all.tar", code=1)

    def test_json(self):
        """For programs each message is an object, and at last the sum."""
        said = self.facts("export", "--queue", "beta", "--to", self.target)

        self.assertEqual(said[0], {"queue": "beta", "id": "abcdef-9", "member": "beta/abcdef-9"})
        self.assertEqual(said[-1], {"exported": 1, "deleted": 0, "archive": self.target})


class ImportTests(ProcessesTestCase):
    def test_dry_run(self):
        """Without --yes it is shown what would be imported."""
        path = os.path.join(os.path.dirname(self.conf), "in.tar")
        with open(path, "wb") as file:
            file.write(archive((facts(1), b"Subject: x\r\n\r\n")).getvalue())

        result = self.qmq("import", path, "--queue", "alpha")

        self.assertRegex(result.stdout, r"^alpha/abc-1: 14B, \d+d, <s@x.org> to r@y.org\n$")
        self.assertIn("nothing was done", result.stderr)

    def test_refused(self):
        """No such queue, no recipients, an archive that is none, nobody who listens."""
        loose = os.path.join(os.path.dirname(self.conf), "a.eml")
        with open(loose, "wb") as file:
            file.write(b"Subject: x\n\n")
        self.assertIn("alpha, beta, gamma", self.qmq("import", loose, "--queue", "x", code=2).stderr)
        self.assertIn("--recipient", self.qmq("import", loose, "--queue", "alpha", code=2).stderr)
        said = self.qmq("import", loose, "--queue", "alpha", "--recipient", "r@y.org", "--yes", code=1).stderr
        self.assertIn("is the gateway running", said)
