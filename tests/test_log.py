import json
import os
import re
import shutil
import socket
import tempfile
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from qmq.log import EventLog, LogFile, to_descriptor
from qmq.mail import NULL_SENDER, Address, Reply
from qmq.session import Session, Transaction

NOW = 1795457222.123
SESSION = Session("192.0.2.1", 4711, "192.0.2.25", 25, helo=b"client.example", number=7)
SENDER = Address(b"a", b"example.org")
RECIPIENT = Address(b"b", b"example.net")
OK = Reply(250, "2.0.0", "ok", "mail.example.net (192.0.2.2)")
NO = Reply(550, "5.1.1", "no such user")
WHO = "P:ESMTP S:192.0.2.1:unknown H:client.example"
MAIL = Transaction(b"q1-2a", SENDER)


class LogTests(SynchronousTestCase):
    def log(self, **options: Any) -> EventLog:
        self.clock = Clock()
        self.written: list[bytes] = []
        return EventLog(self.written.append, self.clock, lambda: NOW, **options)

    def line(self, log: EventLog) -> str:
        log.flush()
        (line,) = self.written
        return line.decode("ascii")

    def test_accepted(self) -> None:
        """The line of an accepted message says when, which, who, from whom, to whom and how long."""
        log = self.log()

        log.accepted(b"q1-2a", SESSION, NULL_SENDER, [RECIPIENT, SENDER], 4096)

        self.assertEqual(
            self.line(log),
            "2026-11-23T18:07:02.123Z accepted id=q1-2a session=7 client=192.0.2.1 helo=client.example from=<> "
            "recipients=2 to=<b@example.net>,<a@example.org> size=4096\n",
        )

    def test_session(self) -> None:
        """TLS and the authenticated user are in the line where there are any."""
        log = self.log()

        log.accepted(b"q", Session("::1", 1, "::1", 25, b"", True, "TLSv1.3 X", b"joe"), SENDER, [RECIPIENT], 1)

        self.assertIn('client=::1 helo="" tls="TLSv1.3 X" user=joe from', self.line(log))

    def test_delivered_by_tls(self) -> None:
        """A delivery names what it was encrypted by, and whether the certificate held."""
        log = self.log()

        log.delivered(
            b"q", "customer1", RECIPIENT, Reply(250, "2.0.0", "ok", "mx (192.0.2.2)", "TLSv1.3 X verified"), 1
        )

        self.assertIn('mta="mx (192.0.2.2)" tls="TLSv1.3 X verified"\n', self.line(log))

    def test_odd_addresses(self) -> None:
        """A recipient with no domain, or with anything that is not plain, is written so that no stranger forges a field."""
        log = self.log()
        for local, domain, told in (
            (b"postmaster", b"", "<postmaster>"),
            (b"a@b", b"", "<a@b>"),
            (b"a@b", b"x.org", "<a@b@x.org>"),
            (b"a b", b"x.org", '"<a b@x.org>"'),
            (b"a=b", b"x.org", '"<a=b@x.org>"'),
            (b"a", "ö.org".encode(), '"<a@\\u00f6.org>"'),
            (b"a\xff", b"x.org", "<a\\xff@x.org>"),
            (b"a> queue=c", b"x", '"<a> queue=c@x>"'),
        ):
            self.written.clear()
            log.delivered(b"q", "customer1", Address(local, domain), OK, 1)
            self.assertIn(f"id=q queue=customer1 to={told} delay=1.0 ", self.line(log))

    def test_all_facts(self) -> None:
        """Each fact is one line: SPAMCONTROL's at the front door, else its name and fields by name."""
        log = self.log()

        log.passed(SESSION, MAIL, RECIPIENT, "Accept::RCPT::Rcpthosts_Rcptto")
        log.refused(SESSION, MAIL, RECIPIENT, NO, "Reject::ORIG::Bad_Mailfrom", "@")
        log.refused(SESSION, None, None, NO)
        log.noted(SESSION, MAIL, RECIPIENT, "Info::SNDR::Tarpit", "5")
        log.handed(b"q", "customer1", [RECIPIENT])
        log.kept(b"q", "instance customer1 unreachable")
        log.delivered(b"q", "customer1", RECIPIENT, OK, 1.25)
        log.moved(b"q", "customer1", RECIPIENT, "internet", 1.25)
        log.deferred(b"q", "customer1", RECIPIENT, NOW + 400, NO)
        log.failed(b"q", "customer1", RECIPIENT, NO)
        log.deleted(b"q", "customer1", RECIPIENT)
        log.bounced(b"q", b"q.b-1", "customer1", SENDER)
        log.dropped_bounce(b"q", "customer1", "triple bounce")
        log.warning("disk is nearly full")
        log.flush()

        lines = b"".join(self.written).decode("ascii").split("\n")
        self.assertEqual(
            [line.removeprefix("2026-11-23T18:07:02.123Z ") for line in lines],
            [
                f"qmail-smtpd: pid 7 Accept::RCPT::Rcpthosts_Rcptto {WHO} F:a@example.org T:b@example.net",
                f"qmail-smtpd: pid 7 Reject::ORIG::Bad_Mailfrom {WHO} F:a@example.org T:b@example.net '@'",
                f"qmail-smtpd: pid 7 Reject::SMTP::Other {WHO} F: T: '550 5.1.1 no such user'",
                f"qmail-smtpd: pid 7 Info::SNDR::Tarpit {WHO} F:a@example.org T:b@example.net '5'",
                "handed id=q instance=customer1 recipients=1 to=<b@example.net>",
                'kept id=q reason="instance customer1 unreachable"',
                (
                    'delivered id=q queue=customer1 to=<b@example.net> delay=1.2 reply="250 2.0.0 ok"'
                    ' mta="mail.example.net (192.0.2.2)"'
                ),
                "moved id=q queue=customer1 to=<b@example.net> instance=internet delay=1.2",
                (
                    "deferred id=q queue=customer1 to=<b@example.net> due=2026-11-23T18:13:42Z"
                    ' reply="550 5.1.1 no such user"'
                ),
                'failed id=q queue=customer1 to=<b@example.net> reply="550 5.1.1 no such user"',
                "deleted id=q queue=customer1 to=<b@example.net>",
                "bounced id=q bounce=q.b-1 queue=customer1 to=<a@example.org>",
                'dropped-bounce id=q queue=customer1 why="triple bounce"',
                'warning text="disk is nearly full"',
                "",
            ],
        )

    @given(st.binary(max_size=60), st.text(max_size=60))
    def test_hostile_values(self, raw: bytes, text: str) -> None:
        """Whatever strangers say, a fact is one line of printable ASCII, its fields parted by single spaces."""
        log = self.log()

        log.deferred(raw, text, Address(raw, raw), 0, Reply(450, "", text, text, text))
        log.accepted(raw, Session(text, 1, "", 25, raw, tls=text, user=raw), Address(raw, raw), [RECIPIENT], 1)
        log.refused(Session(text, 1, "", 25, raw, host=text), Transaction(raw, Address(raw, raw)), None, NO, text, text)

        log.flush()
        first, second, third = b"".join(self.written).decode("ascii").splitlines()
        value = r'(?:[!#-<>-~]*|"(?:[^"\\]|\\.)*")'
        self.assertRegex(first, rf"\A\S+Z deferred(?: [a-z]+={value})+\Z")
        self.assertRegex(second, rf"\A\S+Z accepted(?: [a-z]+={value})+\Z")
        self.assertRegex(
            third,
            r"\A\S+Z qmail-smtpd: pid 0 (?:Reject|Accept|Info)::\S+ P:ESMTP S:\S*:\S* H:\S* F:\S* T:(?: '[^']*')?\Z",
        )
        self.assertIsNone(re.search(r"[^\x20-\x7e]", first + second + third))

    def test_long_values(self) -> None:
        """A value is cut after 1000 characters, and of thousands of recipients a hundred are named."""
        log = self.log()

        log.accepted(b"q", Session("192.0.2.1", 1, "", 25, b"x" * 9999), SENDER, [RECIPIENT] * 5000, 1)

        line = self.line(log)
        self.assertLess(len(line), 4000)
        self.assertIn("recipients=5000 to=<b@example.net>,", line)

    def test_json(self) -> None:
        """In the form of JSON each line is an object, the log's own words too."""
        log = self.log(json=True, lines=2)
        log.dropped = 3

        log.passed(SESSION, MAIL, RECIPIENT, "Accept::RCPT::Rcpthosts_Rcptto")
        log.delivered(b"q", "customer1", RECIPIENT, OK, 1.25)

        facts = [json.loads(line) for line in b"".join(self.written).splitlines()]
        self.assertEqual([fact["event"] for fact in facts], ["passed", "delivered", "warning"])
        self.assertEqual({fact["time"] for fact in facts}, {"2026-11-23T18:07:02.123Z"})
        self.assertEqual((facts[0]["session"], facts[0]["id"]), (7, "q1-2a"))

    def test_batches(self) -> None:
        """Lines are written 64 at a time, or 0.2 s after the first of them."""
        log = self.log()

        for _ in range(64):
            log.warning("x")
        self.assertEqual([batch.count(b"\n") for batch in self.written], [64])
        log.warning("y")
        log.warning("z")
        self.clock.advance(0.19)
        self.assertEqual(len(self.written), 1)
        self.clock.advance(0.02)

        self.assertEqual([batch.count(b"\n") for batch in self.written], [64, 2])
        self.assertEqual(self.clock.getDelayedCalls(), [])
        log.flush()
        self.assertEqual(len(self.written), 2)

    def test_failing_write(self) -> None:
        """With the disk full nothing is raised; lines are counted, and the log says so when it can again."""
        log = self.log(lines=2)
        failing = True

        def write(batch: bytes) -> None:
            if failing:
                raise OSError(28, "No space left on device")
            self.written.append(batch)

        log._write = write
        for _ in range(6):
            log.warning("x")
        # Two more count: the lines in which the log owned up to the loss.
        self.assertEqual(log.dropped, 8)
        failing = False
        log.warning("y")
        log.flush()

        line, owning_up = b"".join(self.written).removeprefix(b"\n").decode().split("\n")[:2]
        self.assertIn('warning text="y"', line)
        self.assertIn('warning text="8 log lines dropped until now"', owning_up)

    def test_stuck_write(self) -> None:
        """While the reader is stuck lines wait, up to a bound; what was written in part is neither torn nor doubled."""
        log = self.log(lines=4, room=1000)
        out = bytearray()
        takes = 100

        def write(batch: bytes) -> None:
            out.extend(batch[:takes])
            if len(batch) > takes:
                raise BlockingIOError(11, "stuck", takes)

        log._write = write
        log.warning("first")
        self.clock.advance(0.2)
        takes = 10
        for n in range(100):
            log.warning(str(n))
        self.assertGreater(log.dropped, 50)
        takes = 1 << 20
        self.clock.advance(0.2)

        lines = bytes(out).decode().split("\n")
        self.assertTrue(all(re.fullmatch(r'\S+Z warning text=".*"', line) for line in lines[:-1]), lines)
        said = re.findall(r'text="(\d+)"', bytes(out).decode())
        self.assertEqual(said, [str(n) for n in range(len(said))])
        self.clock.advance(0.2)
        self.assertEqual(bytes(out).decode().count("\n"), 1 + 100 - log.dropped + 1)

    def test_closed(self) -> None:
        """A write to a closed file is a loss like others."""
        log = self.log()
        with open(os.devnull, "wb") as closed:
            pass
        log._write = closed.write

        log.warning("x")
        log.flush()

        self.assertEqual(log.dropped, 1)


class StampTests(SynchronousTestCase):
    def test_multilog(self):
        """With multilog's stamps a line begins as multilog would have written it; the rest is the same."""
        written = []
        log = EventLog(written.append, Clock(), lambda: 1000000000.25, tai64n=True)

        log.warning("x")
        log.flush()

        self.assertEqual(written, [b'@400000003b9aca0a0ee6b280 warning text="x"\n'])


class DescriptorTests(SynchronousTestCase):
    def test_pipe(self) -> None:
        """A pipe that nobody empties never blocks us; what it took is said, and the rest can follow."""
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        write = to_descriptor(writer)
        batch = b"".join(b"%06d\n" % n for n in range(40_000))

        full = self.assertRaises(BlockingIOError, write, batch)
        got = os.read(reader, 1 << 20)
        self.assertEqual(len(got), full.characters_written)
        write(b"rest\n")
        os.close(writer)
        self.assertEqual(got + os.read(reader, 100), batch[: full.characters_written] + b"rest\n")

    def test_broken_pipe(self) -> None:
        """A pipe without a reader is an OSError, which the log takes for a loss."""
        reader, writer = os.pipe()
        os.close(reader)
        self.addCleanup(os.close, writer)

        self.assertRaises(BrokenPipeError, to_descriptor(writer), b"x\n")

    def test_socket(self) -> None:
        """A stream socket (the journal's) that nobody reads never blocks us either."""
        ours, theirs = socket.socketpair()
        self.addCleanup(theirs.close)
        self.addCleanup(ours.close)
        write = to_descriptor(ours.fileno())

        full = self.assertRaises(BlockingIOError, write, b"x" * (4 << 20))

        self.assertGreater(full.characters_written, 0)
        self.assertTrue(ours.getblocking())

    def test_file(self) -> None:
        """To a file everything is written at once."""
        with tempfile.NamedTemporaryFile() as file:
            to_descriptor(file.fileno())(b"x" * 100_000)

            self.assertEqual(os.path.getsize(file.name), 100_000)

    def test_full_disk(self) -> None:
        """A full disk is an OSError."""
        with open("/dev/full", "wb", buffering=0) as file:
            self.assertRaises(OSError, to_descriptor(file.fileno()), b"x\n")


class LogFileTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        self.path = os.path.join(folder, "log")

    def text(self, path: str = "") -> str:
        with open(path or self.path, encoding="ascii") as file:
            return file.read()

    def test_rotated(self) -> None:
        """A log that was moved away is written to until it is opened again; not a line is lost."""
        write = LogFile(self.path)
        write(b"1\n")

        os.rename(self.path, self.path + ".1")
        write(b"2\n")
        write.reopen()
        write(b"3\n")

        self.assertEqual((self.text(self.path + ".1"), self.text()), ("1\n2\n", "3\n"))
        self.assertEqual(os.stat(self.path).st_mode & 0o777, 0o600)

    def test_not_rotated(self) -> None:
        """To open it again without need changes nothing, and needs no further descriptor."""
        write = LogFile(self.path)
        write(b"1\n")
        before = len(os.listdir("/proc/self/fd"))

        write.reopen()
        write(b"2\n")

        self.assertEqual(self.text(), "1\n2\n")
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)

    def test_cannot(self) -> None:
        """Where no new file can be made, the caller is told, and the old one is written to as before."""
        write = LogFile(self.path)
        os.rename(self.path, self.path + ".1")
        os.mkdir(self.path)

        self.assertRaises(OSError, write.reopen)
        write(b"1\n")

        self.assertEqual(self.text(self.path + ".1"), "1\n")

    def test_pipe(self) -> None:
        """A named pipe can be a log; without a reader it is an error at once, not a start that never ends."""
        os.mkfifo(self.path)
        self.assertRaises(OSError, LogFile, self.path)
        reader = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, reader)

        write = LogFile(self.path)
        full = self.assertRaises(BlockingIOError, write, b"x" * (1 << 20))

        self.assertGreater(full.characters_written, 0)
