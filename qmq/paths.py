"""Paths of unix sockets, as the kernel takes them."""

from __future__ import annotations

import os


def reachable(path: str) -> str:
    """The path of a unix socket, short enough for the kernel (108 octets)."""
    if len(os.fsencode(path)) < 104:
        return path
    # Through a descriptor of the folder, which stays open for the process's life.
    folder, name = os.path.split(path)
    return f"/proc/self/fd/{_folder(folder)}/{name}"


_folders: dict[str, int] = {}


def _folder(path: str) -> int:
    if path not in _folders:
        _folders[path] = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    return _folders[path]
