"""A resolver in memory."""

from twisted.internet.defer import Deferred, fail, succeed

from qmq.dns import DNSTrouble, Exchange, NoData, NoSuchDomain


class FakeResolver:
    """
    Knows *records*: name to kind to values, ``{"x.example": {"txt": "v=spf1 -all"}}``.

    Names that begin with broken. are trouble, those with silent. are never
    answered. *asked* are all questions, in order.
    """

    def __init__(self, records=()):
        self.records = dict(records)
        self.asked = []
        self.cancelled = 0

    def _ask(self, kind, name):
        name = name.decode() if isinstance(name, bytes) else name
        self.asked.append((kind, name))
        if name.startswith("silent."):
            return Deferred(self._gone)
        if name.startswith("broken."):
            return fail(DNSTrouble("nobody answers"))
        kinds = self.records.get(name.lower())
        if kinds is None:
            return fail(NoSuchDomain(name))
        if kind not in kinds:
            return fail(NoData(name))
        values = kinds[kind]
        return succeed(tuple(values) if isinstance(values, (list, tuple)) else (values,))

    def _gone(self, _):
        self.cancelled += 1

    def txt(self, name):
        return self._ask("txt", name).addCallback(
            lambda texts: tuple(t.encode("utf-8") if isinstance(t, str) else t for t in texts)
        )

    def a(self, name):
        return self._ask("a", name)

    def aaaa(self, name):
        return self._ask("aaaa", name)

    def mx(self, name):
        return self._ask("mx", name).addCallback(lambda hosts: tuple(Exchange(10, host) for host in hosts))

    def ptr(self, ip):
        return self._ask("ptr", ip)
