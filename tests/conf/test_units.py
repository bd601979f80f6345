from ipaddress import ip_network

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qmq.conf import units
from qmq.conf.units import BadValue


class RoundTripTests(SynchronousTestCase):
    @given(st.integers(0, 10**12))
    def test_durations(self, milliseconds):
        """Every time that qmq writes it reads back as the same time."""
        seconds = milliseconds / 1000

        self.assertEqual(units.duration(units.duration_text(seconds)), seconds)

    @given(st.integers(0, 2**60))
    def test_octets(self, size):
        """Every size that qmq writes it reads back as the same size."""
        self.assertEqual(units.octets(units.octets_text(size)), size)

    @given(st.integers(1, 10**8), st.integers(0, 2**60))
    def test_disk(self, millionths, size):
        """A share of a disk, and a size, are read back as the same."""
        share = units.disk(f"{millionths / 10**6:.6f}%")

        self.assertEqual(units.disk(units.disk_text(share)), share)
        self.assertEqual(units.disk(units.disk_text(size)), size)

    @given(st.integers(-(10**9) + 1, 10**9 - 1))
    def test_numbers(self, thousandths):
        """A number with a fraction is read back as the same."""
        self.assertEqual(units.number(units.number_text(thousandths / 1000)), thousandths / 1000)

    @given(st.ip_addresses(), st.integers(1, 65535), st.integers(0, 32))
    def test_places(self, address, port, bits):
        """Networks, and places to listen, are read back as the same, IPv6 or not."""
        net = ip_network((address, address.max_prefixlen if bits == 32 else bits), strict=False)

        self.assertEqual(units.network(units.network_text(net)), net)
        self.assertEqual(units.listen(units.host_port_text((str(address), port))), (str(address), port))
        self.assertEqual(units.listen(units.host_port_text(("", port))), ("", port))

    @given(st.text(max_size=20))
    def test_anything(self, text):
        """Whatever is written as a value is a value or a BadValue, never another surprise."""
        parsers = (
            units.duration, units.octets, units.count, units.share, units.network, units.address_or_nothing,
            units.host_name, units.domain_pattern, units.mailbox, units.port, units.host_port, units.listen,
            units.disk, units.number,
        )  # fmt: skip
        for parse in parsers:
            try:
                parse(text)
            except BadValue as bad:
                self.assertTrue(str(bad))


class ValueTests(SynchronousTestCase):
    def test_times(self):
        """Times are written with their unit, whole or with a fraction."""
        written = ("90s", "5m", "1.5h", "24h", "7d", "2w", "250ms")

        self.assertEqual([units.duration(t) for t in written], [90, 300, 5400, 86400, 604800, 1209600, 0.25])

    def test_sizes(self):
        """Sizes are powers of 1024, in capitals or not."""
        written = ("500B", "64K", "64k", "50M", "1.5M", "10G", "1T", "4KiB")

        self.assertEqual(
            [units.octets(t) for t in written], [500, 65536, 65536, 50 << 20, 3 << 19, 10 << 30, 1 << 40, 4096]
        )

    def test_no_unit(self):
        """A bare number is no time and no size: 1440 was meant as minutes once, and taken as seconds."""
        for parse in (units.duration, units.octets):
            bad = self.assertRaises(BadValue, parse, "1440")
            self.assertIn("has no unit", str(bad))
            self.assertTrue(bad.remedy)
        self.assertIn("24h", self.assertRaises(BadValue, units.duration, "1440").remedy)

    def test_counts(self):
        """A count is a bare number."""
        self.assertEqual(units.count("120"), 120)
        for text in ("", "-1", "1K", "1,000", "٣"):
            self.assertRaises(BadValue, units.count, text)

    def test_shares(self):
        """A share is a part of the whole, more than nothing."""
        self.assertEqual([units.share(t) for t in ("0.1", "10%", "1", ".5")], [0.1, 0.1, 1, 0.5])
        for text in ("0", "1.1", "101%", "", "%", "-0.1"):
            self.assertRaises(BadValue, units.share, text)

    def test_listen(self):
        """A place to listen is written as an endpoint, or as address and port."""
        written = ("tcp:25", "tcp:2525:interface=127.0.0.1", "tcp:25:interface=\\:\\:1", "127.0.0.1:25", "[::1]:2525")

        self.assertEqual(
            [units.listen(t) for t in written],
            [("", 25), ("127.0.0.1", 2525), ("::1", 25), ("127.0.0.1", 25), ("::1", 2525)],
        )
        for text in ("25", "tcp:", "tcp:0", "tcp:65536", "mx.example.org:25", "::1:25", "127.0.0.1"):
            self.assertRaises(BadValue, units.listen, text)

    def test_domains(self):
        """Domains are kept in lower case, without the final dot, in UTF-8."""
        written = ("Example.ORG.", ".Example.org", "*", "bücher.example")

        self.assertEqual(
            [units.domain_pattern(t) for t in written],
            [b"example.org", b".example.org", b"*", "bücher.example".encode()],
        )
        for text in ("", ".", "a b", "user@example.org", "*.example.org", "a..b", "-a.example"):
            self.assertRaises(BadValue, units.domain_pattern, text)

    def test_network_with_host_bits(self):
        """An address within a network is not guessed at: the remedy has the network."""
        bad = self.assertRaises(BadValue, units.network, "10.1.2.3/8")

        self.assertIn("10.0.0.0/8", bad.remedy)
