"""Addresses in MAIL and RCPT: one form comes out, or a refusal."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qmq.mail import NULL_SENDER, Address, path
from qmq.wire.path import BadPath, parse_path


def refusal(raw: bytes) -> int:
    try:
        parse_path(raw)
    except BadPath as bad:
        return bad.reply.code
    return 0


class PathTests(SynchronousTestCase):
    """parse_path."""

    def assertPath(self, raw: bytes, local: bytes, domain: bytes) -> None:
        """*raw* is that address, alone and with something behind it."""
        self.assertEqual(parse_path(raw), (Address(local, domain), b""))
        self.assertEqual(parse_path(raw + b" SIZE=1"), (Address(local, domain), b" SIZE=1"))

    def assertRefused(self, *raws: bytes, code: int = 501) -> None:
        """None of *raws* is an address."""
        for raw in raws:
            self.assertEqual(refusal(raw), code, raw)

    def test_ordinary(self) -> None:
        """The local part keeps its case; the domain is in lower case, without its trailing dot."""
        self.assertPath(b"<Alice.B+tag@Example.ORG>", b"Alice.B+tag", b"example.org")
        self.assertPath(b"<a@Example.ORG.>", b"a", b"example.org")
        self.assertPath(b"<a@localhost>", b"a", b"localhost")
        self.assertPath(b"<a@under_score.example>", b"a", b"under_score.example")

    def test_null(self) -> None:
        """<> is the null sender."""
        self.assertEqual(parse_path(b"<> BODY=7BIT"), (NULL_SENDER, b" BODY=7BIT"))

    def test_postmaster(self) -> None:
        """Only postmaster, in any case, needs no domain."""
        self.assertPath(b"<postmaster>", b"postmaster", b"")
        self.assertPath(b"<PostMaster>", b"PostMaster", b"")
        self.assertRefused(b"<alice>", b"<postmasters>", b'<"a b">', code=553)

    def test_quoted(self) -> None:
        """A quoted local part comes out unquoted, its quoted pairs too."""
        self.assertPath(b'<"a b"@x.org>', b"a b", b"x.org")
        self.assertPath(b'<"abc"@x.org>', b"abc", b"x.org")
        self.assertPath(rb'<"a\"b\\c\d"@x.org>', rb'a"b\cd', b"x.org")
        self.assertPath(b'<"a>b@c"@x.org>', b"a>b@c", b"x.org")
        self.assertPath(b'<".a..b."@x.org>', b".a..b.", b"x.org")

    def test_bad_quotes(self) -> None:
        """Controls, CR and LF foremost, can't be quoted; nor may quotes be open, empty, or half a local part."""
        self.assertRefused(*(b'<"a%cb"@x.org>' % octet for octet in [*range(32), 127]))
        self.assertRefused(*(b'<"a\\%cb"@x.org>' % octet for octet in [*range(32), 127]))
        self.assertRefused(
            b'<"a@x.org>', b'<"a\\"@x.org>', b'<""@x.org>', b'<"a"b@x.org>', b'<a."b"@x.org>', b'<a"b@x.org>'
        )

    def test_bad_syntax(self) -> None:
        """What is no address is refused."""
        self.assertRefused(
            b"", b"a@b", b"<", b"<a", b"<a@", b"<a@b", b"<@>", b"<@b>", b"<a@>", b"<a@b@c>", b"<a@b,c>", b"<a@b,c@d>",
            b"< a@b>", b"<a@b >", b"<a b@c>", b"<a@b c>", b"<a..b@c>", b"<.a@b>", b"<a.@b>", b"<a@b\x00>", b"<a\x00@b>",
            b"<a\r@b>", b"<a\n@b>", b"<a@b\n>", b"<(a)@b>", b"<a@b(c)>", b"<<a@b>>", b"<a;b@c>", b"<a:b@c>", b"a <b@c>",
        )  # fmt: skip

    def test_bad_domains(self) -> None:
        """A domain has labels of 1 to 63 letters, digits, hyphens or underscores, and 255 octets at most."""
        label = b"a" * 63
        self.assertPath(b"<a@%b.org>" % label, b"a", label + b".org")
        self.assertPath(b"<a@%b>" % b".".join([label] * 3 + [label]), b"a", b".".join([label] * 4))
        self.assertRefused(
            b"<a@.>", b"<a@.b>", b"<a@b..c>", b"<a@b..>", b"<a@a%b.org>" % label, b"<a@%b.x>" % b".".join([label] * 4),
            b"<a@b/c>", b"<a@b%c>", b"<a@$b>", b"<a@b!c>", b"<a@b:25>",
        )  # fmt: skip

    def test_lengths(self) -> None:
        """A local part may have 256 octets."""
        self.assertPath(b"<%b@b>" % (b"a" * 256), b"a" * 256, b"b")
        self.assertRefused(b"<%b@b>" % (b"a" * 257), b'<"%b"@b>' % (b" " * 257))

    def test_literals(self) -> None:
        """Address literals keep their brackets, in lower case, and must be addresses."""
        self.assertPath(b"<a@[192.0.2.1]>", b"a", b"[192.0.2.1]")
        self.assertPath(b"<a@[IPv6:2001:DB8::1]>", b"a", b"[ipv6:2001:db8::1]")
        self.assertRefused(
            b"<a@[]>", b"<a@[1.2.3]>", b"<a@[1.2.3.256]>", b"<a@[01.2.3.4]>", b"<a@[2001:db8::1]>",
            b"<a@[IPv6:1.2.3.4]>", b"<a@[IPv6:::1%eth0]>", b"<a@[IPv6:zz::1]>", b"<a@[tag:x]>", b"<a@[1.2.3.4>",
            b"<a@[1.2.3.4].org>",
            b"<a@1[1.2.3.4]>",
        )  # fmt: skip

    def test_source_route(self) -> None:
        """A source route is dropped; the mailbox behind it is the address."""
        self.assertPath(b"<@a.org:u@d.org>", b"u", b"d.org")
        self.assertPath(b'<@a.org,@[192.0.2.1],@b:"u v"@D.org>', b"u v", b"d.org")
        self.assertRefused(b"<@a,b:u@d>", b"<@a,@b u@d>", b"<@a:>", b"<@a,:u@d>", b"<@:u@d>", b"<@a>", b"<@a:@b:u@d>")

    def test_relay_forms(self) -> None:
        """Percent hacks, bang paths, quoted @ and encoded words are odd local parts of the last domain."""
        self.assertPath(b"<u%evil.org@us.org>", b"u%evil.org", b"us.org")
        self.assertPath(b"<evil.org!u@us.org>", b"evil.org!u", b"us.org")
        self.assertPath(b'<"u@evil.org"@us.org>', b"u@evil.org", b"us.org")
        self.assertPath(b"<=?utf-8?q?u=40evil.org=3e=20?=@us.org>", b"=?utf-8?q?u=40evil.org=3e=20?=", b"us.org")
        self.assertRefused(b"<u@us.org@evil.org>", b"<u@us.org,u@evil.org>")

    def test_shell_metacharacters(self) -> None:
        """A local part fit for a shell is passed on as it is, where its grammar allows it at all."""
        self.assertPath(b"<|/bin/sh@us.org>", b"|/bin/sh", b"us.org")
        self.assertPath(b"<`id`@us.org>", b"`id`", b"us.org")
        self.assertPath(b"<${run{id}}@us.org>", b"${run{id}}", b"us.org")
        self.assertPath(b"<-oX@us.org>", b"-oX", b"us.org")
        self.assertPath(b'<"../../etc/passwd"@us.org>', b"../../etc/passwd", b"us.org")
        self.assertRefused(b"<;id;@us.org>", b"<$(id)@us.org>", b"<../x@us.org>")

    def test_utf8(self) -> None:
        """A non-ASCII address is UTF-8; its domain is in lower case and NFC."""
        self.assertPath("<jörg@BÜCHER.example>".encode(), "jörg".encode(), "bücher.example".encode())
        self.assertPath("<a@bu\u0308cher.example.>".encode(), b"a", "bücher.example".encode())
        self.assertPath('<"j ö"@x.org>'.encode(), "j ö".encode(), b"x.org")
        self.assertPath("<a@\u212aelvin.org>".encode(), b"a", b"kelvin.org")

    def test_bad_utf8(self) -> None:
        """Octets that are no UTF-8, over-long forms, surrogates and hidden line ends are refused."""
        self.assertRefused(
            b"<\xff@x.org>", b"<a@\xff.org>", b"<\xc0\xaf@x.org>", b"<a@\xc0\xae.org>", b"<\xed\xa0\x80@x.org>",
            b"<j\xf6rg@x.org>", "<a\u2028b@x.org>".encode(), "<a\x85b@x.org>".encode(), b'<"\xff"@x.org>',
        )  # fmt: skip

    def test_bad_idn(self) -> None:
        """Dots that are none, and labels that IDNA 2008 forbids, are refused."""
        self.assertRefused(
            *(f"<a@{domain}>".encode() for domain in (
                "us\uff0eevil.org", "us\u3002evil.org", "us\uff61evil.org", "a\u200bb.org", "\u2024.org", "☃.org",
                "ü..org", "ü./.org", "-ü.org", "ü" * 63 + ".org", ".ü", "ü\u2044x.org", "a\u00adb.org",
            ))
        )  # fmt: skip

    @given(
        local=st.binary(min_size=1, max_size=60), domain=st.sampled_from([b"x.org", b"[192.0.2.1]", "ü.org".encode()])
    )
    def test_round_trip(self, local: bytes, domain: bytes) -> None:
        """Whatever address is taken is the same one after being written again."""
        for raw in (b"<%b@%b>" % (local, domain), b'<"%b"@%b>' % (local, domain)):
            try:
                address, rest = parse_path(raw)
            except BadPath:
                continue
            if not rest:
                self.assertEqual(parse_path(b"<" + path(address) + b">"), (address, b""))

    @given(raw=st.lists(st.sampled_from([*b'<>@.,:"\\[]aA1-_% \x00\r\n\xc3\xbc\xff\xef\xbc\x8e'])).map(bytes))
    def test_any_octets(self, raw: bytes) -> None:
        """Nothing makes it raise anything but BadPath, nor lets a control through."""
        for start in (b"", b"<", b"<a@", b"<@a:"):
            try:
                address, rest = parse_path(start + raw)
            except BadPath as bad:
                self.assertIn(bad.reply.code, (501, 553))
            else:
                self.assertTrue((start + raw).endswith(rest))
                self.assertFalse(set(bytes(address)) & {*range(32), 127})
                self.assertEqual(address.domain, address.domain.decode().lower().encode())

    @given(
        first=st.sampled_from([b"a", b".", b"-", b"x" * 63]),
        parts=st.lists(st.sampled_from([*(bytes([octet]) for octet in b"..aA1-_+>@"), b"x" * 63, b"a@b", b".org>"])),
    )
    @example(b"a", [b"@", b"x" * 63, b".x>"])
    @example(b"a", [b"@", b"x" * 64, b">"])
    @example(b"a", [b"..b@c>"])
    @example(b"a", [b".b@c.D>", b" x"])
    def test_at_a_glance(self, first: bytes, parts: list[bytes]) -> None:
        """An ordinary path is the same address as behind a source route, where none is ordinary."""
        raw = first + b"".join(parts)
        found: list[object] = []
        for start in (b"<", b"<@r:"):
            try:
                found.append(parse_path(start + raw))
            except BadPath as bad:
                found.append(bad.reply)

        self.assertEqual(found[0], found[1])

    def test_linear(self) -> None:
        """The longest hostile path takes no time to speak of."""
        for unit in (b"a.", b"a", b"@a,", b'"', b"\\a", b"<", b"a@", b"\xc3\xbc", b"\xc3\xbc."):
            for start in (b"<", b"<@a:", b'<"', b"<a@"):
                self.assertTrue(refusal(start + unit * 20000), unit)
