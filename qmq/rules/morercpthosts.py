"""control/morercpthosts.cdb: more domains that we take mail for than a text file should have."""

from __future__ import annotations

from qmq.rules.cdb import CDB


def listed(hosts: CDB, domain: bytes) -> bool:
    """
    Whether the domain (in lower case) is in the file, or a suffix of it from a dot on is.

    As qmail's rcpthosts. Raises OSError for a damaged file.
    """
    at = 0
    while at >= 0:
        if domain[at:] in hosts:
            return True
        at = domain.find(b".", at + 1)
    return False
