import base64
import time
from email import policy
from email.parser import BytesParser

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qmq.rules.mime import Walk
from qmq.rules.mime_fields import boundaries, is_base64, kind


class Parts:
    """A reader that keeps what it is told."""

    def __init__(self):
        self.parts = []

    def part(self):
        self.parts.append(b"")

    def text(self, text):
        self.parts[-1] += text


def walked(text, step=None, **budgets):
    """The walk, and the base64 parts without blanks and line ends."""
    reader = Parts()
    walk = Walk(reader, **budgets)
    step = step or max(1, len(text))
    for at in range(0, len(text), step):
        walk.feed(text[at : at + step])
    walk.end()
    return walk, [b"".join(part.split()) for part in reader.parts]


def found(text, **kw):
    return walked(text, **kw)[1]


def lines(*rows):
    return b"".join(row + b"\r\n" for row in rows)


B64 = b"Content-Transfer-Encoding: base64"
MIXED = b'Content-Type: multipart/mixed; boundary="=_x"'


class WalkTests(SynchronousTestCase):
    """Which parts are found."""

    def test_plain(self):
        """A message without MIME has no base64 part, and is over for a walk as soon as its header is."""
        walk, parts = walked(lines(b"Subject: x", b"", b"content-transfer-encoding: base64", b"", b"QUJD"))

        self.assertEqual((parts, walk.base64, walk.over, walk.beyond), ([], False, True, ""))

    def test_single(self):
        """A whole message in base64 is one part; MIME-Version need not be there, nor a header at all before the text."""
        self.assertEqual(found(lines(B64, b"", b"QUJD", b"REVG")), [b"QUJDREVG"])
        self.assertEqual(found(lines(b"", b"QUJD")), [])
        self.assertEqual(found(b""), [])

    def test_ways_to_say_it(self):
        """The encoding is found however its field is written."""
        for field in (
            b"content-transfer-encoding:BASE64",
            b"Content-Transfer-Encoding : Base64",
            b"Content-Transfer-Encoding:\r\n\tbase64",
            b"Content-Transfer-Encoding:\r\n \r\n\tbase64",
            b"Content-Transfer-Encoding: (so (we) say) base64 (really)",
            b'Content-Transfer-Encoding: "base64"',
            b"Content-Transfer-Encoding: base64; x=y",
            b"Content-Transfer-Encoding: 7bit\r\nContent-Transfer-Encoding: base64",
            b"Content-Transfer-Encoding: base64\r\nContent-Transfer-Encoding: 7bit",
        ):
            self.assertEqual(found(lines(b"Subject: x", field, b"X: y", b"", b"QUJD")), [b"QUJD"], field)

    def test_many_fields(self):
        """However many fields there are, the one that counts is found."""
        for before in ([b"Content-Type: text/plain"] * 50, [b"Content-Transfer-Encoding: 7bit"] * 50):
            self.assertEqual(found(lines(*before, B64, *before, b"", b"QUJD")), [b"QUJD"])
        types = [b"Content-Type: text/plain"] * 50
        self.assertEqual(found(lines(*types, MIXED, b"", b"--=_x", B64, b"", b"QUJD")), [b"QUJD"])

    def test_contradiction(self):
        """Where one field says multipart and another does not, both are followed."""
        for fields in ((MIXED, b"Content-Type: text/plain"), (b"Content-Type: text/plain", MIXED)):
            text = lines(*fields, B64, b"", b"QUJD", b"--=_x", B64, b"", b"REVG")
            self.assertEqual(found(text), [b"QUJD", b"REVG"])
        self.assertEqual(found(lines(MIXED, B64, b"", b"QUJD", b"--=_x", B64, b"", b"REVG")), [b"REVG"])

    def test_long_field(self):
        """A field that is too long to be looked at whole is noticed."""
        for length, beyond in ((1000, ""), (9000, "field"), (50_000, "field")):
            field = b'Content-Type: multipart/mixed; x="' + b"y" * length + b'"; boundary=b'
            for step in (1000, None):
                self.assertEqual(
                    walked(lines(field, b"Subject: x", b"", b"--b", b"", b"x"), step=step)[0].beyond, beyond
                )

    def test_not_said(self):
        """What only looks like it is none."""
        for field in (
            b"Content-Transfer-Encoding: 7bit",
            b"X-Content-Transfer-Encoding: base64",
            b"Content-Type: base64",
        ):
            self.assertEqual(found(lines(field, b"", b"QUJD")), [], field)

    def test_multipart(self):
        """Each part in base64 is found, and no other, nor what stands before and behind the parts."""
        text = lines(
            MIXED, B64, b"", b"QUFB", b"--=_x", b"", b"text", b"--=_x", B64, b"", b"QUJD", b"--=_x  ", b"X: y", B64, b"",
            b"REVG", b"--=_x--", b"WFla",
        )  # fmt: skip

        self.assertEqual(found(text), [b"QUJD", b"REVG"])
        self.assertEqual(found(text.replace(b"\r\n", b"\n")), [b"QUJD", b"REVG"])

    def test_any_slices(self):
        """However the octets come, the same is found."""
        inner = lines(
            b"Content-Type: multipart/alternative; boundary=in",
            b"",
            b"--in",
            B64,
            b"",
            b"SU5O",
            b"--in--",
            b"--=_x",
            B64,
            b"",
            b"RU5E",
        )
        text = (
            lines(MIXED, b"", b"--=_x", b"Content-Type: message/rfc822", b"", b"Subject: x") + inner + lines(b"--=_x--")
        )

        for step in range(1, 60):
            self.assertEqual(found(text, step=step), [b"SU5O", b"RU5E"], step)

    def test_nested_boundaries(self):
        """A boundary of the outer multipart ends what is open within it, also where the inner one never ended."""
        text = lines(
            MIXED, b"", b"--=_x", b"Content-Type: multipart/mixed; boundary=in", b"", b"--in", B64, b"", b"QUJD", b"--=_x",
            B64, b"", b"REVG", b"--in", B64, b"", b"R0hJ",
        )  # fmt: skip

        self.assertEqual(found(text), [b"QUJD", b"REVG--inContent-Transfer-Encoding:base64R0hJ"])

    def test_longest_boundary(self):
        """Where one boundary begins with another, the longest that fits is meant."""
        text = lines(
            b"Content-Type: multipart/mixed; boundary=ab", b"", b"--ab", b"Content-Type: multipart/mixed; boundary=a", b"",
            b"--a", B64, b"", b"QUJD", b"--ab", B64, b"", b"REVG", b"--ab--",
        )  # fmt: skip

        self.assertEqual(found(text), [b"QUJD", b"REVG"])

    def test_dashes_in_boundary(self):
        """A boundary may end in dashes, and text may begin with them."""
        text = lines(
            b"Content-Type: multipart/mixed; boundary=a--", b"", b"--a--", B64, b"", b"QUJD", b"--", b"-- x", b"--a", b"--a----",
        )  # fmt: skip

        self.assertEqual(found(text), [b"QUJD----x--a"])

    def test_after_the_last(self):
        """Parts behind the last boundary are found too, for some show them."""
        self.assertEqual(found(lines(MIXED, b"", b"--=_x--", b"--=_x", B64, b"", b"QUJD")), [b"QUJD"])

    def test_header_cut_by_boundary(self):
        """A part that is header alone ends at the boundary."""
        text = lines(MIXED, b"", b"--=_x", B64, b"--=_x", B64, b"", b"QUJD", b"--=_x--")

        self.assertEqual(found(text), [b"", b"QUJD"])

    def test_messages(self):
        """Messages within messages are looked into, in a digest without being called so; encoded ones are base64."""
        rfc822 = b"Content-Type: message/rfc822"
        self.assertEqual(found(lines(rfc822, b"", rfc822, b"", B64, b"", b"QUJD")), [b"QUJD"])
        self.assertEqual(
            found(lines(rfc822, B64, b"", b"QUJD", b"", B64, b"", b"REVG")),
            [b"QUJD" + B64.replace(b" ", b"") + b"REVG"],
        )
        digest = b"Content-Type: multipart/digest; boundary=d"
        self.assertEqual(found(lines(digest, b"", b"--d", b"", B64, b"", b"QUJD", b"--d--")), [b"QUJD"])

    def test_multipart_without_boundary(self):
        """A multipart that names no boundary is a part itself."""
        self.assertEqual(found(lines(b"Content-Type: multipart/mixed", B64, b"", b"QUJD")), [b"QUJD"])

    def test_depth(self):
        """What is too deep is not followed, and that is said; the parts around it are."""

        def nested(n):
            rows = [
                row
                for i in range(n)
                for row in (b"Content-Type: multipart/mixed; boundary=b%d," % i, b"", b"--b%d," % i)
            ]
            return lines(*rows, B64, b"", b"QUJD", b"--b0,", B64, b"", b"REVG")

        walk, parts = walked(nested(5), depth=5)
        self.assertEqual((parts, walk.beyond), ([b"QUJD", b"REVG"], ""))
        walk, parts = walked(nested(6), depth=5)
        self.assertEqual((parts, walk.beyond), ([b"REVG"], "depth"))

    def test_parts(self):
        """After so many parts the walk is over."""
        text = lines(MIXED, b"") + lines(b"--=_x", B64, b"", b"QUJD") * 5

        walk, parts = walked(text, parts=5)
        self.assertEqual((len(parts), walk.beyond, walk.over), (5, "", False))
        walk, parts = walked(text, parts=4)
        self.assertEqual((len(parts), walk.beyond, walk.over), (4, "parts", True))

    def test_long_header(self):
        """A field is found behind a header of any length, and behind a field that is itself endless."""
        for before in (
            b"X: y\r\n" * 50_000,
            b"X: " + b"y" * 300_000 + b"\r\n",
            b"X: y" + b"\r\n y" * 100_000 + b"\r\n",
        ):
            for step in (1000, 8192, None):
                self.assertEqual(found(before + lines(B64, b"", b"QUJD"), step=step), [b"QUJD"])

    @given(st.binary(max_size=300), st.integers(1, 50))
    @settings(max_examples=50, deadline=None)
    def test_anything(self, junk, step):
        """Anything can be walked, and slices do not matter."""
        text = lines(MIXED, b"", b"--=_x", b"Content-Type: multipart/mixed; boundary=a", B64) + junk

        self.assertEqual(walked(text, step=step)[1], walked(text)[1])

    tokens = st.sampled_from(
        [b"\r\n", b"\r\n\r\n", b"--", b"--a", b"--b", b"--a--", MIXED, B64, b"Content-Type: multipart/digest; boundary=a",
         b"Content-Type: multipart/mixed; boundary=b", b"Content-Type: message/rfc822", b"x", b" ", b"\n", b"\r", b"-"]
    )  # fmt: skip

    @given(st.lists(tokens, max_size=60).map(b"".join), st.integers(1, 40))
    @settings(max_examples=150, deadline=None)
    def test_any_structure(self, text, step):
        """A structure of any form can be walked, and slices do not matter."""
        self.assertEqual(walked(text, step=step)[1], walked(text)[1])

    leaf = st.tuples(st.sampled_from([b"7bit", b"base64", b"quoted-printable"]), st.binary(max_size=200))
    trees = st.recursive(leaf, lambda children: st.lists(children, min_size=1, max_size=4), max_leaves=12)

    @given(trees, st.integers(1, 500))
    @settings(max_examples=60, deadline=None)
    def test_as_python_reads_it(self, tree, step):
        """In well-formed messages just those parts are found that Python's own parser finds."""
        text = b"MIME-Version: 1.0\r\n" + self.written(tree, iter(range(1000)))
        message = BytesParser(policy=policy.SMTP).parsebytes(text)
        expected = [
            part.get_payload(decode=True)
            for part in message.walk()
            if not part.is_multipart() and part["Content-Transfer-Encoding"] == "base64"
        ]

        self.assertEqual([base64.b64decode(part) for part in found(text, step=step)], expected)

    def written(self, tree, numbers):
        if isinstance(tree, tuple):
            encoding, octets = tree
            return lines(b"Content-Transfer-Encoding: " + encoding, b"", *base64.encodebytes(octets).split(b"\n"))
        name = b"=_%d=" % next(numbers)
        parts = b"".join(b"--" + name + b"\r\n" + self.written(child, numbers) + b"\r\n" for child in tree)
        return (
            lines(b"Content-Type: multipart/mixed;", b'\tboundary="' + name + b'"', b"")
            + parts
            + b"--"
            + name
            + b"--\r\n"
        )


class CostTests(SynchronousTestCase):
    """What hostile messages cost."""

    def hostile(self, n):
        nested = b"".join(b"Content-Type: multipart/mixed; boundary=b%d.\r\n\r\n--b%d.\r\n" % (i, i) for i in range(40))
        return {
            "depth 2000": b"".join(b"Content-Type: multipart/mixed; boundary=b%d.\r\n\r\n--b%d.\r\n" % (i, i) for i in range(n)),
            "20,000 parts": lines(MIXED, b"") + (b"--=_x\r\n" + B64 + b"\r\n\r\nQUJD\r\n") * (10 * n),
            "messages": b"Content-Type: message/rfc822\r\n\r\n" * (5 * n),
            "dashes": nested + b"\r\n--" * (50 * n),
            "comments": b"Content-Type: " + b"(" * (500 * n),
            "comments in parts": lines(MIXED, b"") + (b"--=_x\r\nContent-Type: " + b"()" * 64 + b"\r\n\r\nx\r\n") * n,
            "quotes": b"Content-Type: multipart/" + b'"' * (500 * n),
            "backslashes": b'Content-Type: a/b; boundary="' + b"\\" * (500 * n),
            "RFC 2231": (b"Content-Type: multipart/mixed" + b";boundary*1=a" * 600 + b"\r\n\r\n") * (n // 20),
            "folds": b"Content-Type: x" + b"\r\n x" * (100 * n),
            "lines": b"x" * (1000 * n),
            "fields": B64[:-6] * 1 + b"\r\nContent-T: x" * (50 * n),
        }  # fmt: skip

    def test_linear(self):
        """Twice the octets take no more than about twice the time, and never long."""
        for name, text in self.hostile(2000).items():
            once, twice = map(self.seconds, (text, text * 2))
            self.assertLess(once, 1.0, name)
            self.assertLess(twice, 4 * once + 0.05, name)

    def seconds(self, text):
        begun = time.process_time()
        walked(text, step=16384)
        return time.process_time() - begun

    def test_memory(self):
        """Of a message that has no structure only a little is kept."""
        for text in self.hostile(2000).values():
            walk = Walk(Parts())
            walk.feed(b"X: ")
            for at in range(0, len(text), 8192):
                walk.feed(text[at : at + 8192])
                self.assertLess(len(walk._rest), 40_000)


class FieldTests(SynchronousTestCase):
    """What two fields say."""

    def test_boundaries(self):
        """A boundary is found in all the ways in which it may be written."""
        for text, expected in {
            b" multipart/mixed; boundary=abc": [b"abc"],
            b' multipart/mixed; boundary="a b;c"': [b"a b;c"],
            b' multipart/mixed; boundary="a\\"b"': [b'a"b'],
            b' multipart/mixed; boundary="abc  "': [b"abc"],
            b" multipart/mixed;\r\n\tBOUNDARY = abc ; charset=x": [b"abc"],
            b' multipart/mixed; x="; boundary=no"; boundary=yes': [b"yes"],
            b' multipart/mixed (a (b) \\( "c) d) ; (e) boundary (f) = (g) abc (h)': [b"abc"],
            b' multipart/mixed; boundary="(no comment)"': [b"(no comment)"],
            b' multipart/mixed; boundary*0="ab"; boundary*1="cd"': [b"abcd"],
            b" multipart/mixed; boundary*1=cd; boundary*0=ab": [b"abcd"],
            b" multipart/mixed; boundary*0*=us-ascii'en'a%62; boundary*1*=%63d; boundary*2=%65": [b"abcd%65"],
            b" multipart/mixed; boundary*=utf-8''ab%3D": [b"ab="],
            b" multipart/mixed; boundary=one; boundary=two": [b"one", b"two"],
            b" multipart/mixed; boundary=one; boundary*0=tw; boundary*1=o": [b"one", b"two"],
            b" multipart/mixed" + b";x=y" * 100 + b";boundary=abc": [b"abc"],
            b" multipart/mixed" + b"".join(b";boundary=%d" % n for n in range(9)): [b"0", b"1", b"7", b"8"],
            b" multipart/mixed boundary=abc": [b"abc"],
            b' multipart/mixed; name="x; boundary=abc': [b"abc"],
            b" multipart/mixed; boundary": [],
            b' multipart/mixed; boundary=""': [],
            b"": [],
        }.items():
            self.assertEqual(list(boundaries(text)), expected, text)

    def test_bounded(self):
        """Of boundaries there are few, and short ones."""
        self.assertLessEqual(len(boundaries(b";boundary=a" + b"".join(b";boundary=%d" % n for n in range(1000)))), 4)
        self.assertLessEqual(len(boundaries(b";boundary=" + b"a" * 100_000)[0]), 600)

    def test_kind(self):
        """Type and subtype are found in any case and with comments around them."""
        for text, expected in {
            b" Multipart/Mixed; x=y": (b"multipart", b"mixed"),
            b"\r\n\t(x) message / (y) RFC822": (b"message", b"rfc822"),
            b" text": (b"text", b""),
            b" ;": (b"", b""),
            b"": (b"", b""),
        }.items():
            self.assertEqual(kind(text), expected, text)

    @given(st.binary(max_size=200))
    @settings(max_examples=100, deadline=None)
    def test_anything(self, text):
        """Any octets can be a field."""
        for name in boundaries(b"multipart/mixed; boundary" + text):
            self.assertTrue(name)
        kind(text)
        is_base64(text)
