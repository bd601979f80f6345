"""
Tokens remembered after delivery, so that a hand-over repeated in doubt is known again.

In memory, loaded from the store at start: a fresh token costs one look-up and
no SELECT. A peer tells with each hand-over the lowest number that is still in
doubt there (*low*); below it nothing needs to be remembered.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heappop, heappush

from qmq.mail import Address
from qmq.spool.record import pack_addresses, unpack_addresses

LIMIT = 1_000_000


class _Peer:
    """What one peer's tokens left behind; *seqs* is a heap of the keys of *recipients*."""

    __slots__ = ("low", "recipients", "seqs")

    def __init__(self) -> None:
        self.low = 0
        self.recipients: dict[int, bytes] = {}
        self.seqs: list[int] = []


class Tombstones:
    """
    All peers' tombstones, *limit* at most.

    Beyond it the lowest numbers of the peer with the most go, so that a peer
    which never tells a *low* forgets its own tokens, not another's; *evicted*
    counts them, for each may become a second delivery.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._peers: dict[bytes, _Peer] = {}
        self._forgotten: dict[bytes, int] = {}
        self.count = 0
        self.evicted = 0

    def load(self, lows: Iterable[tuple[bytes, int]], tombstones: Iterable[tuple[bytes, int, bytes]]) -> None:
        """Begin with what the store holds."""
        self._peers.clear()
        for peer, low in lows:
            self._peer(peer).low = low
        for peer, seq, recipients in tombstones:
            self._peer(peer).recipients[seq] = recipients
        for each in self._peers.values():
            each.seqs = list(each.recipients)
            heapify(each.seqs)
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
        seqs = found.seqs
        while seqs and seqs[0] < low:
            del found.recipients[heappop(seqs)]
            self.count -= 1

    def bury(self, peer: bytes, seq: int, addresses: Iterable[Address]) -> bytes | None:
        """Remember these of a token beside those of before; all, as known gives them, None: there is no doubt of it."""
        found = self._peers.get(peer) or self._peer(peer)
        if seq < found.low:
            return None
        before = found.recipients.get(seq)
        if before is not None:
            addresses = dict.fromkeys((*unpack_addresses(before), *addresses))
        found.recipients[seq] = packed = pack_addresses(addresses)
        if before is None:
            heappush(found.seqs, seq)
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

    def _peer(self, peer: bytes) -> _Peer:
        return self._peers.setdefault(peer, _Peer())

    def _evict(self) -> None:
        while self.count > self._limit:
            name, most = max(self._peers.items(), key=lambda item: len(item[1].recipients))
            # Some at a time, so that looking for the peer with the most is rare.
            for _ in range(min(len(most.seqs), 1 + self._limit // 100)):
                seq = heappop(most.seqs)
                del most.recipients[seq]
                self.count -= 1
                self.evicted += 1
            self._forgotten[name] = max(seq + 1, self._forgotten.get(name, 0))
