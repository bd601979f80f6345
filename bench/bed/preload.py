"""
A queue with many messages in it, written into its store before the gateway starts.

    preload.py FOLDER COUNT SITE INSTANCE

Messages of 4 kB for b@INSTANCE.test, due at once, marked p0, p1, ... Uses the
store of the qmq that is first on the Python path.
"""

import sys
import time

from qmq.mail import Address, Entry, Envelope, MemoryBody, Message, Origin, Token
from qmq.spool.sqlite import SQLiteTable
from qmq.spool.table import Batch, Keep

_BATCH = 2000


def main(folder, count, site, instance):
    table = SQLiteTable(folder, cache=65536)
    opened = table.open()
    now, recipient = time.time(), Address(b"b", f"{instance}.test".encode())
    fill = b"\r\n" + b"The quick brown fox jumps over the lazy dog, and again, and again.\r\n" * 58
    for start in range(0, count, _BATCH):
        batch = Batch()
        for n in range(start, min(count, start + _BATCH)):
            number = (opened.epoch << 32) + n + 1
            token = Token(b"preload", n + 1)
            origin = Origin(b"ESMTP", b"127.0.0.2", 25, b"client.test")
            body = MemoryBody(b"Subject: bed\r\nX-Bed: p%d\r\n" % n + fill)
            envelope = Envelope(token, Address(b"a", b"source.test"), (recipient,), origin)
            entry = Entry(number, Message(envelope, b"", body), site, now)
            batch.keeps.append(Keep(token, body, [entry], number, frozenset()))
            batch.released[number] = (now, site)
        outcome = table.commit(batch)
        if outcome.refused is not None:
            raise outcome.refused
    table.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3].encode(), sys.argv[4])
