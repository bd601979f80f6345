import os
import tempfile

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qmq.mail import DOUBLE_BOUNCE_SENDER, NULL_SENDER, Address, Envelope, FileBody, MemoryBody, Message, Reply, Token
from qmq.wire.smtp_client import SMTPClientWire
from qmq.wire.smtp_envelope import Extensions
from qmq.wire.smtp_transaction import Stage

MTA = "mx.example.org (192.0.2.1)"
PLAIN = Extensions()
PIPELINING = Extensions(pipelining=True)
CHUNKING = Extensions(pipelining=True, chunking=True)


def message(*recipients: str, data: bytes = b"Subject: x\r\n\r\nbody\r\n", fields: bytes = b"", **extra) -> Message:
    """A message to these users of example.org."""
    addresses = tuple(Address(name.encode(), b"example.org") for name in recipients or ("a",))
    envelope = Envelope(Token(b"t", 1), Address(b"s", b"example.com"), addresses, **extra)
    return Message(envelope, fields, MemoryBody(data))


def wire_for(offered: Extensions = PIPELINING, **arguments) -> SMTPClientWire:
    """A wire to a server that offers this."""
    return SMTPClientWire(offered, MTA, **arguments)


def codes(finished) -> list[list[int]]:
    """The reply codes of each finished message."""
    return [[reply.code for reply in replies] for _, replies in finished]


class Pieces(FileBody):
    """A long body, cut as given."""

    def __init__(self, pieces: list[bytes]) -> None:
        super().__init__("", sum(map(len, pieces)))
        self.pieces = pieces

    def chunks(self, octets: int = 0):
        return iter(self.pieces)


class PipeliningTests(SynchronousTestCase):
    def test_envelope_in_one_write(self) -> None:
        """MAIL, all RCPTs and DATA are one write."""
        wire = wire_for()
        wire.send(message("a", "b"))

        self.assertEqual(
            wire.to_send(),
            b"MAIL FROM:<s@example.com>\r\nRCPT TO:<a@example.org>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n",
        )

    def test_delivered(self) -> None:
        """Each recipient has the answer to the final dot, with the server's name."""
        wire = wire_for()
        sent = message("a", "b", data=b".x\r\n", fields=b"Received: y\r\n")
        wire.send(sent)
        wire.to_send()

        self.assertEqual(wire.receive(b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n"), [])
        self.assertEqual(wire.to_send(), b"Received: y\r\n..x\r\n.\r\n")
        finished = wire.receive(b"250 2.0.0 queued as 1\r\n")

        self.assertEqual(finished, [(sent, [Reply(250, "2.0.0", "queued as 1", MTA)] * 2)])
        self.assertTrue(wire.idle)

    def test_same_words_each_time(self) -> None:
        """A server that says the same words to each envelope is understood each time, until it says others."""
        wire = wire_for()
        yes = b"250 sender ok\r\n250-rcpt\r\n250 ok\r\n354 go\r\n"
        for _ in range(3):
            wire.send(message("a", data=b"x\r\n"))
            wire.to_send()
            before = wire.answered
            self.assertEqual(wire.receive(yes), [])
            self.assertEqual(wire.answered, before + 3)
            self.assertEqual(wire.to_send(), b"x\r\n.\r\n")
            self.assertEqual(codes(wire.receive(b"250 taken\r\n")), [[250]])

        wire.send(message("a"))
        self.assertEqual(codes(wire.receive(b"250 ok\r\n550 no such user\r\n503 no recipients\r\n")), [[550]])

    def test_same_words_cut(self) -> None:
        """So it is where they come in pieces, or each alone."""
        yes = b"250 ok\r\n250 ok\r\n354 go\r\n"
        wire = wire_for()
        for cut in range(len(yes)):
            wire.send(message("a", data=b"%d\r\n" % cut))
            wire.to_send()
            wire.receive(yes[:cut])
            wire.receive(yes[cut:])
            self.assertEqual(wire.to_send(), b"%d\r\n.\r\n" % cut)
            self.assertEqual(codes(wire.receive(b"250 taken\r\n")), [[250]])

    def test_same_words_in_another_place(self) -> None:
        """The same words are no yes to an envelope of two, nor behind half a reply, nor where nothing was asked."""
        yes = b"250 ok\r\n250 ok\r\n354 go\r\n"
        for before, rest in ((["a", "b"], b""), (["a"], b"550-no\r\n"), ([], b"")):
            wire = wire_for()
            wire.send(message("a"))
            wire.receive(yes)
            wire.receive(b"250 taken\r\n")
            wire.to_send()
            if before:
                wire.send(message(*before))
                wire.receive(rest)
                wire.to_send()
            wire.receive(yes)

            self.assertNotIn(b"body", wire.to_send())

    def test_out_of_order(self) -> None:
        """A host that answers the next envelope before the text cannot make a refused message count as delivered."""
        wire = wire_for()
        wire.send(message("a", data=b"x\r\n"))
        wire.to_send()
        wire.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
        self.assertEqual(wire.to_send(), b"x\r\n.\r\n")  # and nothing that a 250 could be meant for

        for early in (b"250 sender ok\r\n554 spam\r\n", b"250 ok\r\n250 ok\r\n354 go\r\n554 spam\r\n"):
            wire = wire_for()
            wire.send(message("a"))
            wire.to_send()
            finished = wire.receive(b"250 ok\r\n250 ok\r\n354 go\r\n" + early)
            self.assertEqual([(r.code, r.mta) for _, [r] in finished], [(451, "")])
            self.assertIsNotNone(wire.trouble)

    def test_cut_anywhere(self) -> None:
        """Replies may be cut at any octet."""
        first = b"250 ok\r\n550 5.1.1 no\r\n250-o\r\n250 k\r\n354 go\r\n"
        for cut in range(len(first)):
            wire = wire_for()
            wire.send(message("a", "b"))
            wire.to_send()
            wire.receive(first[:cut])
            wire.receive(first[cut:])
            self.assertTrue(wire.to_send().endswith(b"body\r\n.\r\n"))
            self.assertEqual(wire.receive(b"250 "), [])
            self.assertEqual(codes(wire.receive(b"done\r\n")), [[550, 250]])

    def test_mail_refused(self) -> None:
        """If the sender is refused each recipient has that reply, not those to the pipelined commands behind."""
        wire = wire_for()
        wire.send(message("a"))
        wire.to_send()
        finished = wire.receive(b"550 5.7.1 no sender\r\n503 no MAIL\r\n503 no RCPT\r\n")

        self.assertEqual(finished[0][1], [Reply(550, "5.7.1", "no sender", MTA)])
        wire.send(message("b"))
        self.assertEqual(wire.to_send()[:5], b"MAIL ")

    def test_all_refused(self) -> None:
        """If all recipients are refused the server is made to forget the sender before the next MAIL."""
        wire = wire_for()
        wire.send(message("a"))
        wire.to_send()
        finished = wire.receive(b"250 ok\r\n550 5.1.1 no\r\n554 no valid recipients\r\n")

        self.assertEqual(finished[0][1], [Reply(550, "5.1.1", "no", MTA)])
        wire.send(message("b"))
        self.assertTrue(wire.to_send().startswith(b"RSET\r\nMAIL FROM"))
        wire.receive(b"250 reset\r\n250 ok\r\n250 ok\r\n354 go\r\n")
        self.assertEqual(codes(wire.receive(b"250 ok\r\n")), [[250]])

    def test_354_for_nobody(self) -> None:
        """A server that wants a text for nobody gets an empty one, and its answer is nobody's."""
        for answer in (b"554 nobody\r\n", b"250 ok\r\n"):
            wire = wire_for()
            wire.send(message("a"))
            wire.to_send()
            wire.receive(b"250 ok\r\n550 5.1.1 no\r\n354 go\r\n")
            self.assertEqual(wire.to_send(), b".\r\n")

            self.assertEqual(codes(wire.receive(answer)), [[550]])
            wire.send(message("b"))
            self.assertEqual(wire.to_send()[:5], b"MAIL ")

    def test_lost_way(self) -> None:
        """A server that takes a recipient without a sender gets no text, not even an empty one."""
        wire = wire_for()
        wire.send(message("a"))
        wire.to_send()
        finished = wire.receive(b"550 no\r\n250 ok\r\n354 go\r\n")

        self.assertEqual(codes(finished), [[550]])
        self.assertEqual(wire.to_send(), b"")
        self.assertIsNotNone(wire.trouble)

    def test_data_refused(self) -> None:
        """If DATA is refused the recipients accepted before have its reply, the others keep their own."""
        wire = wire_for()
        wire.send(message("a", "b"))
        wire.to_send()

        self.assertEqual(codes(wire.receive(b"250 ok\r\n550 no\r\n250 ok\r\n452 full\r\n")), [[550, 452]])


class LockStepTests(SynchronousTestCase):
    def test_one_command_at_a_time(self) -> None:
        """Without PIPELINING each command waits for the answer to the one before."""
        wire = wire_for(PLAIN)
        wire.send(message("a", "b"))
        said = [wire.to_send()]
        for answer in (b"250 ok\r\n", b"550 no\r\n", b"250 ok\r\n", b"354 go\r\n"):
            wire.receive(answer)
            said.append(wire.to_send())
        finished = wire.receive(b"250 ok\r\n")

        self.assertEqual([line[:6] for line in said], [b"MAIL F", b"RCPT T", b"RCPT T", b"DATA\r\n", b"Subjec"])
        self.assertEqual(codes(finished), [[550, 250]])
        wire.send(message("c"))
        self.assertEqual(wire.to_send(), b"MAIL FROM:<s@example.com>\r\n")

    def test_refused(self) -> None:
        """After a refused sender comes the next message; after refused recipients RSET, too."""
        wire = wire_for(PLAIN)
        wire.send(message("a"))
        wire.to_send()

        self.assertEqual(codes(wire.receive(b"450 later\r\n")), [[450]])
        wire.send(message("b"))
        self.assertEqual(wire.to_send()[:5], b"MAIL ")
        wire.receive(b"250 ok\r\n")
        self.assertEqual(wire.to_send(), b"RCPT TO:<b@example.org>\r\n")
        self.assertEqual(codes(wire.receive(b"550 no\r\n")), [[550]])
        wire.send(message("c"))
        self.assertEqual(wire.to_send(), b"RSET\r\n")
        wire.receive(b"250 ok\r\n")
        self.assertEqual(wire.to_send(), b"MAIL FROM:<s@example.com>\r\n")

    def test_chunk(self) -> None:
        """BDAT without PIPELINING comes when a recipient was accepted."""
        wire = wire_for(Extensions(chunking=True))
        wire.send(message("a", data=b".x"))
        for _ in range(2):
            wire.to_send()
            wire.receive(b"250 ok\r\n")

        self.assertEqual(wire.to_send(), b"BDAT 2 LAST\r\n.x")
        self.assertEqual(codes(wire.receive(b"250 ok\r\n")), [[250]])


class ChunkingTests(SynchronousTestCase):
    def test_all_at_once(self) -> None:
        """A short message with BDAT is one write, its dots untouched."""
        wire = wire_for(CHUNKING)
        wire.send(message("a", data=b".\r\n", fields=b"X: y\r\n"))

        self.assertEqual(
            wire.to_send(), b"MAIL FROM:<s@example.com>\r\nRCPT TO:<a@example.org>\r\nBDAT 9 LAST\r\nX: y\r\n.\r\n"
        )
        self.assertEqual(codes(wire.receive(b"250 ok\r\n250 ok\r\n250 ok\r\n")), [[250]])

    def test_all_refused(self) -> None:
        """If BDAT finds no recipient, the recipients keep their replies, and RSET comes before the next MAIL."""
        wire = wire_for(CHUNKING)
        wire.send(message("a"))
        wire.to_send()

        self.assertEqual(codes(wire.receive(b"250 ok\r\n550 no\r\n503 no recipients\r\n")), [[550]])
        wire.send(message("b"))
        self.assertTrue(wire.to_send().startswith(b"RSET\r\nMAIL"))

    def test_lost_after_sending(self) -> None:
        """If the connection ends after BDAT was sent the fate is unknown, and said to be."""
        wire = wire_for(CHUNKING)
        wire.send(message("a"))
        wire.to_send()
        wire.abandon(Reply(451, "4.4.2", "gone"))
        [(_, [reply])] = wire.finished()

        self.assertEqual((reply.code, reply.mta), (451, ""))
        self.assertIn("unknown", reply.text)

    def test_not_wanted(self) -> None:
        """BDAT can be switched off."""
        wire = wire_for(CHUNKING, chunking=False)
        wire.send(message("a"))

        self.assertTrue(wire.to_send().endswith(b"DATA\r\n"))


class LongTextTests(SynchronousTestCase):
    def long(self, data: bytes, size: int | None = None) -> Message:
        """A message whose body is in a file."""
        handle, path = tempfile.mkstemp()
        self.addCleanup(os.unlink, path)
        with open(handle, "wb") as file:
            file.write(data)
        return Message(message("a").envelope, b"X: y\r\n", FileBody(path, len(data) if size is None else size))

    def test_in_pieces(self) -> None:
        """A text in a file is given in pieces, stuffed across their edges."""
        data = (b"x" * 65533 + b"\r\n") * 2 + b".\r\n" * 30000
        wire = wire_for()
        wire.send(self.long(data))
        wire.to_send()
        wire.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
        pieces = []
        while wire.streaming:
            self.assertEqual(wire.stage, Stage.TEXT)
            self.assertEqual(wire.to_send(), b"")
            pieces.append(wire.next_chunk())

        text = b"".join(pieces)
        self.assertLessEqual(max(map(len, pieces)), 2 * 65536)
        self.assertEqual(text.replace(b"\r\n..", b"\r\n."), b"X: y\r\n" + data + b".\r\n")
        self.assertEqual(codes(wire.receive(b"250 ok\r\n")), [[250]])

    def test_chunk_waits_for_recipients(self) -> None:
        """A long text by BDAT is sent when a recipient was accepted, and not at all if none was."""
        sent = self.long(b"z" * 200000)
        wire = wire_for(CHUNKING)
        wire.send(sent)
        self.assertNotIn(b"BDAT", wire.to_send())
        wire.receive(b"250 ok\r\n250 ok\r\n")
        text = wire.to_send()
        while wire.streaming:
            text += wire.next_chunk()
        self.assertEqual(text, b"BDAT 200006 LAST\r\nX: y\r\n" + b"z" * 200000)
        self.assertEqual(codes(wire.receive(b"250 ok\r\n")), [[250]])

        wire.send(sent)
        wire.to_send()
        self.assertEqual(codes(wire.receive(b"250 ok\r\n550 no\r\n")), [[550]])
        self.assertFalse(wire.streaming)

    def test_early_yes(self) -> None:
        """A 250 in the middle of the text is not the message's: it is deferred, and the dot never sent."""
        wire = wire_for()
        wire.send(self.long(b"z" * 200000))
        wire.to_send()
        wire.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
        wire.next_chunk()
        [(_, [reply])] = wire.receive(b"250 ok\r\n")

        self.assertEqual((reply.code, reply.mta), (451, ""))
        self.assertFalse(wire.streaming)
        self.assertIsNotNone(wire.trouble)

    def test_early_no(self) -> None:
        """A refusal in the middle of the text is the message's, and ends the connection."""
        wire = wire_for()
        wire.send(self.long(b"z" * 200000))
        wire.to_send()
        wire.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
        wire.next_chunk()

        self.assertEqual(wire.receive(b"552 5.3.4 too big\r\n")[0][1], [Reply(552, "5.3.4", "too big", MTA)])
        self.assertIsNotNone(wire.trouble)

    def test_lost_in_the_middle(self) -> None:
        """If the connection ends before the dot the message is simply deferred, its fate is known."""
        wire = wire_for()
        wire.send(self.long(b"z" * 200000))
        wire.to_send()
        wire.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
        wire.next_chunk()
        wire.abandon(Reply(451, "4.4.2", "gone"))

        self.assertEqual(wire.finished()[0][1], [Reply(451, "4.4.2", "gone")])

    def test_file_is_not_what_it_was(self) -> None:
        """A file that is shorter, longer or gone defers the message and ends the connection."""
        for offered, size, text in (
            (CHUNKING, 100, "shorter"),
            (CHUNKING, 2, "longer"),
            (PIPELINING, 3, "cannot read"),
        ):
            sent = self.long(b"abc", size)
            if offered is PIPELINING:
                sent = Message(sent.envelope, b"", FileBody("/nonexistent/x", 3))
            wire = wire_for(offered)
            wire.send(sent)
            wire.to_send()
            wire.receive(b"250 ok\r\n250 ok\r\n" + (b"354 go\r\n" if offered is PIPELINING else b""))
            while wire.streaming:
                wire.next_chunk()
            [(_, [reply])] = wire.finished()
            self.assertEqual(reply.status, "4.3.0")
            self.assertIn(text, reply.text)
            self.assertIsNotNone(wire.trouble)


class LMTPTests(SynchronousTestCase):
    def test_reply_for_each_accepted(self) -> None:
        """With LMTP each accepted recipient has an answer of its own after the dot."""
        wire = wire_for(CHUNKING, lmtp=True)
        wire.send(message("a", "b", "c"))
        self.assertIn(b"DATA", wire.to_send())
        wire.receive(b"250 ok\r\n250 ok\r\n550 no\r\n250 ok\r\n354 go\r\n")
        wire.to_send()

        self.assertEqual(wire.receive(b"452 full\r\n"), [])
        self.assertEqual(codes(wire.receive(b"250 ok\r\n")), [[452, 550, 250]])

    def test_cut_between_answers(self) -> None:
        """If the connection ends between those answers, those that came count."""
        wire = wire_for(PIPELINING, lmtp=True)
        wire.send(message("a", "b"))
        wire.to_send()
        wire.receive(b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n")
        wire.to_send()
        wire.receive(b"250 ok\r\n")
        wire.abandon(Reply(451, "4.4.2", "gone"))

        self.assertEqual(codes(wire.finished()), [[250, 451]])


class ParameterTests(SynchronousTestCase):
    def first(self, offered: Extensions, sent: Message) -> bytes:
        """The MAIL line for this message."""
        wire = wire_for(offered)
        wire.send(sent)
        return wire.to_send().partition(b"\r\n")[0]

    def refused(self, offered: Extensions, sent: Message) -> Reply:
        """The reply of a message that is not sent."""
        wire = wire_for(offered)
        reply = wire.send(sent)
        assert reply is not None
        self.assertEqual(wire.to_send(), b"")
        self.assertTrue(wire.idle)
        return reply

    def test_parameters(self) -> None:
        """SIZE, BODY and SMTPUTF8 are said where they are offered and needed."""
        offered = Extensions(size=0, eightbit=True, smtputf8=True, chunking=True, binarymime=True)
        said = [
            self.first(offered, message(data=b"x\r\n")),
            self.first(offered, message(data=b"x\r\n", body_type=b"8BITMIME", smtputf8=True)),
            self.first(offered, message(data=b"x\r\n", body_type=b"BINARYMIME")),
            self.first(PLAIN, message(data=b"\r\n\r\n\xff\r\n", body_type=b"8BITMIME", smtputf8=True)),
        ]

        self.assertEqual(
            said,
            [
                b"MAIL FROM:<s@example.com> SIZE=3",
                b"MAIL FROM:<s@example.com> SIZE=3 BODY=8BITMIME SMTPUTF8",
                b"MAIL FROM:<s@example.com> SIZE=3 BODY=BINARYMIME",
                b"MAIL FROM:<s@example.com>",
            ],
        )

    def test_double_bounce(self) -> None:
        """A double bounce goes out with the null sender: its mark is ours alone."""
        wire = wire_for()
        sent = message()
        envelope = Envelope(sent.envelope.token, DOUBLE_BOUNCE_SENDER, sent.envelope.recipients)
        wire.send(Message(envelope, b"", sent.body))

        self.assertTrue(wire.to_send().startswith(b"MAIL FROM:<>\r\n"))

    def test_null_sender(self) -> None:
        """A bounce has the null sender, and a local part is quoted where it must be."""
        sent = message("a b")
        wire = wire_for()
        wire.send(Message(Envelope(sent.envelope.token, NULL_SENDER, sent.envelope.recipients), b"", sent.body))

        self.assertTrue(wire.to_send().startswith(b'MAIL FROM:<>\r\nRCPT TO:<"a b"@example.org>\r\n'))

    def test_too_large(self) -> None:
        """A message beyond the server's limit fails without being sent, by the server's word."""
        reply = self.refused(Extensions(size=10), message())

        self.assertEqual((reply.code, reply.status, reply.mta), (552, "5.3.4", MTA))

    def test_binary(self) -> None:
        """A binary message is not sent to a server without BINARYMIME, nor by LMTP."""
        reply = self.refused(CHUNKING, message(body_type=b"BINARYMIME"))

        self.assertEqual((reply.code, reply.status, reply.mta), (554, "5.6.3", MTA))

    def test_utf8(self) -> None:
        """A message whose header or addresses need SMTPUTF8 is not sent to a server without it."""
        header = message(data=b"Subject: \xc3\xa4\r\n\r\nx\r\n", smtputf8=True)
        address = message("\u00e4")
        plain = message(data=b"Subject: a\r\n\r\n\xc3\xa4\r\n", smtputf8=True)

        for sent in (header, address):
            reply = self.refused(PIPELINING, sent)
            self.assertEqual((reply.code, reply.status, reply.mta), (553, "5.6.7", MTA))
        self.assertEqual(self.first(PIPELINING, plain), b"MAIL FROM:<s@example.com>")

    def test_control_character(self) -> None:
        """An address with a line end in it is never sent."""
        for name in ("a\r\nRCPT TO:<b@example.org>", "a\nb", "a\rb", "a\0b"):
            self.assertEqual(self.refused(PIPELINING, message(name)).status, "5.1.3")


class HostileTests(SynchronousTestCase):
    def trouble(self, *answers: bytes, offered: Extensions = PIPELINING, recipients=("a", "b")) -> list[Reply]:
        """The replies of a message whose server says this; the connection must be given up."""
        wire = wire_for(offered)
        wire.send(message(*recipients))
        found = []
        for answer in answers:
            wire.to_send()
            found += wire.receive(answer)
        self.assertIsNotNone(wire.trouble)
        self.assertTrue(wire.idle)
        self.assertEqual(wire.to_send(), b"")
        return found[0][1]

    def test_surplus(self) -> None:
        """Replies beyond what was asked end the connection; what was answered stays, the rest is deferred."""
        replies = self.trouble(b"250 ok\r\n550 no\r\n250 ok\r\n354 go\r\n250 early\r\n")

        self.assertEqual([(r.code, r.mta) for r in replies], [(550, MTA), (451, "")])

    def test_surplus_while_idle(self) -> None:
        """A reply that nothing was asked for ends an idle connection."""
        wire = wire_for()

        self.assertEqual(wire.receive(b"250 hello\r\n"), [])
        self.assertIsNotNone(wire.trouble)

    def test_250_for_data(self) -> None:
        """A 250 for DATA is no promise: the message is deferred and the connection ended."""
        replies = self.trouble(b"250 ok\r\n250 ok\r\n250 ok\r\n250 ok\r\n")

        self.assertEqual([(r.code, r.mta) for r in replies], [(451, "")] * 2)

    def test_354_out_of_place(self) -> None:
        """A 354 for MAIL, RCPT or the final dot is a breach of protocol."""
        self.assertEqual(self.trouble(b"354 go\r\n")[0].code, 451)
        self.assertEqual(self.trouble(b"250 ok\r\n354 go\r\n")[0].code, 451)
        replies = self.trouble(b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n", b"354 go\r\n")
        self.assertIn("unknown", replies[0].text)

    def test_garbage(self) -> None:
        """What is no reply ends the connection."""
        for data in (b"hello\r\n", b"x" * 5000, b"250-a\r\n" * 300):
            self.assertEqual([r.code for r in self.trouble(data)], [451, 451])

    def test_421_anywhere(self) -> None:
        """With 421 the connection ends, and what is not answered yet is deferred by the server's word."""
        told = b"250 ok\r\n550 no\r\n250 ok\r\n"
        for answers in (
            (b"421 bye\r\n",),
            (b"250 ok\r\n421 bye\r\n",),
            (told + b"421 bye\r\n",),
            (told + b"354 go\r\n", b"421 bye\r\n"),
        ):
            replies = self.trouble(*answers)
            self.assertEqual((replies[1].code, replies[1].mta), (421, MTA))

    def test_contradiction(self) -> None:
        """A yes and a no in one answer to the dot defers the message."""
        wire = wire_for()
        wire.send(message("a"))
        wire.to_send()
        wire.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
        wire.to_send()

        self.assertEqual(codes(wire.receive(b"250-yes\r\n550 no\r\n")), [[451]])

    @given(
        st.lists(
            st.sampled_from(
                [b"250 ok\r\n", b"354 go\r\n", b"550 no\r\n", b"450 no\r\n", b"421 x\r\n", b"250-", b"x\r\n"]
            )
        ),
        st.sampled_from([PLAIN, PIPELINING, CHUNKING]),
        st.booleans(),
    )
    def test_nothing_is_forgotten(self, answers: list[bytes], offered: Extensions, lmtp: bool) -> None:
        """Whatever a server says, each message is finished once, in order, with a reply for each recipient."""
        wire = wire_for(offered, lmtp=lmtp)
        taken: list[Message] = []
        finished = []
        for answer in answers:
            if wire.idle:
                taken.append(message(*("a", "b", "c")[: 1 + len(taken) % 3]))
                wire.send(taken[-1])
            wire.to_send()
            finished += wire.receive(answer)
            if wire.trouble is not None:
                break
        wire.abandon(Reply(451, "4.4.2", "gone"))
        finished += wire.finished()

        self.assertTrue(wire.idle)
        self.assertEqual([id(m) for m, _ in finished], [id(m) for m in taken])
        for sent, replies in finished:
            self.assertEqual(len(replies), len(sent.envelope.recipients))


class SmugglingTests(SynchronousTestCase):
    @given(st.lists(st.sampled_from([b"\r\n", b".", b".\r\n", b"x", b"\r\n.", b".."]), max_size=30), st.booleans())
    def test_one_end_only(self, pieces: list[bytes], file: bool) -> None:
        """However the text is cut, CRLF.CRLF stands at its end only, and the server reads what was meant."""
        data = b"".join(pieces)
        sent = message("a", data=data)
        wire = wire_for()
        if file:
            body = Pieces(pieces)
            sent = Message(sent.envelope, b"", body)
        wire.send(sent)
        wire.to_send()
        wire.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
        text = wire.to_send()
        while wire.streaming:
            text += wire.next_chunk()

        lines = text.split(b"\r\n")
        self.assertEqual(lines[-2:], [b".", b""])
        self.assertNotIn(b".", lines[:-2])
        read = b"\r\n".join(line.removeprefix(b".") for line in lines[:-2])
        self.assertEqual(
            read + (b"\r\n" if read or data else b""),
            data if data.endswith(b"\r\n") else data + b"\r\n" if data else b"",
        )
