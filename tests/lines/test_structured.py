import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qmq.lines import plain, structured
from qmq.mail import NULL_SENDER, Address, Reply
from qmq.session import Session, Transaction

SESSION = Session("192.0.2.1", 4711, "192.0.2.25", 25, helo=b"client.example", host="c.example", number=7)
SENDER = Address(b"a", b"example.org")
RECIPIENT = Address(b"b", b"example.net")
MAIL = Transaction(b"q1-2a", SENDER)
NO = Reply(550, "5.1.1", "no such user")
OK = Reply(250, "2.0.0", "ok", "mail.example.net (192.0.2.2)", "TLSv1.3 X verified")
WHO = {"session": 7, "client": "192.0.2.1", "host": "c.example", "helo": "client.example", "tls": "", "user": ""}


def read(fact):
    line = f"{structured.OPEN}2026-11-23T18:07:02.123{structured.THEN}{fact}{structured.CLOSE}"
    assert line.isascii()
    assert line.count("\n") == 1
    fields = json.loads(line)
    assert fields.pop("time") == "2026-11-23T18:07:02.123Z"
    return fields


class StructuredTests(SynchronousTestCase):
    maxDiff = None

    def test_front_door(self):
        """An event at the front door has SPAMCONTROL's words, who and what, and the session and queue ids."""
        fields = read(structured.refused(SESSION, MAIL, RECIPIENT, NO, "Reject::ORIG::Bad_Mailfrom", "@"))

        self.assertEqual(
            fields,
            {
                "event": "refused",
                "action": "Reject",
                "type": "ORIG",
                "condition": "Bad_Mailfrom",
                "id": "q1-2a",
                **WHO,
                "protocol": "ESMTP",
                "from": "a@example.org",
                "to": "b@example.net",
                "info": "@",
                "code": 550,
                "reply": "550 5.1.1 no such user",
            },
        )

    def test_nothing_known(self):
        """What there was not is null; the null sender is an empty text."""
        fields = read(structured.refused(SESSION, None, None, NO, "Reject::SNDR::Early_Talker", ""))
        self.assertEqual((fields["id"], fields["from"], fields["to"]), (None, None, None))

        fields = read(structured.passed(SESSION, Transaction(b"q", NULL_SENDER), RECIPIENT, "Accept::RCPT::X", ""))
        self.assertEqual((fields["event"], fields["from"], fields["action"]), ("passed", "", "Accept"))

        fields = read(structured.noted(SESSION, None, None, "tired", ""))
        self.assertEqual((fields["event"], fields["condition"], fields["info"]), ("noted", "Other", "tired"))

    def test_all_facts(self):
        """Each fact has its fields by name."""
        said = {
            "code": 250,
            "reply": "250 2.0.0 ok",
            "mta": "mail.example.net (192.0.2.2)",
            "tls": "TLSv1.3 X verified",
        }
        no = {"code": 550, "reply": "550 5.1.1 no such user", "mta": "", "tls": ""}
        where = {"id": "q", "queue": "customer1", "to": "b@example.net"}
        for fact, fields in (
            (
                structured.accepted(b"q", SESSION, SENDER, [RECIPIENT, SENDER], 4096),
                {
                    "event": "accepted",
                    "id": "q",
                    **WHO,
                    "from": "a@example.org",
                    "recipients": 2,
                    "to": ["b@example.net", "a@example.org"],
                    "size": 4096,
                },
            ),
            (
                structured.handed(b"q", "customer1", [RECIPIENT]),
                {"event": "handed", "id": "q", "instance": "customer1", "recipients": 1, "to": ["b@example.net"]},
            ),
            (structured.kept(b"q", "no way"), {"event": "kept", "id": "q", "reason": "no way"}),
            (
                structured.delivered(b"q", "customer1", RECIPIENT, OK, 1.25),
                {"event": "delivered", **where, "delay": 1.25, **said},
            ),
            (
                structured.moved(b"q", "customer1", RECIPIENT, "internet", 1.25),
                {"event": "moved", **where, "instance": "internet", "delay": 1.25},
            ),
            (structured.deleted(b"q", "customer1", RECIPIENT), {"event": "deleted", **where}),
            (
                structured.deferred(b"q", "customer1", RECIPIENT, 1795457622.1, NO),
                {"event": "deferred", **where, "due": "2026-11-23T18:13:42Z", **no},
            ),
            (structured.failed(b"q", "customer1", RECIPIENT, NO), {"event": "failed", **where, **no}),
            (
                structured.bounced(b"q", b"q.b-1", "customer1", SENDER),
                {"event": "bounced", "id": "q", "bounce": "q.b-1", "queue": "customer1", "to": "a@example.org"},
            ),
            (
                structured.dropped_bounce(b"q", "customer1", "triple bounce"),
                {"event": "dropped-bounce", "id": "q", "queue": "customer1", "why": "triple bounce"},
            ),
            (structured.warning("disk"), {"event": "warning", "text": "disk"}),
        ):
            self.assertEqual(read(fact), fields)

    def test_both_forms(self):
        """What can be told in one form can be in the other."""
        self.assertEqual(set(plain.__all__) - set(dir(structured)), set())

    @given(st.binary(max_size=60), st.text(max_size=60))
    def test_hostile_values(self, raw, text):
        """Whatever strangers say, it is one line of ASCII, and one object of the same fields."""
        session = Session(text, 1, "", 25, raw, tls=text, user=raw, host=text)
        mailbox = Address(raw, raw)

        fields = read(
            structured.refused(session, Transaction(raw, mailbox), mailbox, Reply(550, text, text), text, text)
        )

        usual = read(structured.refused(SESSION, MAIL, RECIPIENT, NO, "Reject::ORIG::Bad_Mailfrom", "@"))
        self.assertEqual(list(fields), list(usual))
        self.assertEqual(fields["helo"], raw.decode("utf-8", "backslashreplace"))
        self.assertEqual(fields["host"], text)

    def test_long_values(self):
        """A value is cut after 1000 characters, and of thousands of recipients a hundred are named."""
        fields = read(structured.accepted(b"q", Session("::1", 1, "", 25, b"x" * 9999), SENDER, [RECIPIENT] * 5000, 1))

        self.assertEqual((len(fields["helo"]), fields["recipients"], len(fields["to"])), (1000, 5000, 100))
