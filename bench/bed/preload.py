"""
A queue with many messages in it, written into its store before the gateway starts.

    preload.py FOLDER COUNT SITE INSTANCE [--octets N] [--later SECONDS]

Messages of 4 kB (or --octets) for b@INSTANCE.test, marked p0, p1, ..., due at once,
or (--later) spread evenly over the day that begins so many seconds from now. Uses
the store of the qmq that is first on the Python path.
"""

import argparse
import time

from qmq.mail import Address, Entry, Envelope, MemoryBody, Message, Origin, Token
from qmq.spool.sqlite import SQLiteTable
from qmq.spool.table import Batch, Keep

_BATCH = 2000
_DAY = 86_400
_LINE = b"The quick brown fox jumps over the lazy dog, and again, and again.\r\n"


def main(folder, count, site, instance, octets=4096, later=None):
    """Write them; raises SpoolTrouble."""
    table = SQLiteTable(folder, cache=65536)
    opened = table.open()
    now, recipient = time.time(), Address(b"b", f"{instance}.test".encode())
    fill = b"\r\n" + _LINE * max(1, octets // len(_LINE))
    for start in range(0, count, _BATCH):
        batch = Batch()
        for n in range(start, min(count, start + _BATCH)):
            number = (opened.epoch << 32) + n + 1
            token = Token(b"preload", n + 1)
            origin = Origin(b"ESMTP", b"127.0.0.2", 25, b"client.test")
            body = MemoryBody(b"Subject: bed\r\nX-Bed: p%d\r\n" % n + fill)
            envelope = Envelope(token, Address(b"a", b"source.test"), (recipient,), origin)
            due = now if later is None else now + later + n * _DAY / count
            entry = Entry(number, Message(envelope, b"", body), site, due)
            batch.keeps.append(Keep(token, body, [entry], number, frozenset()))
            batch.released[number] = (due, site)
        outcome = table.commit(batch)
        if outcome.refused is not None:
            raise outcome.refused
    table.close()


if __name__ == "__main__":
    words = argparse.ArgumentParser()
    words.add_argument("folder")
    words.add_argument("count", type=int)
    words.add_argument("site", type=str.encode)
    words.add_argument("instance")
    words.add_argument("--octets", type=int, default=4096)
    words.add_argument("--later", type=float)
    main(**vars(words.parse_args()))
