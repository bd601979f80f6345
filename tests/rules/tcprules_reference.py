"""tcpserver's look-up and tcprules' compiling, written as plainly as can be, to compare ours with."""

import os
import tempfile
from ipaddress import ip_address, ip_network

import cdbx

_ONES4 = "abcdefghijklmnopqrstuvwxyz123456"


def keys(ip, host, user):
    """What is looked for, in order, but that networks with a slash are values."""
    if user:
        yield f"{user}@{ip}"
        if host:
            yield f"{user}@={host}"
    yield ip
    if host:
        yield "=" + host
    address = ip_address(ip)
    for bits in range(address.max_prefixlen, -1, -1):
        if address.version == 4 and bits in {8, 16, 24}:
            yield "".join(part + "." for part in ip.split(".")[: bits // 8])
        yield ip_network(f"{ip}/{bits}", strict=False)
    if host:
        for at, letter in enumerate(host):
            if letter == ".":
                yield "=" + host[at:]
        yield "="
    yield ""


def find(rules, ip, host, user):
    """What the first rule says that there is; *rules*: (address, what)."""
    table = {}
    for address, what in rules:
        table.setdefault(ip_network(address, strict=False) if "/" in address else address, what)
    return next((table[key] for key in keys(ip, host, user) if key in table), None)


def compiled(rules, null=b""):
    """The path of a cdb as tcprules makes it (ucspi-tcp6: with *null* behind the bits, as some versions have it)."""
    handle, path = tempfile.mkstemp(suffix=".cdb", prefix="qmq-test-")
    os.close(handle)
    with open(path, "wb+") as file:
        maker = cdbx.CDB.make(file)
        for address, what in rules:
            maker.add(key(address, null), what)
        maker.commit()
    return path


def key(address, null=b""):
    """An address as it stands in the cdb."""
    if "/" in address:
        net = ip_network(address, strict=False)
        bits = f"{int(net.network_address):0{net.max_prefixlen}b}"[: net.prefixlen]
        if net.version == 4:
            text = "_" + "".join(_ONES4[i] if bit == "1" else "0" for i, bit in enumerate(bits))
        else:
            text, one = "^", 96
            for bit in bits:
                text += chr(one) if bit == "1" else "0"
                one += bit == "1"
        return text.encode("latin-1") + null
    user, at, ip = address.rpartition("@")
    if ":" in ip and not ip.endswith(":"):
        return f"{user}{at}{ip_address(ip).exploded.upper()}".encode()
    return address.encode()
