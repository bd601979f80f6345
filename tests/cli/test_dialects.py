import json
import os
import time
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qmq.cli.dialects import json_line, mailq_lines, messages, qread_lines
from qmq.mail import HELD
from tests.admin.fakes import LATER, FakeQueue, entry
from tests.cli.processes import ProcessesTestCase

BORN = 1795651692.7


def fact(**more):
    """What a Desk tells of a message."""
    return {
        "queue": "alpha", "id": "9F9E9242061", "sender": "s@source.test", "born": BORN, "size": 1257, "state": "waiting",
        "recipients": [{"address": "a@busy.example", "reply": "451 4.2.0 busy"}], "bouncing": [], **more,
    }  # fmt: skip


class UTCTestCase(SynchronousTestCase):
    def setUp(self):
        """Postfix lists in local time."""
        before = os.environ.get("TZ")
        os.environ["TZ"] = "UTC"
        time.tzset()
        self.addCleanup(self._zone, before)

    def _zone(self, before):
        os.environ.pop("TZ")
        if before is not None:
            os.environ["TZ"] = before
        time.tzset()


class PostfixTests(UTCTestCase):
    def test_mailq(self):
        """The list is Postfix's, to the octet: a reason once for all recipients that share it, null senders by name."""
        same = [{"address": f"{name}@busy.example", "reply": "451 4.2.0 busy"} for name in "ab"]
        facts = [
            fact(recipients=same),
            fact(sender="", state="held"),
            fact(state="in-hand", recipients=same[:1], size=999),
        ]

        # Postfix 3.7.11 with enable_long_queue_ids wrote the like of it.
        self.assertEqual(
            "\n".join(mailq_lines(facts)).split("\n"),
            [
                "----Queue ID----- --Size-- ---Arrival Time---- --Sender/Recipient------",
                "9F9E9242061           1257 Thu Nov 26 00:08:12 s@source.test",
                " " * 62 + "(451 4.2.0 busy)",
                " " * 47 + "a@busy.example",
                " " * 47 + "b@busy.example",
                "",
                "9F9E9242061!          1257 Thu Nov 26 00:08:12 MAILER-DAEMON",
                " " * 62 + "(451 4.2.0 busy)",
                " " * 47 + "a@busy.example",
                "",
                "9F9E9242061*           999 Thu Nov 26 00:08:12 s@source.test",
                " " * 62 + "(451 4.2.0 busy)",
                " " * 47 + "a@busy.example",
                "",
                "-- 3 Kbytes in 3 Requests.",
            ],
        )

    def test_one(self):
        """One message is a Request; no reply, no reason."""
        lines = list(mailq_lines([fact(recipients=[{"address": "a@b.c", "reply": ""}])]))

        self.assertEqual(lines[2:], [" " * 47 + "a@b.c", "\n-- 1 Kbytes in 1 Request."])

    def test_empty(self):
        """No message, as Postfix says it."""
        self.assertEqual(list(mailq_lines([])), ["Mail queue is empty"])

    def test_json(self):
        """The keys are Postfix's, in its order, and at last the queue's name; a recipient without reply has no reason."""
        said = fact(
            sender="",
            state="held",
            recipients=[{"address": "a@b.c", "reply": ""}, {"address": "d@b.c", "reply": "450 no"}],
        )

        self.assertEqual(
            json_line(said),
            '{"queue_name": "hold", "queue_id": "9F9E9242061", "arrival_time": 1795651692, "message_size": 1257, '
            '"forced_expire": false, "sender": "MAILER-DAEMON", "recipients": [{"address": "a@b.c"}, '
            '{"address": "d@b.c", "delay_reason": "450 no"}], "queue": "alpha"}',
        )

    def test_terminal(self):
        """What a stranger wrote cannot command a terminal."""
        evil = [{"address": "a\x1b[2J@b.c", "reply": "450 \x1b]0;x\x07"}]

        for text in (*mailq_lines([fact(sender="\x1bc@x", recipients=evil)]), *qread_lines(fact(recipients=evil))):
            self.assertNotIn("\x1b", text)

    @given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("12"), st.integers(0, 99))))
    def test_joined(self, entries):
        """Entries of a message that follow each other in its queue are one, and no recipient is left out."""
        facts = [fact(queue=q, id=i, recipients=[{"address": str(r), "reply": ""}]) for q, i, r in entries]

        joined = list(messages(facts))

        for queue in "ab":
            of_queue = [
                (one["id"], [r["address"] for r in one["recipients"]]) for one in joined if one["queue"] == queue
            ]
            ids = [one for one, _ in of_queue]
            self.assertTrue(all(x != y for x, y in pairwise(ids)))
            expected = [(i, str(r)) for q, i, r in entries if q == queue]
            self.assertEqual([(i, r) for i, rs in of_queue for r in rs], expected)

    def test_joined_state(self):
        """A message of which a part is in delivery is active; it is on hold if all of it is."""
        states = lambda *words: next(messages([fact(state=word) for word in words]))["state"]  # noqa: E731

        self.assertEqual(states("held", "in-hand"), "in-hand")
        self.assertEqual(states("held", "held"), "held")
        self.assertEqual(states("held", "waiting"), "waiting")


class QmailTests(SynchronousTestCase):
    def test_qread(self):
        """The list is qmail-qread's: day without zero, GMT, two blanks, and a blank behind the sender."""
        said = fact(born=826687028, id="12", bouncing=[{"address": "c@b.c", "reply": "550 no"}])

        self.assertEqual(
            list(qread_lines(said)),
            [
                "13 Mar 1996 03:17:08 GMT  #12  1257  <s@source.test>  bouncing",
                "\tremote\ta@busy.example",
                "\tremote\tc@b.c",
            ],
        )
        self.assertTrue(next(qread_lines(fact())).endswith("  <s@source.test> "))


class CommandsTests(ProcessesTestCase):
    """alpha in one process, beta in another."""

    def setUp(self):
        super().setUp()
        self.alpha = FakeQueue(entry(1, reply=LATER), entry(2, due=HELD))
        self.beta = FakeQueue(entry(9, "u@beta.example", site=b"smtp:mail.beta.example:25"))
        self.process("worker-1", {"alpha": self.alpha})
        self.process("worker-2", {"beta": self.beta})

    def orders(self):
        return self.alpha.said + self.beta.said

    def test_lists(self):
        """Mailq and postqueue -p are one; -j, qread and qstat see the same messages, of all processes."""
        found = [json.loads(line) for line in self.qmq("postqueue", "-j").stdout.splitlines()]

        self.assertEqual(
            sorted((one["queue"], one["queue_id"], one["queue_name"]) for one in found),
            [("alpha", "abcdef-1", "deferred"), ("alpha", "abcdef-2", "hold"), ("beta", "abcdef-9", "deferred")],
        )
        self.assertEqual(
            sorted(self.qmq("mailq").stdout.split("\n")), sorted(self.qmq("postqueue", "-p").stdout.split("\n"))
        )
        self.assertIn("-- 5 Kbytes in 3 Requests.", self.qmq("mailq").stdout)
        self.assertEqual(self.qmq("qread").stdout.count("GMT  #abcdef-"), 3)
        self.assertEqual(
            self.qmq("qstat").stdout, "messages in queue: 3\nmessages in queue but not yet preprocessed: 0\n"
        )

    def test_flush(self):
        """-f tries all now, -i one message, -s what is for a domain or on its way to a host."""
        self.qmq("postqueue", "-f")
        self.qmq("postqueue", "-i", "abcdef-1")
        self.qmq("postqueue", "-s", "[beta.example]")

        self.assertEqual(
            [order[:2] for order in self.beta.said],
            [
                ("now", {}),
                ("now", {"id": "abcdef-1"}),
                ("now", {"domain": "beta.example"}),
                ("now", {"destination": "beta.example"}),
            ],
        )

    def test_postqueue_usage(self):
        """One thing at a time; an id must be one, or everything would be tried."""
        for words in (["-p", "-j"], ["-i", "nope"], ["-v"]):
            self.qmq("postqueue", *words, code=2)
        self.assertEqual(self.orders(), [])

    def test_delete(self):
        """Each message that is gone is named, and their number told."""
        result = self.qmq("postsuper", "-d", "abcdef-1", "-d", "abcdef-7")

        self.assertEqual(result.stderr, "postsuper: abcdef-1: removed\npostsuper: Deleted: 1 message\n")
        self.assertEqual(sorted(self.alpha.spool.entries), [2])

    def test_ids_on_stdin(self):
        """As in `postqueue -j | jq -r .queue_id | postsuper -d -`; what is no id is passed over."""
        result = self.qmq("postsuper", "-d", "-", input="abcdef-1\n\nMail queue\nabcdef-9\n")

        self.assertEqual(
            result.stderr, "postsuper: 'Mail queue' is no queue id: passed over\npostsuper: Deleted: 2 messages\n"
        )
        self.assertEqual([*self.alpha.spool.entries, *self.beta.spool.entries], [2])

    def test_nothing_on_stdin(self):
        """No ids mean no messages, and by no means all."""
        for text in ("", "\n", "-- 1 Kbytes in 1 Request.\n"):
            self.qmq("postsuper", "-d", "-", input=text)
        for word in ("", "all", "abcdef"):
            self.qmq("postsuper", "-d", word, code=2)

        self.assertEqual(self.orders(), [])

    def test_all(self):
        """ALL is everything, or everything in such a state."""
        self.qmq("postsuper", "-d", "ALL", "hold")
        self.assertEqual([*self.alpha.spool.entries, *self.beta.spool.entries], [1, 9])
        self.qmq("postsuper", "-d", "ALL")
        self.assertEqual([*self.alpha.spool.entries, *self.beta.spool.entries], [])

    def test_hold_and_release(self):
        """-h holds, -H releases, -r does that and tries now, -e bounces."""
        self.qmq("postsuper", "-h", "abcdef-1")
        self.assertEqual(self.alpha.spool.entries[1].due, HELD)
        self.qmq("postsuper", "-H", "abcdef-1")
        self.assertLess(self.alpha.spool.entries[1].due, HELD)
        self.alpha.said.clear()
        self.qmq("postsuper", "-r", "abcdef-1", "-e", "abcdef-1")
        self.assertEqual([order[0] for order in self.alpha.said], ["release", "now", "bounce"])
