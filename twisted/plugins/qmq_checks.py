"""The catalogue of our own checkers; they come in by the door a stranger's come by."""

from qmq.checks import databytes, rcpthosts

rcpthosts_factory = rcpthosts.Factory()
databytes_factory = databytes.Factory()
