"""
The catalogue of our own checkers; they come in by the door a stranger's come by.

Each module of qmq.checks has a Factory. Take a module away, and only its check
is gone. They are named here, for twisted.plugin looks into this file again only
when it has changed.
"""

from importlib import import_module
from importlib.util import find_spec

_NAMES = (
    "greetdelay", "dnsbl", "badhelo", "mfdnscheck", "rcpthosts", "tarpit", "recipients", "callout", "spf",
    "localmfcheck", "badmailfrom", "badrcptto", "databytes", "maxrecipients", "warlord", "qhpsi",
    "spamdomains", "qmailqueue",
)  # fmt: skip

for _name in _NAMES:
    if find_spec(f"qmq.checks.{_name}") is not None:
        globals()[f"{_name}_factory"] = import_module(f"qmq.checks.{_name}").Factory()
