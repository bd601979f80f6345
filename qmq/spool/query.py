"""
What people ask for when they look into a queue.

Pure. ``site=HOST``, ``sender=ADDRESS``, ``recipient=ADDRESS`` and ``id=QUEUEID``; ``@DOMAIN``
means every address of that domain. All words must match.
"""

from __future__ import annotations

from collections.abc import Mapping

from qmq.mail import Address, Entry, address, value

WORDS = frozenset({"site", "sender", "recipient", "id"})


@value
class Query:
    """A question, ready to be asked of many entries; None: not asked."""

    site: bytes | None = None
    sender: Address | None = None
    recipient: Address | None = None
    id: bytes | None = None

    @property
    def needles(self) -> list[bytes]:
        """What a record must contain to match: a cheap first look, before it is unpacked."""
        return [one.local + one.domain for one in (self.sender, self.recipient) if one is not None]

    def matches(self, entry: Entry) -> bool:
        """Whether the entry is meant; of its recipients those to do and those bouncing count."""
        envelope = entry.message.envelope
        return (
            (self.site is None or entry.site == self.site)
            and (self.id is None or envelope.token.id == self.id)
            and (self.sender is None or _same(self.sender, envelope.sender))
            and (
                self.recipient is None
                or any(_same(self.recipient, one) for one in envelope.recipients)
                or any(_same(self.recipient, one) for one, _ in entry.bouncing)
            )
        )


def parse(words: Mapping[str, str]) -> Query:
    """The query of these words; raises ValueError with a text for who asked."""
    if unknown := sorted(set(words) - WORDS):
        raise ValueError(f"{unknown[0]!r} cannot be asked for; say {', '.join(sorted(WORDS))}")
    raw = {word: text.encode("utf-8", "surrogateescape") for word, text in words.items()}
    return Query(
        raw.get("site"),
        address(raw["sender"]) if "sender" in raw else None,
        address(raw["recipient"]) if "recipient" in raw else None,
        raw.get("id"),
    )


def _same(wanted: Address, one: Address) -> bool:
    if wanted.domain and not wanted.local:
        return wanted.domain == one.domain
    return wanted == one
