from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from qmq.mail import Address
from qmq.spool.record import pack_addresses
from qmq.spool.tombstones import Tombstones

ANN, BOB = Address(b"ann", b"example.org"), Address(b"bob", b"example.org")


class TombstonesTests(SynchronousTestCase):
    def test_beside(self) -> None:
        """Recipients of a token that were settled one after the other are all remembered, once each."""
        stones = Tombstones()

        for some in ([ANN], [BOB], [ANN]):
            self.assertTrue(stones.bury(b"peer", 1, some))

        self.assertEqual(stones.known(b"peer", 1), pack_addresses([ANN, BOB]))
        self.assertEqual(stones.count, 1)
        self.assertIsNone(stones.known(b"peer", 2))
        self.assertIsNone(stones.known(b"other", 1))

    def test_out_of_order(self) -> None:
        """Tokens settled in any order go by their number."""
        stones = Tombstones()
        for seq in (9, 2, 7, 4):
            stones.bury(b"peer", seq, [ANN])

        stones.told(b"peer", 7)

        self.assertEqual([seq for seq in range(10) if stones.known(b"peer", seq)], [7, 9])
        self.assertEqual(stones.forgotten(), [(b"peer", 7, 7)])
        self.assertEqual(stones.forgotten(), [])

    def test_never_back(self) -> None:
        """What a peer told once it cannot take back."""
        stones = Tombstones()
        stones.told(b"peer", 7)
        stones.told(b"peer", 3)

        self.assertIsNone(stones.bury(b"peer", 6, [ANN]))
        self.assertEqual(stones.bury(b"peer", 7, [ANN]), pack_addresses([ANN]))

    def test_too_many(self) -> None:
        """What goes at once because there are too many is not to be written down either."""
        stones = Tombstones(2)
        for seq in (8, 9):
            stones.bury(b"peer", seq, [ANN])

        self.assertIsNone(stones.bury(b"peer", 7, [ANN]))
        self.assertEqual((stones.count, stones.evicted), (2, 1))

    def test_told_again(self) -> None:
        """What could not be written down is told again, with what came since."""
        stones = Tombstones()
        stones.told(b"peer", 7)
        gone = stones.forgotten()
        stones.told(b"peer", 9)
        stones.repeat(gone)

        self.assertEqual(stones.forgotten(), [(b"peer", 9, 9)])

    def test_load(self) -> None:
        """What a store holds is bounded as what comes is."""
        stones = Tombstones(3)
        stones.load([(b"peer", 2)], [(b"peer", seq, pack_addresses([ANN])) for seq in (8, 6, 4, 2)])

        self.assertEqual((stones.count, stones.evicted), (3, 1))
        self.assertEqual([seq for seq in range(9) if stones.known(b"peer", seq)], [4, 6, 8])
        self.assertEqual(stones.forgotten(), [(b"peer", 3, 2)])
        self.assertIsNone(stones.bury(b"peer", 1, [ANN]))
