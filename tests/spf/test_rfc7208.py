import os

import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import yaml
from dns.rdtypes.ANY.CNAME import CNAME
from dns.rdtypes.ANY.MX import MX
from dns.rdtypes.ANY.PTR import PTR
from dns.rdtypes.ANY.TXT import TXT
from dns.rdtypes.IN.A import A
from dns.rdtypes.IN.AAAA import AAAA
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from qmq.dns import Resolver
from qmq.mail import address
from qmq.spf.finding import SPF
from qmq.spf.macro import template
from tests.spf.suite import CASES, NotHad, rfc7208
from tests.test_dns import Network

IN = dns.rdataclass.IN


def name(text):
    """As it stands, whatever letters are in it."""
    labels = text.removesuffix(".").encode("utf-8").split(b".") if text else []
    return dns.name.Name([*labels, b""])


def record(kind, value):
    type_ = dns.rdatatype.from_text(kind)
    match kind:
        case "TXT":
            strings = [value] if isinstance(value, str) else value
            # No string at all cannot be on the wire (RFC 1035 3.3.14).
            return TXT(IN, type_, [string.encode("utf-8") for string in strings] or [b""])
        case "MX":
            return MX(IN, type_, value[0], name(value[1]))
        case "PTR" | "CNAME":
            return {"PTR": PTR, "CNAME": CNAME}[kind](IN, type_, name(value))
        case "A" | "AAAA":
            return {"A": A, "AAAA": AAAA}[kind](IN, type_, value)


class Zone:
    """A name server with a scenario's zone data: what of it is of type SPF is of type TXT, if no other TXT is there."""

    def __init__(self, zonedata):
        self.names = {}
        for text, entries in zonedata.items():
            rows = [next(iter(entry.items())) for entry in entries if entry != "TIMEOUT"]
            if not any(kind == "TXT" for kind, _ in rows):
                rows += [("TXT", value) for kind, value in rows if kind == "SPF"]
            rows = [row for row in rows if row[0] != "SPF" and row != ("TXT", "NONE")]
            self.names[name(text.lower())] = rows, "TIMEOUT" in entries

    def __call__(self, question):
        """A time-out is a SERVFAIL here: both are trouble."""
        asked = question.question[0]
        answer = dns.message.make_response(question)
        if asked.name not in self.names:
            answer.set_rcode(dns.rcode.NXDOMAIN)
            return [answer.to_wire()]
        rows, trouble = self.names[asked.name]
        kind = asked.rdtype.name
        found = [row for row in rows if row[0] in {kind, "CNAME"}]
        if trouble and not found:
            answer.set_rcode(dns.rcode.SERVFAIL)
        for row in found:
            one = record(*row)
            answer.find_rrset(answer.answer, asked.name, IN, one.rdtype, create=True).add(one, 300)
        if not answer.answer:
            answer.authority.append(
                dns.rrset.from_text("example.", 60, "IN", "SOA", "ns.example. root.example. 1 2 3 4 60")
            )
        return [answer.to_wire(max_size=65535)]


class SuiteTests(SynchronousTestCase):
    def found(self, zone, case):
        network = Network(zone)
        resolver = Resolver(network, servers=[("192.0.2.53", 53)], hosts="/nonexistent", connect=network.connect)
        spf = SPF(resolver, network, "receiver.example", explanation=lambda: template("DEFAULT"))
        check = spf.check(case["host"], address(case["mailfrom"].encode()), case["helo"].encode())
        return self.successResultOf(Deferred.fromCoroutine(check))

    def test_suite(self):
        """Each case of RFC 7208's own suite gives the result, and the explanation, that it must."""
        try:
            scenarios = list(yaml.safe_load_all(rfc7208()))
        except NotHad as reason:
            if os.environ.get("QMQ_CI"):
                raise
            raise SkipTest(f"the suite of RFC 7208 cannot be had: {reason}") from reason

        count, wrong = 0, []
        for scenario in scenarios:
            zone = Zone(scenario["zonedata"])
            for label, case in scenario["tests"].items():
                found = self.found(zone, case)
                results = case["result"] if isinstance(case["result"], list) else [case["result"]]
                count += 1
                if found.result.value not in results or found.explanation != case.get("explanation", found.explanation):
                    wrong.append((scenario["description"], label, case["result"], case.get("explanation"), found))

        self.assertEqual(wrong, [])
        self.assertEqual(count, CASES)
