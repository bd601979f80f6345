"""Ages, sizes and counts as people like to read them; pure."""

from __future__ import annotations

from qmq.mail import Octets, Seconds


def age(seconds: Seconds) -> str:
    """``12s``, ``5m``, ``3h``, ``2d``: the largest unit of which there is a whole one."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"


def took(seconds: Seconds | None) -> str:
    """A duration that was measured; empty if none was."""
    return "" if seconds is None else f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def size(octets: Octets | None) -> str:
    """``512B``, ``3.9K``, ``50M``; empty if it is not known."""
    if octets is None:
        return ""
    amount = float(octets)
    for unit in "BKMG":
        if amount < 1024:
            return f"{amount:.0f}{unit}" if unit == "B" or amount >= 10 else f"{amount:.1f}{unit}"
        amount /= 1024
    return f"{amount:.1f}T"


def messages(count: int) -> str:
    """``1 message``, ``2 messages``."""
    return f"{count} message{'' if count == 1 else 's'}"
