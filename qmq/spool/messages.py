"""What is fresh: messages that lie in the journal alone, and in memory."""

from __future__ import annotations

from qmq.mail import MemoryBody, Octets, Token
from qmq.spool.journal import Fresh
from qmq.spool.table import Counts, Keep, revived, with_body


class Messages:
    """
    These, *by_number* of their entries, in the order in which they came, and by their *tokens*.

    *tag* is the peer whose tokens are the store's own.
    """

    def __init__(self, tag: bytes) -> None:
        self._tag = tag
        self.by_number: dict[int, Fresh] = {}
        self.tokens: dict[tuple[bytes, int], Fresh] = {}
        self._octets: Octets = 0
        self._ours: dict[int, None] = {}  # numbers of the store's own tokens

    def add(self, one: Fresh) -> None:
        """It came."""
        self.tokens[one.peer, one.seq] = one
        for row in one.rows:
            self.by_number[row[0]] = one
            self._octets += row[6]
        if one.peer == self._tag:
            self._ours[one.seq] = None

    def remove(self, number: int) -> bool:
        """The entry of that number went; whether it was one of these."""
        one = self.by_number.pop(number, None)
        if one is None:
            return False
        left = False
        for row in one.rows:
            if row[0] == number:
                self._octets -= row[6]
            elif row[0] in self.by_number:
                left = True
        if not left:
            del self.tokens[one.peer, one.seq]
            self._ours.pop(one.seq, None)
        return True

    def since(self, generation: int) -> int:
        """The generation of the first of them; *generation* if there is none."""
        for one in self.by_number.values():
            return one.generation
        return generation

    def keeps(self) -> list[Keep]:
        """What is left of them, as a Table takes it."""
        keeps = []
        for one in dict.fromkeys(self.by_number.values()):
            body = MemoryBody(one.body)
            entries = [
                with_body(revived((number, peer, seq, site, None, 0, born, size, place, record)), body)
                for number, peer, seq, _, site, born, size, place, record in one.rows
                if number in self.by_number
            ]
            keeps.append(Keep(Token(one.peer, one.seq), body, entries, one.place, frozenset()))
        return keeps

    def count(self, others: Counts, into: Counts) -> None:
        """*into* says how much these and the *others* are."""
        into.messages, into.octets = others.messages + len(self.by_number), others.octets + self._octets
        into.lowest, into.oldest, into.birth = others.lowest, others.oldest, others.birth
        if self._ours:
            into.lowest = min(into.lowest, *self._ours)
        for number, one in self.by_number.items():
            if number < into.oldest:
                into.oldest, into.birth = number, one.rows[0][5]
            break
