"""DNS: typed answers and typed failures, cached; one question under way for all who ask the same."""

from qmq.dns.query import DNSFailure, DNSTrouble, NoData, NoSuchDomain
from qmq.dns.resolver import Exchange, Resolver

__all__ = ["DNSFailure", "DNSTrouble", "Exchange", "NoData", "NoSuchDomain", "Resolver"]
