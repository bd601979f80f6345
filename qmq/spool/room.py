"""
How much of a disk a store may take.

Three bounds: octets and inodes that must stay free on the device, and what
the store's own messages may take. Past one of them nothing is kept; what is
there goes out as ever, and with room mail is taken again.
"""

from __future__ import annotations

import os

from qmq.mail import Octets

UNITS = ("", "K", "M", "G", "T")


class Room:
    """
    The bounds of the store in *folder*.

    *reserve*: octets to stay free on its device; *inodes*: likewise; *share*:
    octets that the store itself may take, or (a float) that part of the device.
    None: no such bound.
    """

    def __init__(self, folder: str, *, reserve: Octets, inodes: int, share: Octets | float | None) -> None:
        self._folder = folder
        self.reserve, self.inodes, self.share = reserve, inodes, share

    def full(self, used: Octets) -> str:
        """Which bound is hit by a store that takes *used* octets, for the operator; empty: none. Raises OSError."""
        status = os.statvfs(self._folder)
        unit = status.f_frsize
        if status.f_bavail * unit < self.reserve:
            free, reserve = amount(status.f_bavail * unit), amount(self.reserve)
            return f"{self._folder}: {free} of the device are free, {reserve} are its reserve"
        # Some file systems count no inodes.
        if status.f_files and status.f_favail < self.inodes:
            return f"{self._folder}: {status.f_favail} inodes of the device are free, {self.inodes} are its reserve"
        if self.share is None:
            return ""
        share = int(self.share * status.f_blocks * unit) if isinstance(self.share, float) else self.share
        if used >= share:
            return f"{self._folder}: it takes {amount(used)}, its share of the disk is {amount(share)}"
        return ""


def amount(octets: Octets) -> str:
    """Octets for people: ``12.5M``."""
    number, unit = float(octets), 0
    while number >= 1024 and unit < len(UNITS) - 1:
        number, unit = number / 1024, unit + 1
    return f"{number:.3g}{UNITS[unit]}" if unit and number < 100 else f"{number:.0f}{UNITS[unit]}"
