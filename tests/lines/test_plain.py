from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qmq.lines import plain
from qmq.mail import Address
from qmq.session import Session

SESSION = Session("192.0.2.1", 4711, "192.0.2.25", 25, helo=b"client.example", number=7)
PLAIN = Address(b"a", b"example.org")
# Ordinary ones, some with what must be quoted, some too long to stand whole.
PARTS = st.one_of(st.from_regex(rb"[a-z=.@]{0,8}", fullmatch=True), st.binary(max_size=8), st.just(b"x" * 990))


class PlainTests(SynchronousTestCase):
    @given(st.builds(Address, PARTS, PARTS), st.builds(Address, PARTS, PARTS), PARTS)
    @example(Address(b"x" * 990, b"y" * 8), PLAIN, b"q1-2a")  # what is just not too long to stand as it is...
    @example(Address(b"x" * 990, b"y" * 7), PLAIN, b"q1-2a")
    @example(PLAIN, Address(b"x" * 990, b"y" * 8), b"q1-2a")
    @example(PLAIN, PLAIN, b"x" * 1001)
    def test_accepted_alike(self, sender: Address, recipient: Address, queue_id: bytes) -> None:
        """Whoever is the only recipient stands in the line of an accepted message as one of several does."""
        line = plain.accepted(queue_id, SESSION, sender, [recipient], 4096)

        of_two = plain.accepted(queue_id, SESSION, sender, [recipient, recipient], 4096)
        before, _, behind = of_two.rpartition(" recipients=2 to=")
        twice = behind.removesuffix(" size=4096")
        each = twice[: len(twice) // 2]
        self.assertEqual(twice, f"{each},{each}")
        self.assertEqual(line, f"{before} recipients=1 to={each} size=4096")
