"""What all services of one process share."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import Any

from qmq.conf.model import Conf
from qmq.log import EventLog
from qmq.mail import Clock


@dataclass
class House:
    """
    One process: its reactor, configuration, log, disk threads and resolver.

    *conf* is replaced as a whole by a reload; whoever needs it later asks here.
    """

    reactor: Any
    conf: Conf
    log: EventLog
    writers: Any
    mx: Any
    wall: Clock = field(default=time.time)

    def folder(self, *names: str) -> str:
        """A folder of the spool, made if it is not there, for us alone."""
        path = os.path.join(self.conf.general.spool, *names)
        os.makedirs(path, mode=0o700, exist_ok=True)
        return path
