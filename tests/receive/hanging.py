"""A checker that hangs, in many ways; in a module of its own, by which the guard knows it."""

import re
import time

from twisted.internet.defer import inlineCallbacks
from zope.interface import implementer

from qmq.interfaces import ICheckerFactory, IRecipientChecker
from qmq.session import VOUCH


@implementer(IRecipientChecker)
class Hangs:
    """Does what it is given to do if the recipient is bad."""

    def __init__(self, hang):
        self.hang = hang

    def recipient(self, session, transaction, recipient):
        if recipient.local != b"bad":
            return VOUCH
        return self.hang()


def loop():
    while True:
        pass


def sleep():
    time.sleep(20)


def backtrack():
    re.match(r"(a+)+$", "a" * 40 + "b")


def swallow():
    while True:
        try:
            loop()
        except:  # noqa: E722 - as people write it
            pass


def sleep_on():
    while True:
        try:
            time.sleep(20)
        except:  # noqa: E722 - as people write it
            pass


KINDS = {"loop": loop, "sleep": sleep, "regex": backtrack, "swallow": swallow, "sleep on": sleep_on}


def callback(happens):
    """Loops when it happens."""
    return happens.addCallback(lambda _: loop())


@inlineCallbacks
def generator(happens):
    """Sleeps when it happens."""
    yield happens
    sleep()


@implementer(ICheckerFactory)
class Slow:
    """Takes long to make its checker."""

    name, help = "slow", "takes its time"

    def make(self, context, options):
        end = time.perf_counter() + context
        while time.perf_counter() < end:
            pass
        return Hangs(None)
