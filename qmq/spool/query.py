"""
What people ask for when they look into a queue: the words of a query, and what they mean.

Pure. All words must match; of an entry's recipients those to do and those
bouncing count. What columns tell is said in SQL, what is in the record is
looked for there as octets first, so that little is unpacked in vain.

    id               queue ids, blanks between them: any of these
    sender           ADDRESS, @DOMAIN for all of that domain, <> for the null sender
    recipient        ADDRESS or @DOMAIN
    domain           a recipient's: example.org, or .example.org for those below it
    site             exactly so
    destination      a site, or a host or domain named in it; commas between several: any of these
    older            seconds of age, at least
    younger          seconds of age, less than
    larger, smaller  octets, more or less than
    attempts         so many or more
    attempts-below   fewer
    error            text in a recipient's latest reply, as in ``451 4.4.1 no answer``; the case of letters is no matter
    state            waiting, held, in-hand, bouncing, or moving (to another queue, and not held)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from qmq.mail import HELD, NULL_SENDER, QUEUE, Address, Entry, Octets, Reply, Seconds, address, value
from qmq.spool.record import BOUNCING_AT

WORDS = (
    "id", "sender", "recipient", "domain", "site", "destination", "older", "younger", "larger", "smaller",
    "attempts", "attempts-below", "error", "state",
)  # fmt: skip
STATES = ("waiting", "held", "in-hand", "bouncing", "moving")
# The site of what goes to another queue of this gateway.
_AFTER_QUEUE = b"queue;"

Value = int | float | bytes
FOREVER = float("inf")
# Above any size, any count; what SQLite can hold.
MOST = (1 << 62) - 1
_HIGHEST = (1 << 63) - 1

_SECONDS = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,9})?")
_COUNT = re.compile(r"[0-9]{1,18}")


@value
class Query:
    """
    A question, ready to be asked of many entries; a default means: not asked.

    *sites* are the sites that *destinations* stand for, once somebody has looked which there are.
    """

    ids: frozenset[bytes] | None = None
    sender: Address | None = None
    recipient: Address | None = None
    domain: bytes = b""
    sites: frozenset[bytes] | None = None
    destinations: tuple[bytes, ...] = ()
    born_by: Seconds = FOREVER  # not later
    born_after: Seconds = -FOREVER
    larger: Octets = -1
    smaller: Octets = MOST
    attempts: int = 0
    attempts_below: int = MOST
    error: bytes = b""  # ASCII letters in lower case, single blanks
    state: str = ""

    @property
    def tokens(self) -> list[tuple[bytes, int]]:
        """The tokens of the ids asked for; what is no id of ours is nobody's."""
        found = []
        for one in self.ids or ():
            peer, _, seq = one.rpartition(b"-")
            if re.fullmatch(rb"0|[1-9a-f][0-9a-f]{0,15}", seq) and int(seq, 16) <= _HIGHEST:
                found.append((peer, int(seq, 16)))
        return found

    @property
    def unpacks(self) -> bool:
        """Whether it asks for something that only the record knows."""
        return bool(
            self.sender is not None or self.recipient is not None or self.domain or self.error
            or self.state == "bouncing"
        )  # fmt: skip

    def where(self) -> tuple[str, list[Value]]:
        """
        What SQLite can say of it, and the values: nothing that matches is missed.

        Without *ids*, *sites*, *destinations* and what is in hand; and exact, unless the query unpacks.
        """
        table: list[tuple[bool, str, list[Value]]] = [
            (self.born_by < FOREVER, "born <= ?", [self.born_by]),
            (self.born_after > -FOREVER, "born > ?", [self.born_after]),
            (self.larger >= 0, "size > ?", [self.larger]),
            (self.smaller < MOST, "size < ?", [self.smaller]),
            (self.attempts > 0, "attempts >= ?", [self.attempts]),
            (self.attempts_below < MOST, "attempts < ?", [self.attempts_below]),
            (self.state == "waiting", "due < ?", [HELD]),
            (self.state == "held", "due >= ?", [HELD]),
            (
                self.state == "moving",
                "site >= ? AND site < ? AND (due IS NULL OR due < ?)",
                [QUEUE, _AFTER_QUEUE, HELD],
            ),
            (self.state == "bouncing", f"substr(record, {BOUNCING_AT + 1}, 4) <> zeroblob(4)", []),
            (bool(self.folded), "instr(CAST(lower(CAST(record AS TEXT)) AS BLOB), ?)", [self.folded]),
        ]
        table += [(True, "instr(record, ?)", [needle]) for needle in self.needles]
        asked = [(sql, values) for is_asked, sql, values in table if is_asked]
        return " AND ".join(sql for sql, _ in asked), [one for _, values in asked for one in values]

    @property
    def needles(self) -> list[bytes]:
        """Octets that a record must contain to match."""
        found = [one.local + one.domain for one in (self.sender, self.recipient) if one is not None]
        return [needle for needle in (*found, self.domain) if needle]

    @property
    def folded(self) -> bytes:
        """Octets that a record with its ASCII letters in lower case must contain; empty: any."""
        # The code is a number there, and a blank may be a line's end.
        words = [word for word in self.error.split() if len(word) > 5 or not word.isdigit()]
        return max(words, key=len, default=b"")

    def goes(self, site: bytes) -> bool:
        """Whether mail for that site is meant, as far as destinations say."""
        return not self.destinations or not self.names_of(site).isdisjoint(self.destinations)

    @staticmethod
    def names_of(site: bytes) -> frozenset[bytes]:
        """What a site may be called, in lower case: all of it, each hop, its place, its host or domain alone."""
        low = site.lower()
        names = {low}
        for hop in low.split():
            way, colon, place = hop.partition(b":")
            place = place if colon else way
            host = place.partition(b":")[0]
            if place.startswith(b"["):
                host = place[1:].partition(b"]")[0].removeprefix(b"ipv6:")
            elif place.startswith(b"/"):
                host = place
            names |= {hop, place, host.removesuffix(b".")}
        return frozenset(names)

    def matches(self, entry: Entry) -> bool:
        """Whether the entry is meant; its *due* is None if it is in hand."""
        return (
            (self.ids is None or entry.message.envelope.token.id in self.ids)
            and (self.sites is None or entry.site in self.sites)
            and self.goes(entry.site)
            and self.born_after < entry.born <= self.born_by
            and self.larger < entry.message.size < self.smaller
            and self.attempts <= entry.attempts < self.attempts_below
            and (self.sender is None or _same(self.sender, entry.message.envelope.sender))
            and self._to(entry)
            and (not self.error or any(self.error in said(reply) for reply in _replies(entry)))
            and (not self.state or self.state in states(entry))
        )

    def _to(self, entry: Entry) -> bool:
        if self.recipient is None and not self.domain:
            return True
        everybody = [*entry.message.envelope.recipients, *(one for one, _ in entry.bouncing)]
        return (self.recipient is None or any(_same(self.recipient, one) for one in everybody)) and (
            not self.domain or any(_in(self.domain, one.domain) for one in everybody)
        )


def parse(words: Mapping[str, str], now: Seconds) -> Query:
    """The query of these words at the wall time *now*; raises ValueError with a text for who asked."""
    if unknown := sorted(set(words) - set(WORDS)):
        raise ValueError(f"{unknown[0]!r} cannot be asked for; say {', '.join(WORDS)}")
    raw = {word: text.encode("utf-8", "surrogateescape") for word, text in words.items()}
    for word in ("id", "recipient", "domain", "destination", "error"):
        if word in raw and not raw[word].strip(b" ,"):
            raise ValueError(f"{word}: nothing is said")
    if (state := words.get("state", "")) not in {"", *STATES}:
        raise ValueError(f"state: {state!r} is none of {', '.join(STATES)}")
    if "error" in words:
        raw["error"] = _folded(words["error"])
    return Query(
        frozenset(raw["id"].split()) if "id" in raw else None,
        _sender(raw["sender"]) if "sender" in raw else None,
        address(raw["recipient"]) if "recipient" in raw else None,
        raw.get("domain", b"").lower().removesuffix(b"."),
        frozenset([raw["site"]]) if "site" in raw else None,
        tuple(_named(raw.get("destination", b""))),
        now - _seconds("older", words["older"]) if "older" in words else FOREVER,
        now - _seconds("younger", words["younger"]) if "younger" in words else -FOREVER,
        _count("larger", words["larger"]) if "larger" in words else -1,
        _count("smaller", words["smaller"]) if "smaller" in words else MOST,
        _count("attempts", words["attempts"]) if "attempts" in words else 0,
        _count("attempts-below", words["attempts-below"]) if "attempts-below" in words else MOST,
        raw.get("error", b""),
        state,
    )  # fmt: skip


def said(reply: Reply) -> bytes:
    """A reply as *error* looks through it."""
    return _folded(f"{reply.code} {reply.status} {reply.text}")


def states(entry: Entry) -> frozenset[str]:
    """The states an entry is in; *due* is None if it is in hand."""
    where = "in-hand" if entry.due is None else "held" if entry.due >= HELD else "waiting"
    moving = where != "held" and entry.site.startswith(QUEUE)
    return frozenset([where, *["bouncing"] * bool(entry.bouncing), *["moving"] * moving])


def _folded(text: str) -> bytes:
    return " ".join(text.split()).encode("utf-8", "surrogatepass").lower()


def _replies(entry: Entry) -> list[Reply]:
    return [*entry.last.values(), *(reply for _, reply in entry.bouncing)]


def _sender(raw: bytes) -> Address:
    return NULL_SENDER if raw in {b"", b"<>"} else address(raw)


def _named(raw: bytes) -> Iterator[bytes]:
    for part in raw.lower().split(b","):
        if part.strip():
            yield part.strip().removesuffix(b".")


def _seconds(word: str, text: str) -> Seconds:
    if not _SECONDS.fullmatch(text):
        raise ValueError(f"{word}: {text!r} is no number of seconds")
    return float(text)


def _count(word: str, text: str) -> int:
    if not _COUNT.fullmatch(text):
        raise ValueError(f"{word}: {text!r} is no number")
    return int(text)


def _same(wanted: Address, one: Address) -> bool:
    if wanted.domain and not wanted.local:
        return wanted.domain == one.domain
    return wanted == one


def _in(wanted: bytes, domain: bytes) -> bool:
    return domain.endswith(wanted) if wanted.startswith(b".") else domain == wanted
