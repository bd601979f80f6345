"""
Tokens remembered after delivery, so that a hand-over repeated in doubt is known again.

In memory, loaded from the store at start: a fresh token costs one look-up and
no SELECT. A peer tells with each hand-over the lowest number that is still in
doubt there (*low*); below it nothing needs to be remembered.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush

from qmq.mail import Address
from qmq.spool.record import pack_addresses, unpack_addresses

LIMIT = 1_000_000


class Stones:
    """What one peer's tokens left behind: the *recipients* of each, by number; below *low* nobody is in doubt."""

    __slots__ = ("_seqs", "low", "recipients")

    def __init__(self) -> None:
        self.low = 0
        self.recipients: dict[int, bytes] = {}
        self._seqs: list[int] = []  # a heap of these numbers

    def put(self, seq: int, recipients: bytes) -> bool:
        """Remember these of a token, in place of what was; whether there was nothing."""
        new = seq not in self.recipients
        self.recipients[seq] = recipients
        if new:
            heappush(self._seqs, seq)
        return new

    def drop(self, below: int) -> int:
        """Forget the numbers below; how many there were. It costs what is dropped, not what stays."""
        seqs, before = self._seqs, len(self._seqs)
        while seqs and seqs[0] < below:
            del self.recipients[heappop(seqs)]
        return before - len(seqs)

    def drop_lowest(self, most: int) -> tuple[int, int]:
        """Forget so many at most; how many there were, and the number below which there are none any more."""
        seqs = self._seqs
        lowest = [heappop(seqs) for _ in range(min(len(seqs), most))]
        for seq in lowest:
            del self.recipients[seq]
        return len(lowest), lowest[-1] + 1


class Tombstones:
    """
    All peers' tombstones, *limit* at most.

    Beyond it the lowest numbers of the peer with the most go, so that a peer
    which never tells a *low* forgets its own tokens, not another's; *evicted*
    counts them, for each may become a second delivery.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._peers: dict[bytes, Stones] = {}
        self._forgotten: dict[bytes, int] = {}
        self.count = 0
        self.evicted = 0

    def load(self, lows: Iterable[tuple[bytes, int]], tombstones: Iterable[tuple[bytes, int, bytes]]) -> None:
        """Begin with what the store holds."""
        self._peers.clear()
        for peer, low in lows:
            self._peer(peer).low = low
        for peer, seq, recipients in tombstones:
            self._peer(peer).put(seq, recipients)
        self.count = sum(len(each.recipients) for each in self._peers.values())
        self._evict()

    def known(self, peer: bytes, seq: int) -> bytes | None:
        """Recipients of a token as pack_addresses makes them; None: not remembered."""
        found = self._peers.get(peer)
        return None if found is None else found.recipients.get(seq)

    def told(self, peer: bytes, low: int) -> None:
        """The peer is no longer in doubt about any number below *low*."""
        found = self._peers.get(peer) or self._peer(peer)
        if low <= found.low:
            return
        found.low = self._forgotten[peer] = low
        self.count -= found.drop(low)

    def bury(self, peer: bytes, seq: int, addresses: Iterable[Address]) -> bytes | None:
        """Remember these of a token beside those of before; all, as known gives them, None: there is no doubt of it."""
        found = self._peers.get(peer) or self._peer(peer)
        if seq < found.low:
            return None
        before = found.recipients.get(seq)
        if before is not None:
            addresses = dict.fromkeys((*unpack_addresses(before), *addresses))
        packed = pack_addresses(addresses)
        if found.put(seq, packed):
            self.count += 1
            if self.count > self._limit:
                self._evict()
                return found.recipients.get(seq)
        return packed

    def forgotten(self) -> list[tuple[bytes, int, int]]:
        """Since last asked: peer, the number below which its tombstones went, its *low*."""
        gone = [(peer, below, self._peers[peer].low) for peer, below in self._forgotten.items()]
        self._forgotten.clear()
        return gone

    def repeat(self, gone: Iterable[tuple[bytes, int, int]]) -> None:
        """These could not be written down; tell them again."""
        for peer, below, _ in gone:
            self._forgotten[peer] = max(below, self._forgotten.get(peer, 0))

    def _peer(self, peer: bytes) -> Stones:
        return self._peers.setdefault(peer, Stones())

    def _evict(self) -> None:
        while self.count > self._limit:
            name, most = max(self._peers.items(), key=lambda item: len(item[1].recipients))
            # Some at a time, so that looking for the peer with the most is rare.
            gone, below = most.drop_lowest(1 + self._limit // 100)
            self.count -= gone
            self.evicted += gone
            self._forgotten[name] = max(below, self._forgotten.get(name, 0))
