import time

from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qmq.rules.watched import BadLine
from qmq.rules.wildmat import Walk, plain

# SPAMCONTROL Appendix A.1
PATTERNS = [
    (b"*", b"", True),
    (b"?", b"", False),
    (b"?", b"a", True),
    (b"?", b"ab", False),
    (b"", b"", True),
    (b"*@*.*", b"user@dom", False),
    (b"user@*", b"USER@dom.com", False),
    (b"[0-9][0-9]@[0-9].com", b"12@3.com", True),
    (b"[^0-9]@y.z", b"x@y.z", True),
    (rb"a\*b@c", b"a*b@c", True),
    (rb"a\*b@c", b"aXb@c", False),
    (rb"*\ *@*", b"a b@c", True),
    (b"a[-x]b@c", b"a-b@c", True),
    (b"@b.com", b"a@b.com", False),
]

# Appendix A.2: the file, and what of it is refused
WALKS = [
    (b"* ! !*@*.* *%*", b"", False),
    (b"* ! !*@*.* *%*", b"user", True),
    (b"* ! !*@*.* *%*", b"user@host", True),
    (b"* ! !*@*.* *%*", b"%", True),
    (b"* ! !*@*.* *%*", b"user@h.tld", False),
    (b"* ! !*@*.* *%*", b"u%v@h.tld", True),
    (rb"*%* *\_*@* !*@*.*", b"u%x@d.c", False),
    (rb"*%* *\_*@* !*@*.*", b"a_b@d.c", False),
    (rb"*%* *\_*@* !*@*.*", b"u%x@d", True),
    (rb"*%* *\_*@* !*@*.*", b"a_b@d", True),
    (rb"*%* *\_*@* !*@*.*", b"u", False),
    (rb"*%* *\_*@* !*@*.*", b"a_b", False),
    (rb"*%* *\_*@* !*@*.*", b"u@d.c", False),
    (b"* !user1@d.c !*@e.f", b"user1@d.c", False),
    (b"* !user1@d.c !*@e.f", b"q@e.f", False),
    (b"* !user1@d.c !*@e.f", b"x@d.c", True),
    (b"* !user1@d.c !*@e.f", b"USER1@d.c", True),
]

QUIRKS = [
    (b"[]]x", b"]x", True),
    (b"[^]]x", b"]x", False),
    (b"[^]]x", b"ax", True),
    (b"[a-]x", b"-x", True),
    (rb"[a\]x", b"\\x", True),
    (rb"[*?]x", b"?x", True),
    (b"[a-c-e]x", b"dx", True),
    (b"[]-a]x", b"^x", True),
    (b"[--0]x", b".x", True),
    (b"[^a]", b"^", True),
    (b"[a^]", b"^", True),
    (b"a**b", b"ab", True),
    (b"**", b"", True),
    (rb"\!a", b"!a", True),
    (rb"\\", b"\\", True),
    (b"a]b", b"a]b", True),
    (b"a.b", b"axb", False),
    (b"*a?c", b"xabcabc", True),
    (b"?", b"\n", True),
    (b"*x", b"\xff\nx", True),
    (b"*[a-b]*c", b"xxbxxc", True),
]


def walk(*rules):
    return Walk(enumerate(rules, 1), "rules")


def matches(pattern, text):
    """Plainly, octet by octet, by all ways; no classes."""
    if not pattern:
        return not text
    if pattern[:1] == b"*":
        return any(matches(pattern[1:], text[skipped:]) for skipped in range(len(text) + 1))
    if pattern[:1] == b"\\":
        pattern = pattern[1:]
    elif pattern[:1] == b"?":
        return bool(text) and matches(pattern[1:], text[1:])
    return text[:1] == pattern[:1] and matches(pattern[1:], text[1:])


def walked(rules, text):
    """As the original walks: a plain line is asked while not refused, an exempting one while refused."""
    refused = False
    for rule in rules:
        exempts = rule.startswith(b"!")
        if exempts == refused and matches(rule[exempts:], text):
            refused = not refused
    return refused


PATTERN = st.lists(st.sampled_from([b"*", b"?", rb"\*", rb"\?", b"a", b"b", b"@"]), max_size=6).map(b"".join)
RULE = st.builds(bytes.__add__, st.sampled_from([b"", b"!"]), PATTERN)
TEXT = st.text("ab@*?", max_size=7).map(str.encode)


class WildmatTests(SynchronousTestCase):
    def test_patterns(self):
        """A pattern matches what the original's does."""
        for pattern, text, matched in PATTERNS + QUIRKS:
            self.assertEqual(walk(pattern).refuses(text), matched, (pattern, text))
            self.assertEqual(walk(b"*", b"!" + pattern).refuses(text), not matched, (pattern, text))
            self.assertEqual(walk(b"a?c?e", pattern, b"[0]12").refuses(text), matched, (pattern, text))

    def test_walks(self):
        """Of a list the last line that matches decides, as in the original."""
        for file, text, refused in WALKS:
            rules = [rule.replace(b"_", b" ") for rule in file.split(b" ")]
            self.assertEqual(walk(*rules).refuses(text.replace(b"_", b" ")), refused, (rules, text))

    @settings(max_examples=400, deadline=None)
    @given(st.lists(RULE, max_size=12), st.lists(TEXT, min_size=1, max_size=6))
    @example([b"*a", b"!a", b"b*"], [b"a"])
    @example([b"!a*", b"a", b"!*b"], [b"a", b"ab"])
    def test_as_walked(self, rules, texts):
        """A list, however it is asked, says what the original's walk says."""
        list_ = walk(*rules)
        # Literals of the list are texts worth asking too.
        for text in [*texts, *(rule.lstrip(b"!") for rule in rules)]:
            self.assertEqual(list_.refuses(text), walked(rules, text), (rules, text))

    @settings(max_examples=100, deadline=None)
    @given(st.binary(max_size=12), st.binary(max_size=12))
    def test_any_octets(self, rule, text):
        """Any line is a pattern, or refused with its place; any text can be asked for."""
        try:
            list_ = walk(b"x", rule)
        except BadLine as bad:
            self.assertEqual((bad.path, bad.line), ("rules", 2))
        else:
            self.assertIn(list_.refuses(text), (True, False))

    def test_domain_in_capitals(self):
        """A pattern's domain may be written in capitals: ours are in lower case; the local part stays as it is."""
        list_ = walk(b"*@Evil.Example", b"BOSS@*.Tld", b"[Aa]*@X[Y]")
        for text, refused in [
            (b"a@evil.example", True), (b"BOSS@a.tld", True), (b"boss@a.tld", False),
            (b"A@xY", True), (b"A@xy", False),
        ]:  # fmt: skip
            self.assertEqual(list_.refuses(text), refused, text)

    def test_bad_pattern(self):
        """What is no pattern is refused by file and line, with what to write instead."""
        for pattern, remedy in [
            (b"a[", rb"\["), (b"[", rb"\["), (b"[]", rb"\["), (b"[^]", rb"\["), (b"[a-", rb"\["), (b"[^", rb"\["),
            (b"a\\", rb"\\"), (b"!\\", rb"\\"), (b"[9-0]", b"[0-9]"), (b"[a-c-b]", b"[0-9]"),
        ]:  # fmt: skip
            with self.assertRaises(BadLine) as caught:
                walk(b"a", b"b", pattern)
            self.assertIn("rules:3: ", str(caught.exception))
            self.assertIn(remedy.decode(), str(caught.exception))

    def test_plain(self):
        """What has no special octet matches but itself."""
        self.assertEqual([plain(text) for text in (b"", b"a.b@c", b"a*", b"?", b"[", b"\\")], [True] * 2 + [False] * 4)

    def test_many_stars(self):
        """A stranger's address costs no time to speak of, whatever the pattern."""
        evil = [b"*a" * 40 + b"b", b"*a*" * 30 + b"[x]?", b"*?" * 40 + b"Z", b"*[a]" * 40 + b"x*y"]
        list_ = walk(*evil, *(b"!" + pattern for pattern in evil))
        started = time.process_time()
        self.assertFalse(list_.refuses(b"a" * 900))
        self.assertLess(time.process_time() - started, 0.2)

    def test_many_lines(self):
        """Lines that match but themselves cost one look, however many they are."""
        rules = [b"user%d@example.org" % number for number in range(20000)]
        list_ = walk(*rules, b"!user7@*", b"*@evil.example")
        started = time.process_time()
        for _ in range(1000):
            list_.refuses(b"a@b.example")
        self.assertLess(time.process_time() - started, 0.1)
        self.assertEqual([list_.refuses(rule) for rule in (rules[7], rules[8])], [False, True])
