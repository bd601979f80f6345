"""qmq: a mail gateway with a queue of its own for every customer."""
