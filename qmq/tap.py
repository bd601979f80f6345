"""twistd qmq: the options, and the service that they ask for."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from twisted.application.service import IService
from twisted.python import usage

from qmq.conf.explain import census
from qmq.conf.load import load
from qmq.conf.written import ConfErrors
from qmq.cord import CHILD
from qmq.reactor import install
from qmq.service.crews import takes_mail
from qmq.service.gateway import Gateway

# Before anything imports twisted.internet.reactor, which installs one.
install()


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
            self.conf = load(self["conf"], rules=CHILD not in os.environ)
        except ConfErrors as errors:
            sys.stderr.write(f"{errors}\n")
            sys.exit(1)
        for warning in () if CHILD in os.environ else self.conf.warnings:
            sys.stderr.write(f"warning: {warning}\n")
        self.only = tuple(name for name in self["only"].replace(",", " ").split() if name)
        names = {"primary", *(i.name for i in self.conf.instances)}
        for name in self.only:
            # A worker that takes mail is called after the store that it has.
            if name not in names and not (CHILD in os.environ and takes_mail(name)):
                raise usage.UsageError(f"--only {name}: no such role; there are {', '.join(sorted(names))}")
        self.conf = self.conf.at(self.only)
        if self["check"]:
            sys.stdout.write(f"{self.conf.path}: fine, {census(self.conf)}\n")
            sys.exit(0)


def makeService(options: Options) -> IService:
    """The gateway, or the part of it that --only names."""
    from twisted.internet import reactor  # noqa: PLC0415 - whichever it is by now

    chosen: Any = reactor
    # Another reactor that was asked for gets our clock too; nothing has been scheduled yet.
    chosen.seconds = time.monotonic
    return Gateway(reactor, options.conf, options.only, os.environ)
