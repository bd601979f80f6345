"""
Macros of SPF records and explanations (RFC 7208 7).

Pure: a text is read once into a template; what the letters mean is the
caller's. A meaning is text whose letters stand for octets (latin-1), so that
what a client said in any character set goes in and comes out whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote

from qmq.mail import value

# RFC 7208 7.1: macro-expand, or macro-literals (visible characters but %).
_PIECE = re.compile(r"%\{([A-Za-z])([0-9]*)([rR]?)([.\-+,/_=]*)\}|%([%_-])|([!-$&-~]+)")
_PIECE_OF_TEXT = re.compile(r"%\{([A-Za-z])([0-9]*)([rR]?)([.\-+,/_=]*)\}|%([%_-])|([ -$&-~]+)")
_STAND_FOR = {"%": "%", "_": " ", "-": "%20"}
_LETTERS = frozenset("slodiphv")
_LETTERS_OF_TEXT = _LETTERS | frozenset("crt")  # RFC 7208 7.2: only in explanations
# A name has at most 127 labels, and an address 32 nibbles: more parts than this are all.
_ALL = 1000


class BadMacro(ValueError):
    """No macro-string; the text says what is wrong with it."""


@value
class Macro:
    """One macro-expand with a letter, as ``%{l2r-}``."""

    letter: str
    parts: int  # how many of the rightmost; 0: all
    reverse: bool
    delimiters: str  # "": neither parted nor joined
    escaped: bool  # for URLs


Template = tuple[str | Macro, ...]


def template(text: str, *, explanation: bool = False) -> Template:
    """
    What a macro-string says; raises BadMacro.

    An *explanation* may have blanks, and the letters c, r and t.
    """
    piece, letters = (_PIECE_OF_TEXT, _LETTERS_OF_TEXT) if explanation else (_PIECE, _LETTERS)
    made: list[str | Macro] = []
    at = 0
    while at < len(text):
        found = piece.match(text, at)
        if found is None:
            raise BadMacro(f"{text[at : at + 20]!r} is no macro and no plain text")
        letter, digits, reverse, delimiters, sign, plain = found.groups()
        if plain:
            made.append(plain)
        elif sign:
            made.append(_STAND_FOR[sign])
        else:
            if letter.lower() not in letters:
                raise BadMacro(f"there is no macro {found.group()[:20]!r} here")
            parted = digits or reverse or delimiters
            made.append(
                Macro(
                    letter.lower(),
                    _parts(digits),
                    bool(reverse),
                    (delimiters or ".") if parted else "",
                    letter.isupper(),
                )
            )
        at = found.end()
    return tuple(made)


def _parts(digits: str) -> int:
    if not digits:
        return 0
    number = digits.lstrip("0")
    if not number:
        raise BadMacro("a macro of 0 parts")  # RFC 7208 7.1: the value MUST be nonzero
    return int(number) if len(number) <= 3 else _ALL


def ends_in_macro(text: str) -> bool:
    """Is the last piece of a macro-string that *template* took no plain text? Not of an empty one."""
    pieces = list(_PIECE.finditer(text))
    return bool(pieces) and pieces[-1][6] is None


def letters(of: Template) -> frozenset[str]:
    """The letters, in lower case, that a template needs meanings for."""
    return frozenset(piece.letter for piece in of if isinstance(piece, Macro))


def expand(of: Template, meanings: Mapping[str, str]) -> str:
    """The text of a template; *meanings* has all its letters."""
    return "".join([piece if isinstance(piece, str) else _meaning(piece, meanings[piece.letter]) for piece in of])


def _meaning(macro: Macro, text: str) -> str:
    if delimiters := macro.delimiters:
        one = delimiters[0]
        parts = text.translate(dict.fromkeys(map(ord, delimiters), one)).split(one)
        if macro.reverse:
            parts.reverse()
        text = ".".join(parts[-macro.parts :])
    return quote(text.encode("latin-1", "replace"), safe="-._~") if macro.escaped else text
