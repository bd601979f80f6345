"""What the tests of the list checks share: a control folder, clients, answers, a DNS."""

import os

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from qmq.dns.query import NoData, NoSuchDomain
from qmq.dns.resolver import Exchange
from qmq.mail import Address, address
from qmq.receive.context import Context
from qmq.rules.watched import Files
from qmq.session import Environment, Session, Transaction, Verdict

RECIPIENT = Address(b"b", b"ours.example")


class Control:
    """A control folder that may be edited, and the Context of a listener there."""

    def __init__(self, folder, **more):
        os.mkdir(folder)
        self.folder = folder
        self.warnings = []
        self.files = Files(self.warnings.append)
        self.context = Context(
            lambda domain: domain == b"ours.example", 0, Clock(), control=folder, files=self.files, **more
        )

    def write(self, name, text):
        """A file, and the next connection."""
        path = os.path.join(self.folder, name)
        with open(path + ".new", "wb") as file:
            file.write(text)
        os.rename(path + ".new", path)
        self.files.look()
        return path


class DNS:
    """Knows what *mx* and *addresses* have: hosts or addresses, () for no such record, or an exception."""

    def __init__(self, mx=None, addresses=None):
        self.asked = []
        self._mx = mx or {}
        self._addresses = addresses or {}

    def mx(self, domain):
        self.asked.append(domain)
        return self._answer(self._mx, domain).addCallback(lambda hosts: [Exchange(10, host) for host in hosts])

    def addresses(self, host):
        self.asked.append(host)
        return self._answer(self._addresses, host)

    def _answer(self, known, name):
        if name not in known:
            exists = name in self._mx or name in self._addresses
            return fail((NoData if exists else NoSuchDomain)("nothing"))
        found = known[name]
        if isinstance(found, Exception):
            return fail(found)
        return succeed(found) if found else fail(NoData("nothing"))


def client(*, host="unknown", relay=False, helo=b"", ip="192.0.2.1", user=b"", **variables):
    """A session; *variables* are of its Environment."""
    return Session(
        ip, 40000, "192.0.2.25", 25, helo=helo, host=host, relay=relay, user=user, environment=Environment(**variables)
    )


def mail(sender=b"a@x.example"):
    """A transaction."""
    return Transaction(b"spool-1", address(sender))


def answered(answer):
    """The verdict, waited for if must be; a Failure is raised."""
    if answer is not None and not isinstance(answer, Verdict):
        results = []
        Deferred.fromCoroutine(answer).addBoth(results.append)
        (answer,) = results
        if isinstance(answer, Failure):
            answer.raiseException()
    return answer


def said(answer):
    """Code, status, reason and info of a refusal; None for none."""
    verdict = answered(answer)
    if verdict is None or verdict.reply is None:
        return None
    return verdict.reply.code, verdict.reply.status, verdict.reason, verdict.info
