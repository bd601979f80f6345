"""
A conf-qmq to start from, for `qmq init`; the one that ships is written by it too.

It works as it is, on ports that anybody may open, and says at each line what
to put there instead.
"""

from __future__ import annotations

from collections.abc import Sequence

# The plan that QMQ shipped, but that it works at once (SPAMCONTROL 1.1).
SAMPLE = ("01:customer1", "02:customer2", "80:internet", "90:bounces", "99:storm")

_HEAD = """\
# conf-qmq: which instances there are, whose mail each gets, where it goes.
# All settings are in docs/conf-qmq.md. `qmq check` reads this file and tells
# every mistake with its line; `qmq explain user@example.org` says who decides.

[instances]
# NUMBER:NAME. Each is a queue of its own: its store, its limits, its schedule.
# What happens to one is not felt by another. A classic conf-qmq is these lines.
"""

_BODY = """
[qmq]
# The name by which this gateway greets, and which its bounces bear.
me = {me}
# A relative path is meant from the folder of this file.
spool = var/spool
# An instance's QMTP port is base + number, on 127.0.0.1. QMQ's was 1000.
base = 11000
# These may send to any domain, as RELAYCLIENT did; everybody else to the
# domains below only. Nothing is open that is not listed.
relay = 127.0.0.1 ::1
# Root is needed for port 25; once it is open, qmq becomes this account.
# user = qmq

[primary]
# For the Internet: listen = tcp:25
listen = 127.0.0.1:2525
# Of all checks only rcpthosts does something until it is told to, by words such
# as these: here for all clients, in [client 192.0.2.0/24] for some.
# helocheck = .
# mfdnscheck = yes
# spf = 3
# maxrecipients = 100
databytes = 50M
# Your own machines and tests may come with more than 50 sessions at once.
limit-exempt = 127.0.0.0/8
# STARTTLS: certificate = /etc/ssl/mx.pem
"""

_CUSTOMER = """
[{name}]
# {domain} alone, and with the dot in front everything below it.
domains = {domain} .{domain}
# Their mail server. A second word is tried if the first cannot be reached.
# Also: mx, lmtp:HOST:PORT, qmtp:HOST. (`qmq demo` shows one that is dead.)
deliver = smtp:127.0.0.1:{port}
concurrency = 120
# qmail's schedule; or waits, the last of which repeats: 1m 5m*3 1h*6 4h
retry = quadratic 20
lifetime = 4d
"""

_INTERNET = """
[{name}]
# Every domain that is nobody's above: outgoing mail of the relay clients.
domains = *
deliver = mx
lifetime = 7d
"""

_BOUNCES = """
[{name}]
# Sends the bounces of all instances. Its own source address keeps those that
# go to forged senders from spoiling the main one: bind = 192.0.2.10
role = bounce
bounce-lifetime = 1d
"""

_STORM = """
[{name}]
# Set aside for floods: move a domain's word from its section to domains = here
# and `qmq reload`; what comes from then on waits here, not before other mail.
role = storm
concurrency = 10
lifetime = 2d
"""


def conf_text(plan: Sequence[str] = SAMPLE, me: str = "gateway.example") -> str:
    """The text of a conf-qmq with those ``NUMBER:NAME`` records; a name tells what it is for."""
    sections = []
    for record in plan:
        number, _, name = record.partition(":")
        role = next((text for start, text in _BY_NAME.items() if name.lower().startswith(start)), _CUSTOMER)
        domain = f"{name.lower().strip('._-').replace('_', '-')}.example"
        sections.append(role.format(name=name, domain=domain, port=2600 + int(number) if number.isdigit() else 25))
    return _HEAD + "\n".join(plan) + "\n" + _BODY.format(me=me) + "".join(sections)


_BY_NAME = {"internet": _INTERNET, "bounce": _BOUNCES, "storm": _STORM, "backup": _STORM}
