"""twistd qmq: the options, and the service that they ask for."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from twisted.application.service import IService
from twisted.internet import reactor
from twisted.python import usage

from qmq.conf.load import load
from qmq.conf.written import ConfErrors
from qmq.processes import CHILD
from qmq.service.gateway import Gateway


class Options(usage.Options):
    """What stands after `twistd -n qmq`."""

    longdesc = (
        "Starts the gateway that conf-qmq describes: the primary in this process, the instances in workers. "
        "`qmq --help` lists the commands that look into a running gateway."
    )
    optParameters = [  # noqa: RUF012 - usage.Options reads class attributes
        ["conf", "c", "conf-qmq", "The configuration: instances, their domains and routes."],
        ["only", "o", "", "Run only these roles: primary, or instances' names, separated by commas."],
    ]
    optFlags = [  # noqa: RUF012 - likewise
        ["check", None, "Read the configuration, report every error with its file and line, and leave."],
    ]

    def postOptions(self) -> None:
        """Read the configuration now: a mistake in it should not need a running reactor to be seen."""
        try:
            self.conf = load(self["conf"])
        except ConfErrors as errors:
            sys.stderr.write(f"{errors}\n")
            sys.exit(1)
        for warning in () if CHILD in os.environ else self.conf.warnings:
            sys.stderr.write(f"warning: {warning}\n")
        self.only = tuple(name for name in self["only"].replace(",", " ").split() if name)
        names = {"primary", *(i.name for i in self.conf.instances)}
        for name in self.only:
            if name not in names:
                raise usage.UsageError(f"--only {name}: no such role; there are {', '.join(sorted(names))}")
        if self["check"]:
            sys.stdout.write(f"{self.conf.path}: fine, {len(self.conf.instances)} instances\n")
            sys.exit(0)


def makeService(options: Options) -> IService:
    """The gateway, or the part of it that --only names."""
    clock: Any = reactor
    # Twisted's reactors count by the wall clock: an hour's jump back would
    # stall every timer for an hour. Nothing has been scheduled yet.
    clock.seconds = time.monotonic
    return Gateway(reactor, options.conf, options.only, os.environ)
