"""The numbers of a process's hand-overs that are in doubt."""

from __future__ import annotations

from collections.abc import Callable

from qmq.mail import Token


class OpenTokens:
    """
    The tokens of this process whose fate is open: given at MAIL, closed when their transaction is.

    The lowest of them, or of those stored, travels with each hand-over: below
    it an instance may forget what it has taken.
    """

    def __init__(self, next_token: Callable[[], Token], lowest_stored: Callable[[], int]) -> None:
        self._next = next_token
        self._stored = lowest_stored
        self._open: dict[int, None] = {}  # in order: numbers only grow

    def begin(self) -> Token:
        """A new token, open until `end`."""
        token = self._next()
        self._open[token.seq] = None
        return token

    def end(self, token: Token) -> None:
        """Its transaction is over: answered, stored or given up."""
        self._open.pop(token.seq, None)

    def lowest(self) -> int:
        """The lowest number in doubt."""
        stored = self._stored()
        for seq in self._open:
            return min(seq, stored)
        return stored
