"""The tests: the same tree as qmq/, and real/ for real sockets, processes and peers."""

import os

os.environ["QMQ_STRICT"] = "1"  # before qmq.mail is imported, under trial too
