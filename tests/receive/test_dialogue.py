import os

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from zope.interface import implementer

from qmq.interfaces import IConnectionChecker, IHeloChecker, IMessageChecker, IRecipientChecker, ISenderChecker
from qmq.mail import Address, FileBody, Reply
from qmq.receive.draft import Drafts
from qmq.receive.reception import Limits
from qmq.session import VOUCH, Verdict
from tests.receive.fakes import LETTER, TAKEN, TEXT, ListenerCase

HELLO = b"EHLO client.example"
MAIL = b"MAIL FROM:<a@client.example>"
RCPT = b"RCPT TO:<b@ours.example>"
NO = Reply(550, "5.7.1", "no")
ENDED = TEXT + b".\r\n"


@implementer(IRecipientChecker)
class Recipients:
    def __init__(self, answer):
        self.answer = answer
        self.seen = []

    def recipient(self, session, transaction, recipient):
        self.seen.append((session, transaction, recipient))
        return self.answer(recipient)


@implementer(IConnectionChecker, IHeloChecker, ISenderChecker, IMessageChecker)
class Everywhere:
    """Says in each phase what it was told to say there."""

    def __init__(self, **answers):
        self.answers = answers

    def connection(self, session):
        return self.answers.get("connection")

    def helo(self, session):
        return self.answers.get("helo")

    def sender(self, session, transaction):
        return self.answers.get("sender")

    def message(self, session, transaction, message):
        return self.answers.get("message")


class AcceptTests(ListenerCase):
    def test_one_message(self):
        """A message for a domain of ours is handed on with a Received field, and its id is told."""
        client = self.client()

        client.say(*LETTER)
        reply = client.send(ENDED)

        self.assertEqual(reply, ["250 2.0.0 ok spool-1"])
        ((_message, text),) = self.hop.sent
        self.assertEqual(
            text,
            b"Received: from client.example ([192.0.2.1])\r\n\tby mx.ours.example with ESMTP id spool-1\r\n"
            b"\tfor <b@ours.example>;\r\n\tTue, 14 Nov 2023 22:13:20 +0000\r\n" + TEXT,
        )
        self.assertEqual(
            self.log.facts,
            [("accepted", b"spool-1", Address(b"a", b"client.example"), (Address(b"b", b"ours.example"),), len(text))],
        )

    def test_envelope(self):
        """The parameters of MAIL and who brought the message travel in its envelope."""
        client = self.client()

        client.say(HELLO, "MAIL FROM:<ä@x.example> BODY=8BITMIME SMTPUTF8 SIZE=100".encode(), RCPT, b"DATA")
        client.send(ENDED)

        (envelope,) = self.hop.envelopes
        self.assertEqual(envelope.sender, Address("ä".encode(), b"x.example"))
        self.assertEqual((envelope.body_type, envelope.smtputf8), (b"8BITMIME", True))
        origin = envelope.origin
        self.assertEqual(
            (origin.protocol, origin.client, origin.port, origin.helo),
            (b"UTF8SMTP", b"192.0.2.1", 40000, b"client.example"),
        )

    def test_several_messages(self):
        """A session brings many messages, each with its own recipients and id."""
        client = self.client()
        client.say(HELLO)

        for name in (b"x", b"y"):
            client.say(MAIL, b"RCPT TO:<%s@ours.example>" % name, b"DATA")
            client.send(ENDED)

        self.assertEqual([e.recipients[0].local for e in self.hop.envelopes], [b"x", b"y"])
        self.assertEqual([e.token.id for e in self.hop.envelopes], [b"spool-1", b"spool-2"])

    def test_duplicate_recipients(self):
        """A recipient named twice gets the message once, and no refusal."""
        client = self.client()

        codes = client.codes(HELLO, MAIL, RCPT, RCPT, b"RCPT TO:<b@OURS.example.>", b"DATA")
        client.send(ENDED)

        self.assertEqual(codes, ["250", "250", "250", "250", "250", "354"])
        self.assertEqual(self.hop.envelopes[0].recipients, (Address(b"b", b"ours.example"),))

    def test_named_again(self):
        """A recipient named again is asked about again, and counts: MAXRECIPIENTS is for commands."""
        checker = Recipients(lambda _: VOUCH)
        client = self.client(("x", checker), rcpthosts=False)

        self.assertEqual(client.codes(HELLO, MAIL, RCPT, RCPT), ["250"] * 4)
        self.assertEqual([transaction.commands for _, transaction, _ in checker.seen], [1, 2])

    def test_recipients_hidden(self):
        """The recipients of a message for several are not told to each other."""
        client = self.client()

        client.say(HELLO, MAIL, RCPT, b"RCPT TO:<secret@ours.example>", b"DATA")
        client.send(ENDED)

        self.assertNotIn(b"secret", self.hop.sent[0][1])

    def test_cut_anywhere(self):
        """How the network cuts a session into packets changes nothing."""
        session = (
            b"".join(line + b"\r\n" for line in LETTER)
            + ENDED
            + b"".join(line + b"\r\n" for line in (MAIL, RCPT, b"BDAT 5", b"Hello", b"QUIT")).replace(
                b"Hello\r\n", b"Hello"
            )
        )
        whole = self.client().send(session)

        for at in range(len(session)):
            self.hop.sent.clear()
            self.numbers = iter(range(1, 9))
            client = self.client()
            self.assertEqual(client.send(session[:at]) + client.send(session[at:]), whole)
            self.assertEqual(self.hop.bodies, [TEXT])

    def test_long_message(self):
        """A long message is streamed through a file, which is gone once it is handed on."""
        self.hop.held = []
        client = self.client(drafts=Drafts(self.folder, inline=1000))
        client.say(*LETTER)

        text = TEXT + b"line\r\n" * 1000
        for start in range(0, len(text), 500):
            client.send(text[start : start + 500])
        self.assertEqual(client.send(b".\r\n"), [])

        ((message, whole),) = self.hop.sent
        self.assertIsInstance(message.body, FileBody)
        self.assertTrue(whole.endswith(text))
        self.assertEqual(len(os.listdir(self.folder)), 1)
        self.hop.held[0].callback([TAKEN])
        self.assertEqual(client.heard(), ["250 2.0.0 ok spool-1"])
        self.assertEqual(os.listdir(self.folder), [])

    def test_helo(self):
        """A client that says HELO is greeted in one line, and its mail is marked SMTP."""
        client = self.client()

        self.assertEqual(client.say(b"HELO old.example"), ["250 mx.ours.example"])
        client.say(MAIL, RCPT, b"DATA")
        client.send(ENDED)

        self.assertIn(b"with SMTP id", self.hop.sent[0][1])

    def test_small_talk(self):
        """NOOP, HELP, VRFY and RSET are answered as RFC 5321 says."""
        client = self.client()

        self.assertEqual(client.codes(b"NOOP", b"HELP", b"VRFY someone", b"RSET", b"QUIT"), [
            "250", "214", "252", "250", "221",
        ])  # fmt: skip
        self.assertTrue(client.closed)


class OrderTests(ListenerCase):
    """Commands out of order; RFC 5321 4.1.4."""

    def test_out_of_order(self):
        """Each command that does not fit is refused with 503, and the session goes on."""
        for lines, codes in [
            ([MAIL], ["503"]),
            ([HELLO, RCPT], ["250", "503"]),
            ([HELLO, b"DATA"], ["250", "503"]),
            ([HELLO, MAIL, b"DATA"], ["250", "250", "503"]),
            ([HELLO, MAIL, MAIL], ["250", "250", "503"]),
            ([HELLO, MAIL, RCPT, b"RSET", b"DATA"], ["250", "250", "250", "250", "503"]),
            ([HELLO, MAIL, RCPT, HELLO, b"DATA"], ["250", "250", "250", "250", "503"]),
            ([HELLO, MAIL, RCPT, b"BDAT 0", b"DATA"], ["250", "250", "250", "250", "503"]),
            ([HELLO, MAIL, RCPT, b"BDAT 0", RCPT], ["250", "250", "250", "250", "503"]),
            ([HELLO, MAIL, RCPT, b"BDAT 0", MAIL], ["250", "250", "250", "250", "503"]),
            ([HELLO, MAIL + b" BODY=BINARYMIME", RCPT, b"DATA"], ["250", "250", "250", "503"]),
        ]:
            client = self.client(limits=Limits(helo=True))
            self.assertEqual(client.codes(*lines), codes, lines)
            self.assertEqual(client.codes(b"RSET", b"NOOP"), ["250", "250"])
        self.assertEqual(self.hop.sent, [])

    def test_vrfy_keeps_transaction_whole(self):
        """VRFY with an odd address changes nothing in a transaction."""
        client = self.client()

        codes = client.codes(HELLO, MAIL, RCPT, b'VRFY "@<>;', b"DATA")

        self.assertEqual(codes[-1], "354")
        self.assertEqual(client.send(ENDED), ["250 2.0.0 ok spool-1"])

    def test_nothing_outlives_a_message(self):
        """After a message, taken or refused, RCPT and DATA need a new MAIL."""
        for answer in (TAKEN, NO, Reply(451, "4.3.0", "later")):
            self.hop.answer = lambda _, answer=answer: [answer]
            client = self.client()
            client.say(*LETTER)
            client.send(ENDED)
            self.hop.sent.clear()

            self.assertEqual(
                client.codes(
                    RCPT,
                    b"DATA",
                    b"BDAT 3",
                ),
                ["503", "503"],
            )
            self.assertEqual(client.send(b"abc"), ["503 5.5.1 MAIL first"])
            self.assertEqual(self.hop.sent, [])

    def test_all_recipients_refused(self):
        """With every recipient refused, pipelined DATA is refused, and what follows is no message."""
        client = self.client()

        lines = client.say(HELLO, MAIL, b"RCPT TO:<x@foreign.example>", b"DATA", b"Subject: no", b"", b".", b"NOOP")

        codes = [line[:3] for line in lines if line[3] == " "]
        self.assertEqual(codes[:4], ["250", "250", "553", "503"])
        self.assertEqual(self.hop.sent, [])

    def test_mail_refused(self):
        """A MAIL that is refused at once opens no transaction."""
        client = self.client(("x", Everywhere(sender=Verdict(reply=NO, reason="Reject::X", now=True))))

        self.assertEqual(client.codes(HELLO, MAIL, RCPT, b"DATA"), ["250", "550", "503", "503"])
        self.assertEqual(self.log.facts, [("refused", Address(b"a", b"client.example"), None, 550, "Reject::X")])

    def test_utf8_needs_smtputf8(self):
        """A non-ASCII recipient is refused unless MAIL said SMTPUTF8."""
        client = self.client()
        odd = "RCPT TO:<ü@ours.example>".encode()

        self.assertEqual(client.codes(HELLO, MAIL, odd, b"RSET"), ["250", "250", "553", "250"])
        self.assertEqual(client.codes(MAIL + b" SMTPUTF8", odd), ["250", "250"])


class ChunkTests(ListenerCase):
    """BDAT, RFC 3030."""

    def chunk(self, data, last=True):
        return b"BDAT %d%s\r\n%s" % (len(data), b" LAST" if last else b"", data)

    def begun(self, body=b"", **how):
        client = self.client(**how)
        client.say(HELLO, MAIL + body, RCPT)
        return client

    def test_chunks(self):
        """A message comes in chunks, each answered, pipelined or not."""
        client = self.begun()

        replies = client.send(self.chunk(TEXT, last=False) + self.chunk(b"more\r\n", last=False) + self.chunk(b""))

        self.assertEqual(replies, ["250 2.0.0 ok", "250 2.0.0 ok", "250 2.0.0 ok spool-1"])
        self.assertEqual(self.hop.bodies, [TEXT + b"more\r\n"])

    def test_dots_are_text(self):
        """A chunk is not dot-stuffed, and a dot on a line of its own ends nothing."""
        client = self.begun()

        client.send(self.chunk(TEXT + b".\r\n..\r\n.\r\nQUIT\r\n"))

        self.assertEqual(self.hop.bodies, [TEXT + b".\r\n..\r\n.\r\nQUIT\r\n"])

    def test_bare_line_ends(self):
        """A chunk with a bare CR or LF is refused, and the transaction with it."""
        client = self.begun()

        replies = client.send(self.chunk(b"a\nb", last=False) + self.chunk(b"c"))

        self.assertEqual([line[:3] for line in replies], ["554", "503"])
        self.assertEqual(self.hop.sent, [])

    def test_binary(self):
        """With BINARYMIME a chunk is taken octet for octet."""
        client = self.begun(b" BODY=BINARYMIME")
        data = bytes(range(256)) * 3

        client.send(self.chunk(data))

        self.assertEqual(self.hop.bodies, [data])
        self.assertEqual(self.hop.envelopes[0].body_type, b"BINARYMIME")

    def test_unwanted_chunk(self):
        """A chunk that has no transaction or no recipients is read to its end, refused, and never run as commands."""
        client = self.client()

        replies = client.send(
            b"EHLO x\r\n" + self.chunk(b"QUIT\r\nRSET\r\n") + b"MAIL FROM:<>\r\n" + self.chunk(b"QUIT\r\n")
        )

        self.assertEqual([line[:3] for line in replies if line[3] == " "], ["250", "503", "250", "503"])
        self.assertEqual(client.codes(RCPT), ["503"])
        self.assertFalse(client.closed)

    def test_then_data(self):
        """After a refused chunk, DATA without MAIL is refused."""
        client = self.client()

        self.assertEqual(
            client.codes(HELLO, MAIL, b"RCPT TO:<x@foreign.example>", b"BDAT 2 LAST"), ["250", "250", "553"]
        )
        self.assertEqual(client.send(b"abDATA\r\n"), ["503 5.5.1 no valid recipients", "503 5.5.1 MAIL first"])

    def test_too_big(self):
        """The chunk that exceeds databytes is refused at its own end."""
        client = self.begun(limits=Limits(databytes=100))

        replies = client.send(self.chunk(b"x" * 60, last=False) + self.chunk(b"x" * 60, last=False) + self.chunk(b""))

        self.assertEqual([line[:3] for line in replies], ["250", "552", "503"])

    def test_empty_chunks(self):
        """Empty chunks without end end the session."""
        client = self.begun(limits=Limits(talk=10))

        replies = client.send(self.chunk(b"", last=False) * 50)

        self.assertTrue(replies[-1].startswith("421 4.7.0"))
        self.assertTrue(client.closed)
        self.assertLess(len(replies), 12)


class CheckTests(ListenerCase):
    """What checkers say, and what becomes of it."""

    def test_relaying(self):
        """A recipient elsewhere is refused; for the others the message is taken."""
        client = self.client()

        codes = client.codes(HELLO, MAIL, b"RCPT TO:<x@foreign.example>", RCPT, b"DATA")
        client.send(ENDED)

        self.assertEqual(codes, ["250", "250", "553", "250", "354"])
        self.assertEqual(self.hop.envelopes[0].recipients, (Address(b"b", b"ours.example"),))
        self.assertEqual(self.log.facts[0][2:], (Address(b"x", b"foreign.example"), 553, "Reject::SNDR::Invalid_Relay"))

    def test_nobody_vouches(self):
        """Without a checker that vouches every recipient is refused, even of ours."""
        client = self.client(rcpthosts=False)

        self.assertEqual(client.codes(HELLO, MAIL, RCPT), ["250", "250", "553"])

    def test_connection_refused(self):
        """A client refused at its connection gets 554 instead of the banner, and the end."""
        client = self.client(("x", Everywhere(connection=Verdict(reply=NO, now=True))))

        self.assertEqual(client.banner, ["554 5.7.1 no"])
        self.assertTrue(client.closed)

    def test_connection_deferred(self):
        """One that may come later gets 421."""
        client = self.client(("x", Everywhere(connection=Verdict(reply=Reply(451, "4.7.1", "later"), now=True))))

        self.assertEqual(client.banner, ["421 4.7.1 later"])

    def test_helo_refused(self):
        """A client whose HELO is refused at once has not said HELO."""
        client = self.client(("x", Everywhere(helo=Verdict(reply=NO))), limits=Limits(held=False, helo=True))

        self.assertEqual(client.codes(HELLO, MAIL), ["550", "503"])

    def test_sent_away(self):
        """A client to whom a checker says 421 is hung up on."""
        client = self.client(("x", Everywhere(sender=Verdict(reply=Reply(421, "4.7.0", "go away")))))

        self.assertEqual(client.codes(HELLO, MAIL, b"NOOP"), ["250", "421"])
        self.assertTrue(client.closed)

    def test_message_refused(self):
        """A message refused at its end goes nowhere."""
        client = self.client(("x", Everywhere(message=Verdict(reply=NO))))

        client.say(*LETTER)

        self.assertEqual(client.send(ENDED), ["550 5.7.1 no"])
        self.assertEqual(self.hop.sent, [])

    def test_fields(self):
        """The fields of all phases stand in front of the message, above our Received field."""
        said = {
            phase: Verdict(fields=b"X-%s: 1\r\n" % phase.encode())
            for phase in ("connection", "helo", "sender", "message")
        }
        client = self.client(("x", Everywhere(**said)))

        client.say(*LETTER)
        client.send(ENDED)

        lines = self.hop.sent[0][1].split(b"\r\n")
        self.assertEqual(lines[:4], [b"X-message: 1", b"X-sender: 1", b"X-helo: 1", b"X-connection: 1"])
        self.assertTrue(lines[4].startswith(b"Received: "))

    def test_delay(self):
        """An answer is held back as long as a checker says, and what is pipelined behind it waits."""
        client = self.client(("x", Everywhere(sender=Verdict(delay=5))))

        self.assertEqual(client.codes(HELLO, MAIL, b"NOOP"), ["250"])
        self.clock.advance(4.9)
        self.assertEqual(client.heard(), [])
        self.clock.advance(0.2)
        self.assertEqual(client.heard(), ["250 2.1.0 ok", "250 2.0.0 ok"])

    def test_greet_delay(self):
        """The banner is held back too; what an impatient client said before is answered after it."""
        client = self.client(("x", Everywhere(connection=Verdict(delay=20))))

        self.assertEqual(client.banner + client.say(b"NOOP"), [])
        self.clock.advance(20)
        self.assertEqual(client.heard(), ["220 mx.ours.example ESMTP", "250 2.0.0 ok"])

    def test_order_behind_a_slow_check(self):
        """Pipelined commands are answered in their order, however slow a check is."""
        waiting = []

        def slow(recipient):
            waiting.append(Deferred())
            return waiting[-1]

        client = self.client(("slow", Recipients(slow)), rcpthosts=False)
        client.say(HELLO)

        self.assertEqual(client.say(MAIL, RCPT, b"RCPT TO:<c@ours.example>", b"DATA"), ["250 2.1.0 ok"])
        self.assertEqual(client.send(ENDED + b"NOOP\r\nQUIT\r\n"), [])
        self.assertEqual(len(waiting), 1)
        waiting[0].callback(VOUCH)
        self.assertEqual(client.heard(), ["250 2.1.5 ok"])
        waiting[1].callback(Verdict(reply=NO))

        self.assertEqual(
            client.heard(),
            ["550 5.7.1 no", "354 go ahead", "250 2.0.0 ok spool-1", "250 2.0.0 ok", "221 2.0.0 bye"],
        )
        self.assertEqual(self.hop.bodies, [TEXT])
        self.assertTrue(client.closed)

    def test_client_leaves_while_checked(self):
        """If the client leaves while a check waits, the check is cancelled and no message is taken."""
        waiting = Deferred()
        client = self.client(("x", Everywhere(message=waiting)), drafts=Drafts(self.folder, inline=1))
        client.say(*LETTER)
        client.send(ENDED)

        client.leave()

        self.assertEqual(self.hop.sent, [])
        self.assertEqual(os.listdir(self.folder), [])
        self.assertTrue(waiting.called)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_transaction_seen(self):
        """Checkers see who is asking, and the recipients accepted so far."""
        checker = Recipients(lambda _: VOUCH)
        client = self.client(("x", checker), rcpthosts=False)

        client.say(HELLO, MAIL + b" SIZE=77", RCPT, b"RCPT TO:<c@ours.example>")

        session, transaction, recipient = checker.seen[1]
        self.assertEqual((session.client, session.helo, session.server), ("192.0.2.1", b"client.example", "192.0.2.25"))
        self.assertEqual((transaction.id, transaction.size), (b"spool-1", 77))
        self.assertEqual(transaction.recipients, (Address(b"b", b"ours.example"),))
        self.assertEqual(recipient, Address(b"c", b"ours.example"))


class HopTests(ListenerCase):
    """The one answer a client gets for several recipients."""

    def reply_to(self, *answers):
        self.hop.answer = lambda _: answers
        client = self.client()
        client.say(HELLO, MAIL, *(b"RCPT TO:<%d@ours.example>" % n for n in range(len(answers))), b"DATA")
        return client.send(ENDED)[0]

    def test_joint_reply(self):
        """One recipient taken means 250; else one deferred means 4yz; else it is refused."""
        later = Reply(450, "4.2.0", "later")

        self.assertEqual(self.reply_to(NO, TAKEN, later), "250 2.0.0 ok spool-1")
        self.assertTrue(self.reply_to(NO, later).startswith("450 4.2.0 later (recipients differ"))
        self.assertEqual(self.reply_to(NO, NO), "550 5.7.1 no")
        self.assertEqual(self.reply_to(NO), "550 5.7.1 no")
        self.assertTrue(self.reply_to(NO, Reply(552, "5.2.2", "full")).startswith("550 5.7.1 no (recipients differ"))

    def test_hanging_up_is_ours(self):
        """A next hop's 421 reaches the client as 451: we do not hang up."""
        self.assertEqual(self.reply_to(Reply(421, "4.3.2", "closing")), "451 4.3.2 closing")

    def test_mixed_outcome_told(self):
        """The log tells who was taken and who was not."""
        self.reply_to(NO, TAKEN)

        self.assertEqual([fact[0] for fact in self.log.facts], ["refused", "accepted"])
        self.assertEqual(self.log.facts[1][3], (Address(b"1", b"ours.example"),))

    def test_client_leaves_while_committing(self):
        """If the client leaves while the next hop has its message, that is neither disturbed nor forgotten."""
        self.hop.held = []
        client = self.client(drafts=Drafts(self.folder, inline=1))
        client.say(*LETTER)
        client.send(ENDED)

        client.leave()

        self.assertFalse(self.hop.held[0].called)
        self.assertEqual(len(os.listdir(self.folder)), 1)
        self.hop.held[0].callback([TAKEN])
        self.assertEqual(self.log.facts[0][0], "accepted")
        self.assertEqual(os.listdir(self.folder), [])

    def test_hop_breaks(self):
        """A next hop that breaks its word costs a 451, and the session goes on."""
        self.hop.send = lambda _: 1 / 0
        client = self.client()
        client.say(*LETTER)

        self.assertEqual(client.send(ENDED), ["451 4.3.0 try again later"])
        self.assertEqual(client.codes(MAIL, b"RSET"), ["250", "250"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class LimitTests(ListenerCase):
    def test_many_recipients(self):
        """Of 20,000 recipients the first thousand get the message; the others are deferred."""
        client = self.client()
        client.say(HELLO, MAIL)

        codes = client.codes(*(b"RCPT TO:<%d@ours.example>" % n for n in range(20000)))

        self.assertEqual((codes.count("250"), codes.count("452")), (1000, 19000))
        client.say(b"DATA")
        self.assertEqual(client.send(ENDED), ["250 2.0.0 ok spool-1"])
        self.assertEqual(len(self.hop.envelopes[0].recipients), 1000)

    def test_size_said(self):
        """The longest message that is taken is told at EHLO."""
        self.assertIn("250-SIZE 1000", self.client(limits=Limits(databytes=1000)).say(HELLO))

    def test_size_found(self):
        """A message found to be longer is read to its end, kept nowhere, and refused; the session goes on."""
        client = self.client(limits=Limits(databytes=1000), drafts=Drafts(self.folder, inline=100))
        client.say(*LETTER)

        for _ in range(50):
            self.assertEqual(client.send(b"x" * 98 + b"\r\n"), [])
        self.assertEqual(os.listdir(self.folder), [])

        self.assertTrue(client.send(b".\r\n")[0].startswith("552 5.3.4"))
        self.assertEqual(client.codes(b"NOOP"), ["250"])

    def test_errors(self):
        """A client that errs and errs is sent away."""
        client = self.client()

        replies = client.say(*[b"FOO"] * 50)

        self.assertEqual([line[:3] for line in replies], ["500"] * 20 + ["421"])
        self.assertTrue(client.closed)

    def test_talk(self):
        """A client that only talks is sent away."""
        for talk in (b"NOOP", b"RSET", b"EHLO x", b"VRFY x"):
            client = self.client()

            codes = client.codes(*[talk] * 200)

            self.assertEqual((len(codes), codes[-1]), (101, "421"))
            self.assertTrue(client.closed)

    def test_mail_forgives(self):
        """With each message taken a client's errors are forgotten."""
        client = self.client()
        client.say(HELLO)

        for _ in range(5):
            client.say(*[b"FOO"] * 15)
            client.say(MAIL, RCPT, b"DATA")
            self.assertTrue(client.send(ENDED)[0].startswith("250"))

    def test_loop(self):
        """A message that was handed on a hundred times is looping and refused."""
        client = self.client()
        client.say(HELLO)
        for hops, code in ((99, "250"), (100, "554")):
            client.say(MAIL, RCPT, b"DATA")
            reply = client.send(b"Received: x\r\n" * (hops - 1) + b"DELIVERED-TO: y\r\n\r\nReceived: z\r\n.\r\n")[0]
            self.assertEqual(reply[:3], code)

    def test_loop_of_too_long_a_message(self):
        """A message that is too long and looping is refused for its loop."""
        client = self.client(limits=Limits(databytes=2000))
        for hops, reply in ((100, "554 5.4.6"), (99, "552 5.3.4")):
            client.say(HELLO, MAIL, RCPT, b"DATA")
            client.send(b"Received: x\r\n" * hops + b"\r\n")
            self.assertEqual(client.send(b"y" * 1000 + b"\r\n.\r\n")[0][:9], reply)

    def test_long_header(self):
        """A header that does not end within its limit is refused."""
        client = self.client(drafts=Drafts(self.folder, inline=100, header=2000))
        client.say(*LETTER)

        reply = client.send(b"X-Long: y\r\n" * 500 + b"\r\n.\r\n")

        self.assertTrue(reply[0].startswith("552 5.3.4"))
        self.assertEqual(os.listdir(self.folder), [])

    def test_no_space(self):
        """If the draft can't be written the message is deferred at its end, and the session goes on."""
        client = self.client(drafts=Drafts(os.path.join(self.folder, "missing"), inline=10))
        client.say(*LETTER)

        self.assertEqual(client.send(ENDED), ["452 4.3.1 no space for this message now, try again later"])
        self.assertEqual(client.codes(MAIL), ["250"])

    def test_smuggling(self):
        """A bare LF in a message ends the session, and nothing behind it is run."""
        client = self.client()
        client.say(*LETTER)

        replies = client.send(b"Subject: x\r\n\r\nhi\n.\nMAIL FROM:<evil@x.example>\r\n")

        self.assertEqual(replies[0][:3], "554")
        self.assertEqual(len(replies), 1)
        self.assertTrue(client.closed)
        self.assertEqual(self.hop.sent, [])

    def test_too_long_line(self):
        """A line longer than we take spoils its message only, at its true end."""
        client = self.client(limits=Limits(line=100))
        client.say(*LETTER)

        replies = client.send(b"x" * 200 + b"\r\nQUIT\r\n.\r\nNOOP\r\n")

        self.assertEqual([line[:3] for line in replies], ["554", "250"])

    @given(st.lists(st.sampled_from([
        HELLO, MAIL, RCPT, b"RCPT TO:<x@foreign.example>", b"DATA", b"RSET", b"BDAT 0", b"BDAT 0 LAST", b"NOOP",
        b"STARTTLS", b".", b"VRFY x", b"FOO",
    ]), max_size=25))  # fmt: skip
    def test_any_order(self, lines):
        """Whatever the order of commands, only a message with MAIL and a recipient of ours is ever handed on."""
        self.hop.sent.clear()
        client = self.client()

        client.say(*lines)
        client.leave()

        for envelope in self.hop.envelopes:
            self.assertEqual(envelope.recipients, (Address(b"b", b"ours.example"),))
            self.assertEqual(envelope.sender, Address(b"a", b"client.example"))
        self.assertLessEqual(len(self.hop.sent), lines.count(MAIL))
