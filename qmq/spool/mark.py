"""
A file elsewhere that remembers that there is a store in a folder.

A store that has been there before and is not is no new one: its device is not mounted.
"""

from __future__ import annotations

import os

from qmq.interfaces import SpoolTrouble


class Mark:
    """The file at *path* speaks of the store in *folder*; no path: nothing is remembered."""

    def __init__(self, path: str, folder: str) -> None:
        self._path, self._folder = path, folder

    def look(self, store: str) -> None:
        """Raises SpoolTrouble if the file *store* was in the folder at the last start, and is not."""
        if not self._path or not os.path.exists(self._path) or os.path.exists(store):
            return
        with open(self._path, encoding="utf-8") as mark:
            if mark.read().rstrip("\n") == self._folder:
                raise SpoolTrouble(
                    f"{self._folder}: the store that was there is gone; is its device mounted? "
                    f"To begin with an empty one remove {self._path}"
                )

    def set(self) -> None:
        """Remember that it is there."""
        if self._path:
            with open(self._path, "w", encoding="utf-8") as mark:
                mark.write(f"{self._folder}\n")
