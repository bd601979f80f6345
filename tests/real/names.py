"""A name server on loopback, in a thread: says what it is told, and notes what it was asked."""

import contextlib
import socket
import threading
from collections import Counter

import dns.flags
import dns.message
import dns.rcode
import dns.rrset


class Names:
    """
    *records*: ``{"example.org": {"MX": ["10 mx.example.org."], "A": ["192.0.2.1"]}}``.

    A name that is not there does not exist. The records of a name may be "silent"
    (no answer at all) or "servfail" instead.
    """

    def __init__(self, records=()):
        self.records = dict(records)
        self.asked = Counter()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        with contextlib.suppress(OSError):  # closed
            while True:
                packet, client = self._socket.recvfrom(4096)
                with contextlib.suppress(Exception):
                    if reply := self._answer(dns.message.from_wire(packet)):
                        self._socket.sendto(reply.to_wire(), client)

    def _answer(self, question):
        asked = question.question[0]
        name, kind = asked.name.to_text(omit_final_dot=True).lower(), asked.rdtype.name
        self.asked[name, kind] += 1
        records = self.records.get(name)
        if records == "silent":
            return None
        reply = dns.message.make_response(question)
        if records is None or records == "servfail":
            reply.set_rcode(dns.rcode.NXDOMAIN if records is None else dns.rcode.SERVFAIL)
        elif kind in records:
            reply.answer.append(dns.rrset.from_text(asked.name, 5, "IN", kind, *records[kind]))
        if not reply.answer:
            soa = "ns.test. root.test. 1 2 3 4 5"
            reply.authority.append(dns.rrset.from_text("test.", 5, "IN", "SOA", soa))
        return reply

    def close(self):
        """End."""
        self._socket.close()
