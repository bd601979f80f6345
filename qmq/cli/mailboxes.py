"""
The addresses in a To field, or in an argument of sendmail: ``Ann <a@x.org>, list: b@x.org, c@x.org;``.

Pure; RFC 5322 3.4 as far as an envelope needs it: names, comments, groups and
source routes are passed over, a quoted local part stays quoted. What has no
one meaning is refused, not guessed at: a wrong guess sends mail to a stranger.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# One kind of octet each: no two alternatives can begin at the same one.
_TOKEN = re.compile(
    rb"(?P<blank>[ \t\r\n]+)"
    rb'|(?P<word>"(?:[^"\\\r\n]|\\[^\r\n]|\r?\n(?=[ \t]))*"|\[[^\[\]\\\s]*\]|[^\s()<>\[\]:;,"\x00-\x1f\x7f]+)'
    rb"|(?P<mark>[<>,;:])"
    rb"|(?P<comment>\()"
)
_COMMENT = re.compile(rb"[^()\\]+|\\.|[()]", re.DOTALL)


class BadMailbox(ValueError):
    """A text that is no list of addresses; says what is wrong."""


def mailboxes(text: bytes) -> list[bytes]:
    """
    The addresses of a list, in order, as they stand between ``<`` and ``>`` in SMTP; without a domain where none is.

    ``<>`` is the empty address. Raises BadMailbox.
    """
    found: list[bytes] = []
    one = _One(text)
    for kind, token in _tokens(text):
        match token:
            case _ if kind == "blank":
                one.gap()
            case b"<":
                one.open()
            case b">":
                one.close()
            case b":" if one.within:
                one.route()
            case b":":
                one = _One(text)  # a group's name
            case b"," if one.within:
                one.word(token)  # in a source route; else it is told when the address is read
            case b"," | b";":
                found.extend(one.address())
                one = _One(text)
            case _:
                one.word(token)
    found.extend(one.address())
    return found


class _One:
    """One address as its tokens come."""

    def __init__(self, text: bytes) -> None:
        self.within = False  # between < and >
        self._text = text
        self._words: list[bytes] = []
        self._apart = False  # a blank stands behind the last word
        self._phrase = False  # words that a blank parts: a name, or nothing
        self._angle: bytes | None = None

    def gap(self) -> None:
        self._apart = True

    def word(self, word: bytes) -> None:
        if self._angle is not None:
            raise self._wrong()
        glued = not self._words or self._words[-1][-1:] in {b"@", b"."} or word[:1] in {b"@", b"."}
        self._phrase = self._phrase or (self._apart and not glued)
        self._words.append(word)
        self._apart = False

    def open(self) -> None:
        if self.within or self._angle is not None:
            raise self._wrong()
        self.within = True
        self._words = []
        self._phrase = False

    def close(self) -> None:
        if not self.within or self._phrase:
            raise self._wrong()
        self.within = False
        self._angle = self._spec() if self._words else b""

    def route(self) -> None:
        """``@a,@b:`` in front of the address: where it should go by is nobody's wish any more (RFC 5321 appendix C)."""
        if not all(part.startswith(b"@") for part in b"".join(self._words).split(b",")):
            raise self._wrong()
        self._words = []

    def address(self) -> list[bytes]:
        """The address, or none if nothing stood there."""
        if self.within or self._phrase:
            raise self._wrong()
        if self._angle is not None:
            return [self._angle]
        return [self._spec()] if self._words else []

    def _spec(self) -> bytes:
        spec = re.sub(rb"\r?\n", b"", b"".join(self._words))
        local, at, domain = spec.rpartition(b"@")
        if at and not (local and domain):
            raise self._wrong()
        bare = re.sub(rb'"(?:[^"\\]|\\.)*"', b"", local if at else domain)
        if b"@" in bare or b"," in bare or b"[" in bare or b"," in domain:
            raise self._wrong()
        return spec

    def _wrong(self) -> BadMailbox:
        return BadMailbox(f"{_shown(self._text)} is no list of addresses")


def _tokens(text: bytes) -> Iterator[tuple[str, bytes]]:
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise BadMailbox(f"{_shown(text)} is no list of addresses")
        at = match.end()
        if match.lastgroup == "comment":
            at = _behind_comment(text, at)
            yield "blank", b""
        else:
            assert match.lastgroup is not None  # each alternative is a group
            yield match.lastgroup, match[0]


def _behind_comment(text: bytes, at: int) -> int:
    depth = 1
    while depth:
        match = _COMMENT.match(text, at)
        if match is None:
            raise BadMailbox(f"{_shown(text)}: a comment without end")
        depth += {b"(": 1, b")": -1}.get(match[0], 0)
        at = match.end()
    return at


def _shown(text: bytes) -> str:
    shown = " ".join(text.decode("utf-8", "replace").split())
    return repr(shown if len(shown) <= 80 else shown[:77] + "...")
