from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qmq.mail import Entry, Reply
from qmq.queue.schedule import Quadratic
from qmq.queue.settle import Settled, settle, span
from tests.queue.fakes import LATER, NEVER, OK, message

BORN, WEEK = 1_000_000.0, 604800.0


def entry(*recipients: str) -> Entry:
    """A fresh one."""
    return Entry(1, message(*recipients), b"example.org", BORN)


def attempt(e: Entry, *replies: Reply, after: float = 0, took: float = 0, lifetime: float = WEEK) -> Settled:
    """Settle it after an attempt that started so long after birth."""
    return settle(e, replies, BORN + after, BORN + after + took, Quadratic(), lifetime)


class SettleTests(SynchronousTestCase):
    def test_delivered(self) -> None:
        """A delivered recipient leaves, and the entry with the last of them."""
        e = entry("a@example.org")

        settled = attempt(e, OK)

        self.assertEqual([r for r, _ in settled.delivered], [*message("a@example.org").envelope.recipients])
        self.assertEqual(e.message.envelope.recipients, ())
        self.assertEqual(e.message.envelope.token, message().envelope.token)
        self.assertEqual((e.due, e.bouncing, e.last), (None, (), {}))

    def test_each_its_own(self) -> None:
        """Of three recipients one leaves, one stays with the host's words, one is to be bounced."""
        e = entry("a@example.org", "b@example.org", "c@example.org")
        a, b, c = e.message.envelope.recipients

        settled = attempt(e, OK, LATER, NEVER)

        self.assertEqual(settled.delivered, ((a, OK),))
        self.assertEqual(settled.deferred, ((b, LATER),))
        self.assertEqual(settled.failed, ((c, NEVER),))
        self.assertEqual(e.message.envelope.recipients, (b,))
        self.assertEqual(e.last, {b: LATER})
        self.assertEqual(e.bouncing, ((c, NEVER),))
        self.assertEqual((e.due, e.attempts, e.generation), (BORN + 400, 1, 1))

    def test_schedule_from_start(self) -> None:
        """A host that takes five minutes to fail does not slow the schedule; a later one is tried at once."""
        e, late = entry(), entry()

        attempt(e, LATER, took=300)
        attempt(late, LATER, took=1000)

        self.assertEqual(e.due, BORN + 400)
        self.assertEqual(late.due, BORN + 1001)

    def test_expired(self) -> None:
        """A temporary failure of an attempt after the lifetime is final, says so, and keeps the host's words."""
        e = entry()

        settled = attempt(e, LATER, after=WEEK + 1)

        (_, reply), = settled.failed  # fmt: skip
        self.assertEqual((reply.code, reply.status, reply.mta), (554, "5.4.7", LATER.mta))
        self.assertEqual(reply.text, "greylisted\nstill not delivered after 7 days, giving up")
        self.assertEqual(e.bouncing, settled.failed)

    def test_expired_during(self) -> None:
        """An attempt that started within the lifetime is followed by another, however long it took."""
        e = entry()

        settled = attempt(e, LATER, after=WEEK - 1, took=600)

        self.assertEqual(settled.failed, ())
        self.assertEqual(len(settled.deferred), 1)

    def test_one_bounce_at_a_time(self) -> None:
        """While a bounce waits to be taken over, another recipient's failure waits as well."""
        e = entry("a@example.org", "b@example.org")
        attempt(e, NEVER, LATER)

        settled = attempt(e, NEVER, after=500)

        self.assertEqual((settled.failed, e.generation), ((), 1))
        self.assertEqual(len(e.bouncing), 1)
        self.assertEqual(len(e.message.envelope.recipients), 1)

    def test_too_few_replies(self) -> None:
        """A recipient that the hop said nothing of is deferred, not lost."""
        e = entry("a@example.org", "b@example.org")

        settled = attempt(e, OK)

        self.assertEqual(len(settled.deferred), 1)
        self.assertEqual(len(e.message.envelope.recipients), 1)

    def test_span(self) -> None:
        """Times are told as people tell them."""
        self.assertEqual(
            [span(s) for s in (-3, 59, 120, 1600, 7200, 90000, 608400)],
            ["0 seconds", "59 seconds", "2 minutes", "26 minutes", "2 hours", "25 hours", "7 days"],
        )

    @given(
        st.lists(st.sampled_from([OK, LATER, NEVER]), min_size=1, max_size=6),
        st.floats(-1e6, 1e7), st.floats(0, 1e4), st.floats(0, 1e6), st.booleans(),
    )  # fmt: skip
    def test_nobody_is_lost(self, replies: list[Reply], after: float, took: float, life: float, owing: bool) -> None:
        """Whatever the replies and the clock: each recipient is in exactly one place, and who stays has a time."""
        names = [f"r{i}@example.org" for i in range(len(replies))]
        e = entry(*names)
        before = e.message.envelope.recipients
        old = ((message("old@example.org").envelope.recipients[0], NEVER),) if owing else ()
        e.bouncing = old

        settled = attempt(e, *replies, after=after, took=took, lifetime=life)

        left = e.message.envelope.recipients
        told = [r for r, _ in (*settled.delivered, *settled.deferred, *settled.failed)]
        self.assertEqual(sorted(told, key=bytes), sorted(before, key=bytes))
        self.assertEqual([r for r, _ in settled.deferred], list(left))
        self.assertEqual(list(e.last), list(left))
        self.assertEqual(e.bouncing, settled.failed if not owing else old)
        self.assertTrue(all(reply.permanent for _, reply in settled.failed))
        self.assertEqual(e.due is None, not left)
        if e.due is not None:
            self.assertTrue(e.due >= BORN + after + took + 1 - 1e-3)
        if after <= life:
            self.assertEqual(len(settled.failed), 0 if owing else replies.count(NEVER))
