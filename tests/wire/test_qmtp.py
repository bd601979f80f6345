import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qmq.mail import (
    DOUBLE_BOUNCE_SENDER,
    Address,
    Body,
    Envelope,
    FileBody,
    MemoryBody,
    Message,
    Origin,
    Replies,
    Reply,
    Token,
)
from qmq.wire.netstring import ProtocolError, pack
from qmq.wire.qmtp import (
    BAD_LINES,
    BAD_RECIPIENT,
    BAD_SENDER,
    TOO_BIG,
    TOO_MANY,
    BodyPart,
    Mail,
    Package,
    QMTPServerWire,
)
from qmq.wire.qmtp_client import QMTPClientWire, refusal
from qmq.wire.qmtp_forms import Extension, pack_extension, pack_reply, parse_extension, parse_reply

OK = Reply(250, "2.0.0", "ok 1-2a")
FULL = Reply(452, "4.3.1", "queue full")
NO = Reply(550, "5.1.1", "no such mailbox")
UNKNOWN = Reply(451, "4.4.2", "lost")
A = Address(b"a", b"b.c")
D = Address(b"d", b"e.f")
ME = Address(b"me", b"x.y")
ORIGIN = Origin(b"ESMTPS", b"192.0.2.9", 4321, b"mail.example.net", b"alice", made_here=False)


def message(
    body: bytes = b"hi\r\n",
    recipients: Sequence[Address] = (A,),
    sender: Address = ME,
    body_type: bytes = b"8BITMIME",
    smtputf8: bool = False,
) -> Message:
    envelope = Envelope(Token(b"p1", 42), sender, tuple(recipients), ORIGIN, body_type, smtputf8)
    return Message(envelope, b"X: y\r\n", MemoryBody(body))


def package(text: bytes, sender: bytes = b"me@x.y", recipients: Iterable[bytes] = (b"a@b.c",)) -> bytes:
    return pack(text) + pack(sender) + pack(b"".join(map(pack, recipients)))


class Reader:
    """Pulls all events, and answers packages at once as told; text holds what came of each message."""

    def __init__(self, wire: QMTPServerWire, answers: Reply | None = OK) -> None:
        self.wire = wire
        self.answers = answers
        self.texts: list[bytes] = []
        self.mails: list[Mail] = []
        self.sent = b""

    def feed(self, data: bytes) -> "Reader":
        self.wire.receive(data)
        while (event := self.wire.next_event()) is not None:
            match event:
                case Package():
                    self.texts.append(b"")
                case BodyPart(data):
                    self.texts[-1] += data
                case Mail():
                    if event.text is not None:
                        self.texts.append(event.text)
                    self.mails.append(event)
                    if self.answers is not None:
                        self.reply(event, self.answers)
        self.sent += self.wire.to_send()
        return self

    @property
    def good(self) -> list[bytes]:
        """The texts that nothing speaks against; of others it does not matter how much came."""
        return [text for text, mail in zip(self.texts, self.mails, strict=True) if mail.fault is None]

    def reply(self, mail: Mail, reply: Reply) -> None:
        given = [one if isinstance(one, Reply) else mail.fault or reply for one in mail.recipients]
        self.wire.reply(mail.slot, given)


def read(data: bytes, cut: int = 1 << 30, **options: int) -> Reader:
    reader = Reader(QMTPServerWire(extension=True, **options))
    for start in range(0, len(data), cut):
        reader.feed(data[start : start + cut])
    return reader


class ServerTests(SynchronousTestCase):
    def test_worked_examples(self) -> None:
        """The packages of SPAMCONTROL 3.2 are understood, and answered in qmail's manner."""
        reader = read(b"4:\nhi\n,0:,8:5:a@b.c,," + b"5:\rhi\r\n,6:me@x.y,16:5:a@b.c,5:d@e.f,,")

        self.assertEqual(reader.texts, [b"hi\r\n", b"hi\r\n"])
        self.assertEqual([bytes(mail.sender) for mail in reader.mails], [b"", b"me@x.y"])
        self.assertEqual([mail.recipients for mail in reader.mails], [(A,), (A, D)])
        self.assertEqual(reader.sent, b"17:Kok 1-2a (#2.0.0)," * 3)

    def test_cut_everywhere(self) -> None:
        """The segments that packages come in make no difference to what is read or answered."""
        data = (
            pack_extension(message().envelope, 7)
            + package(b"\ra\r\n\r\nb\r\n", recipients=(b"a@b.c", b"x\n@y", b"d@e.f"))
            + package(b"\na\n\r\nb\r\n\n", sender=b"bad\x00")
            + package(b"\ra\rb", recipients=())
            + package(b"\n")
        )
        whole = read(data)

        for size in (1, 2, 3, 5, 7, 11, 64):
            parts = read(data, size)
            self.assertEqual(parts.mails, whole.mails)
            self.assertEqual(parts.sent, whole.sent)
            self.assertEqual(parts.good, whole.good)
        for place in range(len(data)):
            parts = Reader(QMTPServerWire(extension=True)).feed(data[:place]).feed(data[place:])
            self.assertEqual((parts.mails, parts.sent, parts.good), (whole.mails, whole.sent, whole.good))

    def test_unfinished_says_nothing(self) -> None:
        """Nothing is said of a package before its last octet, wherever the connection ends."""
        data = package(b"\rhi\r\n")

        for place in range(len(data)):
            reader = Reader(QMTPServerWire(extension=True)).feed(data[:place])
            self.assertEqual((reader.sent, reader.mails), (b"", []))
            self.assertEqual(reader.wire.within, place > 0)

    def test_protocol_errors(self) -> None:
        """What is not QMTP ends the connection without a word, cut however."""
        bad = (
            b"0:,", b"4:\thi\n,", b"4:hi\n\n,", b"GET / HTTP/1.1\r\n", b"EHLO x\r\n", b"\x16\x03\x01\x02\x00",
            b"4:\nhi\nX", b"3:\nhi\n,", b"5:\nhi\n,0:,8:5:a@b.c,,", b"4:\nhi\n,0:X", b"4:\nhi\n,0:,8:5:a@b.c,X",
            b"4:\nhi\n,0:,7:5:a@b.c,,",
            b"4:\nhi\n,0:,9:5:a@b.c,,", b"4:\nhi\n,0:,8:6:a@b.c,,4", b"4:\nhi\n,0:,8:4:a@b.c,,",
            b"4:\nhi\n,0:,8:-:a@b.c,,",
            b"4:\nhi\n,00:,", b"4:\nhi\n,+0:,", b"4:\nhi\n,0:,1_0:", b"04:\nhi\n,", b"4 :\nhi\n,", b"99999999999:\n",
            b"4:\nhi\n,9999999:", b"4:\nhi\n,0:,9999999:",
        )  # fmt: skip
        for data in bad:
            # What follows would be a whole package, if it were read as one.
            for size in (1, 1 << 30):
                with self.assertRaises(ProtocolError, msg=data):
                    read(data + b"4:\nhi\n,0:,8:5:a@b.c,,", size)

    def test_bare_line_ends(self) -> None:
        """A bare CR or LF in the text is refused for all recipients, wherever the text was cut."""
        for text in (
            b"\ra\nb",
            b"\ra\rb",
            b"\ra\r",
            b"\r\r\r\n",
            b"\ra\n\r\n",
            b"\r.\n.\r\n",
            b"\na\rb\n",
            b"\na\r",
            b"\na\r\r\n",
        ):
            for size in (1, 2, 3, 1 << 30):
                reader = read(package(text, recipients=(b"a@b.c", b"d@e.f")), size)
                self.assertEqual(reader.mails[0].fault, BAD_LINES, (text, size))
                self.assertEqual(reader.sent, pack(b"Dbare CR or LF in the message (#5.6.0)") * 2)

    def test_line_forms(self) -> None:
        """LF lines become CRLF lines, and a last line without end stays one; SMTP dialogue in a text is text."""
        smtp = b"a\r\n.\r\nMAIL FROM:<x@y>\r\n"
        for text, read_as in (
            (b"\na\nb", b"a\r\nb"), (b"\n\n\n", b"\r\n\r\n"), (b"\na\r\nb\n", b"a\r\nb\r\n"), (b"\n", b""),
            (b"\r", b""),
            (b"\ra", b"a"), (b"\r" + smtp, smtp), (b"\n" + smtp.replace(b"\r", b""), smtp),
        ):  # fmt: skip
            for size in (1, 2, 1 << 30):
                reader = read(package(text), size)
                self.assertEqual((reader.texts, reader.mails[0].fault), ([read_as], None), text)

    def test_large_in_pieces(self) -> None:
        """A large text is handed on in pieces as it comes, and is whole in the end."""
        text = b"".join(b"%d\n" % i for i in range(60000))
        reader = read(package(b"\n" + text), 50000)

        self.assertEqual(reader.texts, [text.replace(b"\n", b"\r\n")])
        self.assertEqual(reader.wire.held, 0)

    def test_pieces_are_bounded(self) -> None:
        """However much has come at once, a piece has at most 128 KiB."""
        wire = QMTPServerWire(extension=False)
        wire.receive(package(b"\n" * 500000))
        sizes = []
        while not isinstance(event := wire.next_event(), Mail):
            if isinstance(event, BodyPart):
                sizes.append(len(event.data))

        self.assertLessEqual(max(sizes), 131072)
        self.assertEqual(sum(sizes), 2 * 499999)

    def test_too_big(self) -> None:
        """A message over the limit is read to its end, thrown away, and refused; the next one is taken."""
        for size in (1, 1 << 30):
            reader = read(
                package(b"\r" + b"x" * 11, recipients=(b"a@b.c", b"\0@b")) + package(b"\rhi"), size, message_octets=10
            )
            self.assertEqual(reader.texts, [b"hi"])
            self.assertEqual([mail.fault for mail in reader.mails], [TOO_BIG, None])
            self.assertTrue(
                reader.sent.startswith(pack(b"Dmessage too big (#5.3.4)") + pack_reply(BAD_RECIPIENT, extended=False))
            )

    def test_beyond_all_bounds(self) -> None:
        """A message beyond the hard limit is not even read."""
        with self.assertRaises(ProtocolError):
            read(b"%d:\r" % ((1 << 32) + 1))
        self.assertEqual(read(b"%d:\r" % (1 << 32)).sent, b"")

    def test_bad_addresses(self) -> None:
        """An address that could not be said safely by SMTP is refused: a sender for all, a recipient alone."""
        bad = (
            b"a\0@b.c", b"a\r\n@b.c", b"a\n@b.c", b"a@b.c\r", b"a\x7f@b.c", b"a\t@b.c", b"a@b.c> SIZE=1", b"a@b c",
            b"a@<b", b"@b.c", b"a@b\xff.c",
            b"x" * 996 + b"@b.cd",
        )  # fmt: skip
        for raw in bad:
            reader = read(package(b"\n", recipients=(b"a@b.c", raw, b"d@e.f")))
            self.assertEqual(reader.mails[0].recipients, (A, BAD_RECIPIENT, D), raw)
            self.assertIsNone(reader.mails[0].fault)
            reader = read(package(b"\n", sender=raw, recipients=(b"a@b.c", b"d@e.f")))
            self.assertEqual(reader.mails[0].fault, BAD_SENDER, raw)
            self.assertEqual(reader.sent, pack(b"Dsender address not acceptable (#5.1.7)") * 2)
        self.assertEqual(read(package(b"\n", recipients=(b"",))).mails[0].recipients, (BAD_RECIPIENT,))

    def test_good_addresses(self) -> None:
        """Raw addresses with spaces, quotes, UTF-8, literals and 1000 octets are taken as they are."""
        for raw in (
            b'a "b" <c>@b.c',
            "jörg@bücher.example".encode(),
            b"x" * 996 + b"@b.c",
            b"a@[192.0.2.1]",
            b"a@[ipv6:2001:db8::1]",
            b"a@b@b.c",
            b"postmaster",
        ):
            reader = read(package(b"\n", sender=raw, recipients=(raw,)))
            self.assertEqual([bytes(one) for one in reader.mails[0].recipients], [raw])
            self.assertEqual(bytes(reader.mails[0].sender), raw)

    def test_many_recipients(self) -> None:
        """Recipients beyond the limit are each answered Z; the others are served."""
        reader = read(package(b"\n", recipients=[b"a@b.c"] * 20000), recipients=1000)

        self.assertEqual(reader.mails[0].recipients, (A,) * 1000 + (TOO_MANY,) * 19000)
        self.assertEqual(reader.sent.count(b":K"), 1000)
        self.assertEqual(reader.sent.count(b":Ztoo many recipients (#4.5.3),"), 19000)

    def test_no_recipient(self) -> None:
        """A package without recipients is legal, and has no answer; the next one has its own."""
        reader = read(package(b"\nhi\n", recipients=()) + package(b"\n"))

        self.assertEqual(reader.mails[0].recipients, ())
        self.assertEqual(reader.sent, b"17:Kok 1-2a (#2.0.0),")

    def test_eight_bit(self) -> None:
        """It is told whether a text has octets above 127."""
        self.assertEqual([m.eight_bit for m in read(package(b"\n\xe9\n") + package(b"\na\n")).mails], [True, False])

    def test_answers_in_order(self) -> None:
        """Answers leave in the packages' order, whichever package is decided first."""
        reader = Reader(QMTPServerWire(extension=False), None).feed(package(b"\n") * 3)
        wire, slots = reader.wire, [mail.slot for mail in reader.mails]
        wire.reply(slots[1], [FULL])
        wire.reply(slots[2], [NO])

        self.assertEqual(wire.to_send(), b"")
        wire.reply(slots[0], [OK])
        self.assertEqual(wire.to_send(), b"".join(pack_reply(reply, extended=False) for reply in (OK, FULL, NO)))

    def test_window(self) -> None:
        """No more packages are taken than the window has room for; each released answer makes room for one."""
        reader = Reader(QMTPServerWire(extension=False, window=2), None).feed(package(b"\n") * 4)

        self.assertEqual((len(reader.mails), reader.wire.full), (2, True))
        reader.reply(reader.mails[1], OK)
        reader.feed(b"")
        self.assertEqual(len(reader.mails), 2)
        reader.reply(reader.mails[0], OK)
        reader.feed(b"")
        self.assertEqual(len(reader.mails), 4)

    def test_many_pipelined(self) -> None:
        """Ten thousand packages in one go are all answered."""
        reader = read(package(b"\n") * 10000)

        self.assertEqual(reader.sent.count(b"K"), 10000)


class ExtensionTests(SynchronousTestCase):
    def test_round_trip(self) -> None:
        """Token, doubt, body type, UTF-8 and origin arrive as they were; the answers have their codes in full."""
        reader = read(
            pack_extension(message(body_type=b"BINARYMIME", smtputf8=True).envelope, 2**62) + package(b"\ra\nb")
        )

        extension = Extension(Token(b"p1", 42), 2**62, ORIGIN, b"BINARYMIME", smtputf8=True)
        self.assertEqual(reader.mails[0].extension, extension)
        self.assertEqual(reader.sent, b"18:K250 2.0.0 ok 1-2a,")

    def test_same_client_again(self) -> None:
        """Of a client's further messages each has its own token and number in doubt; another client is another."""
        other = Origin(b"ESMTP", b"192.0.2.8", 25, b"h", b"", made_here=True, born=1.5)
        envelopes = [
            Envelope(Token(peer, seq), ME, (A,), origin, b"7BIT")
            for peer, seq, origin in ((b"p1", 1, ORIGIN), (b"p1", 2, ORIGIN), (b"p2", 3, ORIGIN), (b"p1", 4, other))
        ]
        data = b"".join(pack_extension(one, one.token.seq - 1) + package(b"\rhi") for one in envelopes)

        for size in (1, 7, 1 << 30):
            self.assertEqual(
                [mail.extension for mail in read(data, size).mails],
                [Extension(one.token, one.token.seq - 1, one.origin, b"7BIT", smtputf8=False) for one in envelopes],
            )

    def test_looked_at(self) -> None:
        """A client that has looked for bare CR and LF itself is believed; another is not."""
        front = pack_extension(message().envelope, 0)
        binary = pack_extension(message(body_type=b"BINARYMIME").envelope, 0)
        texts = [b"\rX: y\r\n\r\nhi\r\n", b"\rX: y\r\n\r\na\nb\rc", b"\rX: y\nY: z\r\n\r\n", b"\ra\r"]
        data = b"".join(front + package(text) for text in texts) + (binary + package(b"\ra\nb\r\n\r\n")) * 2
        wire = QMTPServerWire(extension=True)
        wire.looked_at = True

        faults = [mail.fault for mail in Reader(wire).feed(data).mails]
        self.assertEqual(faults, [None] * 6)
        self.assertEqual([mail.fault for mail in read(data).mails], [None, *[BAD_LINES] * 3, None, None])

    raws = st.sampled_from(
        (b"a@b.c", b"A@B.C", b"a@b.c.", b"a@b@c", b"a,1:b@c", b"@b", b"a", b"", b"#@[]", b"a\0@b", b"\xff@b", b"a b@c")
    )

    @given(
        st.lists(st.tuples(st.binary(max_size=9), raws, raws, st.booleans()), min_size=1, max_size=4),
        st.integers(0, 400),
        st.sampled_from((b"", b"", b"0", b"1", b",", b":", b"\0", b"\r", b"@", b"x")),
        st.integers(0, 2),
    )
    def test_at_a_glance(
        self, parts: list[tuple[bytes, bytes, bytes, bool]], place: int, slip: bytes, dropped: int
    ) -> None:
        """However a stream is written, right or with a slip, the segments it comes in make no difference."""
        front = pack_extension(message().envelope, 7)
        good = front + package(b"\rhi")
        data = b"".join(
            (front if extended else b"") + package(b"\r" + text, sender, [recipient])
            for text, sender, recipient, extended in parts
        )
        data = data[:place] + slip + data[place + dropped :]
        outcomes = []
        for size in (1, 1 << 30):
            reader, broken = Reader(QMTPServerWire(extension=True)).feed(good), False
            try:
                for start in range(0, len(data), size):
                    reader.feed(data[start : start + size])
            except ProtocolError:
                broken = True
            outcomes.append((reader.mails, broken))

        self.assertEqual(*outcomes)

    def test_binary_exact(self) -> None:
        """A BINARYMIME text is kept octet for octet; the package behind it is looked at again."""
        text = b"\r\ra\nb\r\0\r\n\r"
        data = pack_extension(message(body_type=b"BINARYMIME").envelope, 0) + package(text) + package(text)
        for size in (1, 3, 1 << 30):
            reader = read(data, size)
            self.assertEqual(reader.texts[0], text[1:])
            self.assertEqual([mail.fault for mail in reader.mails], [None, BAD_LINES])

    def test_not_allowed(self) -> None:
        """Where the extension is not allowed it ends the connection, and so does one too many, or a bad one."""
        extension = pack_extension(message().envelope, 0)
        with self.assertRaises(ProtocolError):
            Reader(QMTPServerWire(extension=False)).feed(extension)
        inside = extension[extension.index(b":") + 1 : -1]
        binary = pack_extension(message(body_type=b"BINARYMIME").envelope, 0)
        for bad in (
            extension * 2, extension[:-1] + b"X", pack(b"\x01"), pack(inside + b"\0"),
            pack(inside.replace(b"\x011", b"\x012")),
            pack(inside.replace(b"\x002a\0", b"\x00+2a\0")), pack(inside.replace(b"\x002a\0", b"\x000x2\0")),
            pack(inside.replace(b"\x002a\0", b"\x00\0")),
            pack(inside.replace(b"\x002a\0", b"\x002_a\0")),
            pack(inside.replace(b"\x002a\0", b"\0" + b"f" * 16 + b"\0")),
            pack(inside.replace(b"p1", b"")), pack(inside.replace(b"8BITMIME", b"9BIT")),
            pack(inside.replace(b"4321", b"-1")),
            pack(inside + b"1"), b"99999:\x01", binary + package(b"\n"),
        ):  # fmt: skip
            for size in (1, 1 << 30):
                with self.assertRaises(ProtocolError, msg=bad):
                    read(bad + package(b"\n"), size)

    def test_nul_in_a_field(self) -> None:
        """A field that holds a NUL, or is beyond all bounds, is never sent."""
        for helo in (b"a\0b", b"x" * 20000):
            envelope = Envelope(Token(b"p", 1), A, (A,), Origin(helo=helo))
            with self.assertRaises(ValueError):
                pack_extension(envelope, 0)

    fields = st.binary(max_size=20).map(lambda octets: octets.replace(b"\0", b""))

    @given(
        st.integers(0, 2**63 - 1), st.integers(0, 2**62), fields, fields, fields, st.integers(0, 65535), st.booleans()
    )
    def test_any_field(
        self, seq: int, low: int, client: bytes, helo: bytes, user: bytes, port: int, flag: bool
    ) -> None:
        """Whatever a field holds, but NUL, arrives."""
        origin = Origin(b"ESMTP", client, port, helo, user, made_here=flag)
        envelope = Envelope(Token(b"p", seq), A, (A,), origin, b"7BIT", not flag)
        packed = pack_extension(envelope, low)

        found = parse_extension(packed[packed.index(b":") + 1 : -1])

        self.assertEqual(found, Extension(envelope.token, low, origin, b"7BIT", not flag))


class ReplyTests(SynchronousTestCase):
    def test_full_form(self) -> None:
        """Between qmq peers code, status and all lines of a reply survive."""
        for reply in (OK, FULL, NO, Reply(250, "", "ok"), Reply(554, "5.7.1", "one\ntwo"), Reply(421, "4.3.2", "")):
            raw = pack_reply(reply, extended=True)
            self.assertEqual(
                parse_reply(raw[raw.index(b":") + 1 : -1], extended=True, mta="m"),
                Reply(reply.code, reply.status, reply.text, "m"),
            )

    def test_plain_form(self) -> None:
        """To others a reply is said in qmail's manner, on one line, in ASCII."""
        self.assertEqual(pack_reply(Reply(554, "5.7.1", "nö\nno"), extended=False), pack(b"Dn? no (#5.7.1)"))
        self.assertEqual(pack_reply(Reply(451, "", "x" * 9999), extended=False), pack(b"Z" + b"x" * 2000))

    def test_from_qmail(self) -> None:
        """K, Z and D are 250, 451 and 554; the status is taken from the text if its class fits."""
        for raw, code, status, text in (
            (b"Kok 1700000000 qp 123", 250, "2.0.0", "ok 1700000000 qp 123"),
            (b"Zqq trouble (#4.3.0)", 451, "4.3.0", "qq trouble"),
            (b"Dsorry (#5.7.1)", 554, "5.7.1", "sorry"),
            (b"Dsorry (#4.7.1)", 554, "5.0.0", "sorry (#4.7.1)"),
            (b"K550 5.1.1 no", 250, "2.0.0", "550 5.1.1 no"),
            (b"D", 554, "5.0.0", ""),
            (b"Da\r\nb\xff\0", 554, "5.0.0", "a? b??"),
        ):
            for extended in (False, True):
                self.assertEqual(parse_reply(raw, extended, "m"), Reply(code, status, text, "m"), raw)

    def test_neither_k_nor_d(self) -> None:
        """An answer with any other letter, or none, is temporary, and nobody's word."""
        for raw in (b"", b"X", b"k250 2.0.0 ok", b"250 ok", b"\xff"):
            reply = parse_reply(raw, extended=True, mta="m")
            self.assertEqual((reply.temporary, reply.mta), (True, ""))


class ClientTests(SynchronousTestCase):
    def client(self, *recipients: int, extension: bool = True) -> QMTPClientWire:
        wire = QMTPClientWire(extension=extension, mta="m")
        for number in recipients:
            wire.send(message(recipients=(A,) * number))
        return wire

    def test_package(self) -> None:
        """A package to a plain peer is as qmail knows it, with CRLF lines and raw addresses."""
        wire = QMTPClientWire(extension=False, mta="m")

        self.assertEqual(
            b"".join(wire.send(message(recipients=(A, D)))),
            package(b"\rX: y\r\nhi\r\n", recipients=(b"a@b.c", b"d@e.f")),
        )

    def test_double_bounce(self) -> None:
        """A double bounce keeps its mark on the way to a qmq peer; to others its sender is the null sender."""
        sent = message(sender=DOUBLE_BOUNCE_SENDER)
        plain = b"".join(QMTPClientWire(extension=False, mta="m").send(sent))
        server = QMTPServerWire(extension=True)
        server.receive(b"".join(QMTPClientWire(extension=True, mta="m").send(sent)))

        mails = [event for event in iter(server.next_event, None) if isinstance(event, Mail)]

        self.assertEqual(plain, package(b"\rX: y\r\nhi\r\n", sender=b""))
        self.assertEqual([(mail.sender, mail.fault) for mail in mails], [(DOUBLE_BOUNCE_SENDER, None)])

    def test_answers_cut_everywhere(self) -> None:
        """Each answer goes to its recipient and package, however the answers are cut."""
        data = b"".join(pack_reply(reply, extended=True) for reply in (OK, NO, FULL))
        for size in range(1, len(data) + 1):
            wire = self.client(2, 1)
            found: list[Replies] = []
            for start in range(0, len(data), size):
                found += wire.receive(data[start : start + size])
            self.assertEqual([[reply.code for reply in replies] for replies in found], [[250, 550], [452]])
            self.assertEqual({reply.mta for replies in found for reply in replies}, {"m"})

    def test_cut_within_answers(self) -> None:
        """After a cut each recipient has its answer if that had come whole, and else none: never another's."""
        answers = [pack_reply(reply, extended=True) for reply in (OK, NO, FULL)]
        data = b"".join(answers)
        ends = [sum(map(len, answers[: i + 1])) for i in range(3)]
        for place in range(len(data) + 1):
            wire = self.client(2, 1)
            found = [*wire.receive(data[:place]), *wire.cut(UNKNOWN)]
            codes = [reply.code if reply.mta else None for replies in found for reply in replies]
            self.assertEqual(
                codes, [code if place >= end else None for code, end in zip((250, 550, 452), ends, strict=True)]
            )
            self.assertEqual([len(replies) for replies in found], [2, 1])

    def test_broken_answers(self) -> None:
        """An answer that is no netstring, is endless, or was not asked for, breaks the connection; earlier count."""
        good = pack_reply(OK, extended=True)
        for bad in (b"x", b"+1:K,", b"01:K,", b"1:KX", b"4097:K", b"9" * 50, good * 2):
            wire = self.client(1, 1)
            self.assertEqual(len(wire.receive(good + bad)), 2 if bad == good * 2 else 1)
            self.assertTrue(wire.broken)
            self.assertEqual([len(replies) for replies in wire.cut(UNKNOWN)], [] if bad == good * 2 else [1])

    def test_what_plain_qmtp_has_no_word_for(self) -> None:
        """A BINARYMIME or SMTPUTF8 message is not given to a plain QMTP peer."""
        self.assertIsNone(refusal(message()))
        for lost in (message(body_type=b"BINARYMIME"), message(smtputf8=True)):
            reply = refusal(lost)
            assert reply is not None
            self.assertTrue(reply.permanent)

    def file(self, octets: bytes) -> str:
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        path = os.path.join(folder, "body")
        with open(path, "wb") as file:
            file.write(octets)
        return path

    def test_file(self) -> None:
        """A body in a file is sent piece by piece, its envelope with the last one."""
        text = b"0123456789\r\n" * 20000
        wire = QMTPClientWire(extension=True, mta="m")
        whole = message()
        body: Body = FileBody(self.file(text), len(text))
        sent = b"".join(wire.send(Message(whole.envelope, whole.fields, body), 5))
        pieces = 0
        while wire.streaming:
            chunk = wire.next_chunk()
            self.assertLess(len(chunk), 70000)
            sent += chunk
            pieces += 1

        self.assertEqual(pieces, 4)
        self.assertEqual(read(sent).texts, [b"X: y\r\n" + text])

    def test_file_of_another_size(self) -> None:
        """A file that is shorter than it was is found out, and its package never completed."""
        wire = QMTPClientWire(extension=True, mta="m")
        whole = message()
        wire.send(Message(whole.envelope, b"", FileBody(self.file(b"abc"), 4)))
        wire.next_chunk()
        with self.assertRaises(ValueError):
            wire.next_chunk()

    local_parts = st.binary(min_size=1, max_size=20).map(lambda octets: bytes(32 + octet % 95 for octet in octets))
    domains = st.from_regex(rb"[a-z0-9]{1,8}(\.[a-z]{2,5}){1,2}", fullmatch=True)
    addresses = st.builds(Address, local_parts, domains)

    @given(
        st.lists(st.binary(max_size=40), max_size=8),
        st.lists(st.tuples(addresses, st.sampled_from((OK, FULL, NO))), min_size=1, max_size=5),
        addresses,
        st.integers(1, 60),
        st.booleans(),
    )
    def test_any_message(
        self, lines: list[bytes], given: list[tuple[Address, Reply]], sender: Address, size: int, extension: bool
    ) -> None:
        """Any message and its recipients survive the way, and each recipient has its own answer."""
        text = b"\r\n".join(line.replace(b"\r", b"").replace(b"\n", b"") for line in lines)
        sent = message(text, [recipient for recipient, _ in given], sender)
        client = QMTPClientWire(extension=extension, mta="m")
        data = b"".join(client.send(sent, 3))
        reader = Reader(QMTPServerWire(extension=extension), None)
        for start in range(0, len(data), size):
            reader.feed(data[start : start + size])
        (mail,) = reader.mails
        reader.wire.reply(mail.slot, [reply for _, reply in given])
        (replies,) = client.receive(reader.wire.to_send())

        self.assertEqual(reader.texts, [sent.fields + text])
        self.assertEqual((mail.sender, mail.recipients), (sender, sent.envelope.recipients))
        self.assertEqual([reply.code // 100 for reply in replies], [reply.code // 100 for _, reply in given])
        self.assertEqual([reply.status for reply in replies], [reply.status for _, reply in given])
