"""
Stands where the first main process stood, after a restart by hand-over.

Whoever started that one (a terminal, a container, svscan) watches its process
id: here it goes on, as small as can be. It passes signals on to the main
process, adopts the next one at the next restart, and ends with the last, with
that one's exit code. Under systemd there is none: it is told the new process.
"""

from __future__ import annotations

import ctypes
import os
import signal

# Blocked by whoever becomes this process, until it listens to them.
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM)
_PR_SET_CHILD_SUBREAPER = 36


def adopt() -> None:
    """From now on what our children leave behind comes to us, not to init (prctl(2), PR_SET_CHILD_SUBREAPER)."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children() -> list[int]:
    """Our children's process ids."""
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as listed:
        return [int(pid) for pid in listed.read().split()]


def main() -> int:
    """Wait for the last child; its exit code."""
    adopt()
    ending: list[int] = []

    def pass_on(number: int, _: object) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            ending[:] = [number]
        for pid in children():
            os.kill(pid, number)

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    code = 0
    while True:
        try:
            _, status = os.wait()
        except ChildProcessError:
            return code
        code = os.waitstatus_to_exitcode(status)
        if ending:  # those adopted just now have not heard it
            for pid in children():
                os.kill(pid, ending[0])


if __name__ == "__main__":
    code = main()
    # As a shell has it for who died of a signal.
    raise SystemExit(code if code >= 0 else 128 - code)
