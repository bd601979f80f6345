"""
Who is at the other end of a unix socket: a process of this gateway, or any other of its user.

Whoever may open a socket of ours has our user's rights already: its folder is for
that user alone. But what one of our own processes hands over has been looked at
where it came in, and need not be again; of an operator's program nobody knows.
"""

from __future__ import annotations

import os
import socket
import struct

_CREDENTIALS = struct.Struct("3i")  # struct ucred: the process id, user and group of whoever connected (unix(7))
# An orphan is init's child, and in a container that may be our main process.
_INIT = 1


def is_kin(peer: socket.socket, main: int) -> bool:
    """
    Whether a connection that we accepted was made by this process, by *main*, or by another child of *main*'s.

    *main* is the process id of the main process that started us; 0: there is none. In doubt the answer is no.
    """
    process = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[0]
    if process <= 0:  # of another namespace
        return False
    return process in {os.getpid(), main} or (main > _INIT and _parent_of(process) == main)


def _parent_of(process: int) -> int:
    """As /proc tells it; 0: it is gone, or we may not know."""
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0
