"""Root only for the ports below 1024: bind first, then become the user of conf-qmq for good."""

from __future__ import annotations

import grp
import os
import pwd


class CannotDrop(Exception):
    """Root could not be given up; the text says why."""


def become(user: str) -> None:
    """
    Give up root for *user* in this process, its groups too, and prove that it can't come back.

    Does nothing for "" or if we are that user already; raises CannotDrop.
    """
    if not user or os.getuid() == pwd.getpwnam(user).pw_uid:
        return
    if os.getuid() != 0:
        raise CannotDrop(f"user = {user}: only root can become another user; start as root, or as {user}")
    entry = pwd.getpwnam(user)
    os.setgroups([g.gr_gid for g in grp.getgrall() if user in g.gr_mem])
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    try:
        os.setuid(0)
    except PermissionError:
        return
    raise CannotDrop(f"user = {user}: root could be had again")


def own(path: str, user: str) -> None:
    """Give a folder or socket to *user*, if we are root."""
    if user and os.getuid() == 0:
        entry = pwd.getpwnam(user)
        os.chown(path, entry.pw_uid, entry.pw_gid)
