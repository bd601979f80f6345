"""When a refusal is spoken, in which order, and in which form (SPAMCONTROL 2.4, 2.5, 2.6)."""

from dataclasses import replace
from itertools import permutations

from twisted.internet.defer import Deferred
from zope.interface import directlyProvides, implementer

from qmq.interfaces import (
    IConnectionChecker,
    IDataChecker,
    IHeloChecker,
    IMessageChecker,
    IRecipientChecker,
    ISenderChecker,
)
from qmq.mail import Address, Reply
from qmq.receive.reception import Limits
from qmq.session import VOUCH, Environment, Verdict
from tests.receive.fakes import LETTER, TEXT, ListenerCase

PHASES = {
    "connection": IConnectionChecker,
    "helo": IHeloChecker,
    "sender": ISenderChecker,
    "recipient": IRecipientChecker,
    "data": IDataChecker,
    "message": IMessageChecker,
}
HELLO, MAIL, RCPT, DATA = LETTER
ENDED = TEXT + b".\r\n"


class Says:
    """Says this in these phases; in others it is not asked."""

    def __init__(self, verdict, *phases):
        self.verdict = verdict
        self.asked = []
        for phase in phases:
            setattr(self, phase, self._answer(phase))
        directlyProvides(self, *(PHASES[phase] for phase in phases))

    def _answer(self, phase):
        arguments = {"connection": 1, "helo": 1, "sender": 2, "recipient": 3, "data": 2, "message": 3}[phase]

        def three(session, transaction, what):
            self.asked.append((phase, session, transaction, what))
            return self.verdict

        def two(session, transaction):
            return three(session, transaction, None)

        def one(session):
            return three(session, None, None)

        return [one, two, three][arguments - 1]


def no(text, **how):
    return Verdict(Reply(550, "5.7.1", text), reason=f"Reject::X::{text}", **how)


class HeldTests(ListenerCase):
    def test_until_rcpt(self):
        """What is refused of the connection, the HELO or the sender is said at each RCPT, and logged with both ends."""
        for phase in ("connection", "helo", "sender"):
            self.log.facts.clear()
            client = self.client(("x", Says(no(phase), phase)))

            said = client.say(HELLO, MAIL, RCPT, b"RCPT TO:<c@ours.example>", DATA)

            self.assertTrue(client.banner[0].startswith("220 "))
            codes = [line[:3] for line in said if line[3] == " "]
            self.assertEqual(codes, ["250", "250", "550", "550", "503"])
            self.assertEqual(
                self.log.facts,
                [
                    ("refused", Address(b"a", b"client.example"), Address(who, b"ours.example"), 550, f"Reject::X::{phase}")
                    for who in (b"b", b"c")
                ],
            )  # fmt: skip
        self.assertEqual(self.hop.sent, [])

    def test_at_once(self):
        """With `verdicts = at-once` they are said when they are made."""
        at_once = Limits(held=False)

        self.assertEqual(self.client(("x", Says(no("c"), "connection")), limits=at_once).banner, ["554 5.7.1 c"])
        self.assertEqual(self.client(("x", Says(no("h"), "helo")), limits=at_once).codes(HELLO), ["550"])
        self.assertEqual(
            self.client(("x", Says(no("s"), "sender")), limits=at_once).codes(HELLO, MAIL, RCPT), ["250", "550", "503"]
        )

    def test_order_of_checks(self):
        """Of several refusals the one counts whose check stands first, whenever each was made."""
        for order in permutations(("connection", "helo", "sender", "recipient")):
            checkers = [(phase, Says(no(phase), phase)) for phase in order]
            for after in (False, True):
                rcpthosts = [("vouches", Says(VOUCH, "recipient"))]
                all_ = checkers + rcpthosts if after else rcpthosts + checkers
                said = self.client(*all_, rcpthosts=False).say(HELLO, MAIL, RCPT)

                self.assertEqual(said[-1], f"550 5.7.1 {order[0]}")

    def test_later_checks_are_not_asked(self):
        """A recipient check that stands behind a refusal is not asked: no strangers learn whom we know."""
        before, after = Says(None, "recipient"), Says(None, "recipient")
        client = self.client(("before", before), ("x", Says(no("x"), "sender")), ("after", after))

        client.say(HELLO, MAIL, RCPT)

        self.assertEqual((len(before.asked), len(after.asked)), (1, 0))

    def test_slow_check_before(self):
        """A slow recipient check before a held refusal is waited for."""
        slow = Deferred()
        client = self.client(("slow", Says(slow, "recipient")), ("x", Says(no("x"), "helo")))
        self.assertEqual(client.codes(HELLO, MAIL, RCPT), ["250", "250"])

        slow.callback(None)

        self.assertEqual(client.heard(), ["550 5.7.1 x"])

    def test_stop_saves(self):
        """A check that stops before a held refusal lets the recipient in."""
        client = self.client(("stops", Says(Verdict(stop=True, vouch=True), "recipient")), ("x", Says(no("x"), "helo")))

        self.assertEqual(client.codes(HELLO, MAIL, RCPT), ["250", "250", "250"])

    def test_next_hello_clears(self):
        """A second, better HELO clears what was held against the first (SPAMCONTROL 2.20 #10)."""

        @implementer(IHeloChecker)
        class OnlyGood:
            def helo(self, session):
                return None if session.helo == b"good.example" else no("helo")

        client = self.client(("x", OnlyGood()))

        self.assertEqual(client.codes(b"EHLO bad.example", MAIL, RCPT), ["250", "250", "550"])
        self.assertEqual(client.codes(b"EHLO good.example", MAIL, RCPT), ["250", "250", "250"])
        self.assertEqual(client.codes(b"HELO bad.example", MAIL, RCPT), ["250", "250", "550"])

    def test_next_mail_clears(self):
        """What is held against a sender goes with its transaction."""

        @implementer(ISenderChecker)
        class NoNull:
            def sender(self, session, transaction):
                return None if transaction.sender.domain else no("null")

        client = self.client(("x", NoNull()))

        self.assertEqual(client.codes(HELLO, b"MAIL FROM:<>", RCPT, b"RSET"), ["250", "250", "550", "250"])
        self.assertEqual(client.codes(MAIL, RCPT), ["250", "250"])

    def test_once_each(self):
        """One command, one reply: a check that fails for now gives a 451 at RCPT and none at MAIL (2.20 #6)."""
        later = Verdict(Reply(451, "4.4.3", "DNS trouble"))

        self.assertEqual(
            self.client(("x", Says(later, "sender"))).codes(HELLO, MAIL, RCPT, b"NOOP"), ["250", "250", "451", "250"]
        )

    def test_delayed_once(self):
        """A refusal that is to be held back is held back when it is spoken, not when it is made."""
        for phase in ("connection", "helo", "sender"):
            client = self.client(("x", Says(no("x", delay=5), phase)))
            self.assertEqual(client.codes(HELLO, MAIL, RCPT), ["250", "250"], phase)
            self.clock.advance(5)
            self.assertEqual(client.heard(), ["550 5.7.1 x"])

    def test_without_helo(self):
        """MAIL needs no HELO, unless `helo = required`."""
        self.assertEqual(self.client().codes(MAIL, RCPT), ["250", "250"])
        self.assertEqual(self.client(limits=Limits(helo=True)).codes(MAIL), ["503"])


class DataTests(ListenerCase):
    def test_refused_at_data(self):
        """A check of DATA refuses before any text comes, and may hang up."""
        client = self.client(("x", Says(no("x", close=True), "data")))

        self.assertEqual(client.codes(HELLO, MAIL, RCPT, DATA), ["250", "250", "250", "550"])
        self.assertTrue(client.closed)

    def test_refused_at_bdat(self):
        """With BDAT it is said behind the first chunk, whose octets are no commands."""
        client = self.client(("x", Says(no("x"), "data")))

        self.assertEqual(
            client.codes(HELLO, MAIL, RCPT, b"BDAT 6", b"RSET", b"NOOP"), ["250", "250", "250", "550", "250"]
        )
        self.assertEqual(self.hop.sent, [])

    def test_slow_at_bdat(self):
        """A slow check of DATA holds up the first chunk's answer."""
        slow = Deferred()
        client = self.client(("x", Says(slow, "data")))
        client.say(HELLO, MAIL, RCPT)
        self.assertEqual(client.send(b"BDAT 15 LAST\r\nSubject: x\r\n\r\n\r"), [])

        slow.callback(None)

        self.assertEqual(client.heard()[0][:3], "554")  # the text ends in a bare CR

    def test_not_without_recipients(self):
        """It is not asked for a transaction without recipients."""
        asked = Says(None, "data")

        self.assertEqual(self.client(("x", asked)).codes(HELLO, MAIL, DATA), ["250", "250", "503"])
        self.assertEqual(asked.asked, [])


class SeenTests(ListenerCase):
    def test_commands(self):
        """A checker sees how many RCPT commands there were, refused and repeated ones too."""
        asked = Says(None, "recipient")
        client = self.client(("x", asked))

        client.say(
            HELLO, MAIL, RCPT, b"RCPT TO:<b@foreign.example>", RCPT, b"RCPT TO:<c@ours.example>", b"RSET", MAIL, RCPT
        )

        self.assertEqual([transaction.commands for _, _, transaction, _ in asked.asked], [1, 2, 3, 4, 1])

    def test_conduct(self):
        """What checkers count of a client outlives RSET, EHLO and MAIL."""
        asked = Says(None, "sender")
        client = self.client(("x", asked))

        client.say(HELLO, MAIL)
        asked.asked[0][1].conduct.failed_recipients += 1
        client.say(b"RSET", b"EHLO other.example", MAIL)

        self.assertEqual(asked.asked[1][1].conduct.failed_recipients, 1)

    def test_early(self):
        """A client that speaks before its banner is known as one."""
        slow = Deferred()
        asked = Says(slow, "connection")
        client = self.client(("x", asked))
        conduct = asked.asked[0][1].conduct
        self.assertFalse(conduct.early)

        client.say(HELLO)
        slow.callback(None)

        self.assertTrue(conduct.early)
        self.assertEqual([line[:3] for line in client.heard() if line[3] == " "], ["220", "250"])

    def test_in_time(self):
        """One that waits for its banner is not."""
        asked = Says(None, "connection")
        client = self.client(("x", asked))

        client.say(HELLO)

        self.assertFalse(asked.asked[0][1].conduct.early)

    def test_protocol_letter(self):
        """A letter that a check adds to the protocol's word stands there once, in each message (SPAMCONTROL 2.20 #9)."""
        verified = Says(Verdict(protocol=b"M", reason="Accept::ORIG::Local_Sender"), "sender", "recipient")
        client = self.client(("x", verified))
        for _ in range(2):
            client.say(*LETTER)
            client.send(ENDED)

        for _, text in self.hop.sent:
            self.assertIn(b" with ESMTPM id ", text)

    def test_accept_words(self):
        """The log has for each recipient why it was taken: the last check's word, SPF's with the one before."""
        spf = Says(Verdict(reason="Accept::SPF::"), "recipient")
        cdb = Says(Verdict(reason="Accept::RCPT::Recipients_Cdb"), "recipient")

        hosts = Says(Verdict(vouch=True, reason="Accept::RCPT::Rcpthosts_Rcptto"), "recipient")

        self.client(("rcpthosts", hosts), ("cdb", cdb), ("spf", spf), rcpthosts=False).say(*LETTER)

        self.assertEqual(self.log.passes, [(Address(b"b", b"ours.example"), "Accept::SPF::Recipients_Cdb", "")])

    def test_nameless(self):
        """The log names the check that refused without a word for the log."""
        self.client(("x", Says(Verdict(Reply(550, "5.7.1", "no")), "sender"))).say(HELLO, MAIL, RCPT)

        self.assertEqual(self.log.facts[0][3:], (550, "Reject::CHECK::Refused"))

    def test_told(self):
        """What a check has to tell the operator without refusing stands in the log."""
        self.client(("x", Says(Verdict(reason="Info::SNDR::Blocklisted", info="bl.example"), "connection")))

        self.assertEqual(self.log.facts, [("noted", None, "Info::SNDR::Blocklisted", "bl.example")])


class ClassicTests(ListenerCase):
    def test_codes_at_the_end(self):
        """With `codes = classic` a refusal's code stands where qmail put it, and the id where it put its own."""
        client = self.client(("x", Says(no("x"), "message")), reception={"classic": True})

        self.assertNotIn("250-ENHANCEDSTATUSCODES", client.say(HELLO))
        self.assertEqual(client.say(MAIL, RCPT), ["250 ok", "250 ok"])
        self.assertEqual(client.say(b"RCPT TO:<b@foreign.example>"), ["553 relaying denied (#5.7.1)"])
        client.say(DATA)
        self.assertEqual(client.send(ENDED), ["550 x (#5.7.1)"])

        client = self.client(reception={"classic": True})
        client.say(*LETTER)
        self.assertEqual(client.send(ENDED), ["250 ok 1700000000 qp spool-2"])

    def test_modern(self):
        """Otherwise it stands where RFC 2034 wants it, in each line of a reply."""
        client = self.client(("x", Says(Verdict(Reply(550, "5.7.1", "one\ntwo")), "helo")))

        self.assertEqual(client.say(HELLO, MAIL, RCPT)[-2:], ["550-5.7.1 one", "550 5.7.1 two"])


class HelloTests(ListenerCase):
    def test_nameless(self):
        """HELO without a name is bad syntax; where HELOCHECK is set it is the check's to judge."""
        client = self.client()
        self.assertEqual(client.codes(b"HELO", b"EHLO "), ["501", "501"])

        dialogue = client.conversation._dialogue
        dialogue.session = replace(dialogue.session, environment=Environment(helocheck="!"))
        self.assertEqual(client.codes(b"HELO", b"EHLO ", MAIL), ["250", "250", "250"])

    def test_size(self):
        """EHLO tells each client the longest message it may send: its own limit, if that is less than ours."""
        client = self.client(limits=Limits(databytes=5000))
        dialogue = client.conversation._dialogue
        for databytes, said in ((None, b"5000"), (1000, b"1000"), (9000, b"5000"), (0, b"5000")):
            dialogue.session = replace(dialogue.session, environment=Environment(databytes=databytes))
            self.assertIn(f"250-SIZE {said.decode()}", client.say(HELLO))

    def test_too_big(self):
        """A text beyond a client's own limit is not stored further, and refused with the site's words."""
        client = self.client(limits=Limits(databytes=5000))
        dialogue = client.conversation._dialogue
        own = Environment(databytes=1000, replies={"REPLY_MAXSIZE": "ask us"})
        dialogue.session = replace(dialogue.session, environment=own)

        client.say(*LETTER)
        said = client.send(b"x" * 70 + b"\r\n" + (b"y" * 70 + b"\r\n") * 14 + b".\r\n")

        self.assertRegex(said[0], "^552 5.3.4 .*ask us$")


class AddressTests(ListenerCase):
    def test_own_literal(self):
        """A recipient at the address that the client came to is at our name (localiphost)."""
        client = self.client(reception={"localiphost": "ours.example"})

        self.assertEqual(client.codes(HELLO, MAIL, b"RCPT TO:<b@[192.0.2.25]>", DATA), ["250", "250", "250", "354"])
        client.send(ENDED)
        self.assertEqual(self.hop.envelopes[0].recipients, (Address(b"b", b"ours.example"),))
        self.assertEqual(client.codes(MAIL, b"RCPT TO:<b@[192.0.2.26]>"), ["250", "553"])

    def test_relayclient_suffix(self):
        """What RELAYCLIENT says goes behind each recipient."""
        client = self.client()
        dialogue = client.conversation._dialogue
        environment = Environment(relayclient=b"@ours.example")
        dialogue.session = replace(dialogue.session, relay=True, environment=environment)

        client.say(HELLO, MAIL, b"RCPT TO:<b@foreign.example>", DATA)
        client.send(ENDED)

        self.assertEqual(self.hop.envelopes[0].recipients, (Address(b"b@foreign.example", b"ours.example"),))
