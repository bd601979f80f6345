"""Where the targets keep their queues: a folder on a disk, or an ext4 in memory, on which each sync really runs."""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from .load import Unavailable

_IMAGE_OCTETS = 8 << 30  # sparse: what is not written takes nothing
_INODES = 1_000_000  # peers keep a file or three for each message


def filesystem(folder):
    """Its name, such as ext4."""
    found = subprocess.run(["df", "--output=fstype", folder], capture_output=True, text=True, check=False)
    return found.stdout.rpartition("\n")[0].rpartition("\n")[2] or "?"


def place(folder=None, ram=None):
    """
    (context manager of a folder, what it is on in words), as asked for by --spool and --ram.

    Without either: in memory for root, else in the folder for temporary files.
    """
    if ram or (ram is None and folder is None and os.geteuid() == 0):
        return in_memory(), "ext4 on a loop device in memory: each sync runs, the medium is fast"
    kind = filesystem(folder or os.environ.get("TMPDIR", "/tmp"))
    if kind in {"tmpfs", "ramfs"}:
        kind += ", where no sync does anything: rates are too good; say --spool DIR"
    return on_disk(folder), kind


@contextlib.contextmanager
def in_memory():
    """
    An ext4 on a loop device whose file is in /dev/shm (root); removed at the end.

    Its syncs cost what they cost in the kernel and in the file system, only the medium is fast: so what a
    target does is measured, not a disk.
    """
    if os.geteuid() != 0:
        raise Unavailable("--ram needs root, to mount; use --spool DIR")
    folder = tempfile.mkdtemp(prefix="qmq-spool-")
    image = f"/dev/shm/{os.path.basename(folder)}.img"
    try:
        with open(image, "wb") as file:
            file.truncate(_IMAGE_OCTETS)
        for words in (
            [
                "mkfs.ext4",
                "-q",
                "-F",
                "-N",
                str(_INODES),
                "-m",
                "0",
                "-E",
                "lazy_itable_init=0,lazy_journal_init=0",
                image,
            ],
            ["mount", "-o", "loop,noatime", image, folder],
        ):
            try:
                subprocess.run(words, check=True, capture_output=True, text=True)
            except (OSError, subprocess.CalledProcessError) as error:
                why = (getattr(error, "stderr", "") or str(error)).strip()
                raise Unavailable(f"--ram: {words[0]}: {why}; use --spool DIR") from None
        os.chmod(folder, 0o755)
        try:
            yield folder
        finally:
            _unmount(folder)
    finally:
        Path(image).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def _unmount(folder):
    for _ in range(50):
        if not subprocess.run(["umount", folder], capture_output=True, check=False).returncode:
            return
        time.sleep(0.1)
    subprocess.run(["umount", "-l", folder], check=False)


@contextlib.contextmanager
def on_disk(folder=None):
    """A folder of our own in that one, or in the folder for temporary files; removed at the end."""
    own = tempfile.mkdtemp(prefix="qmq-spool-", dir=folder)
    os.chmod(own, 0o755)
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)
