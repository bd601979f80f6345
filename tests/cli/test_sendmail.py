import io
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qmq.cli.compose import BadText, completed, header_of, qualified, recipients_of, text_lines
from qmq.cli.mailboxes import BadMailbox, mailboxes
from qmq.cli.sendmail_options import parse
from qmq.cli.submit import NotSent
from qmq.wire.text import LineCheck


def lines(text, *, dot_ends=False, longest=65536):
    return b"".join(text_lines(io.BytesIO(text).readline, dot_ends=dot_ends, longest=longest))


def header(text):
    rest = text_lines(io.BytesIO(text).readline, dot_ends=False, longest=65536)
    fields, first = header_of(rest, 1 << 20)
    return fields, first + b"".join(rest)


class MailboxesTests(SynchronousTestCase):
    def test_lists(self):
        """Names, comments, groups and routes are passed over; the addresses stay as SMTP says them."""
        cases = {
            b"a@x.org": [b"a@x.org"],
            b"a@x.org, b@y.org": [b"a@x.org", b"b@y.org"],
            b'Ann Lee <a@x.org>,\r\n\t"Lee, Bob" <b@y.org>': [b"a@x.org", b"b@y.org"],
            b"a@x.org (Ann (really), <c@z.org>)": [b"a@x.org"],
            b"friends: a@x.org, Bob <b@y.org>;, c@z.org": [b"a@x.org", b"b@y.org", b"c@z.org"],
            b"undisclosed-recipients:;": [],
            b'"odd, local"@x.org': [b'"odd, local"@x.org'],
            b"<@relay.org,@two.org:a@x.org>": [b"a@x.org"],
            b"a . b @ x . org": [b"a.b@x.org"],
            b"user@x.org <user@y.org>": [b"user@y.org"],
            b"a@[192.0.2.1]": [b"a@[192.0.2.1]"],
            b"root": [b"root"],
            "jürgen@bücher.example".encode(): ["jürgen@bücher.example".encode()],
            b"<>": [b""],
            b"": [],
            b" , ,": [],
        }  # fmt: skip
        for text, addresses in cases.items():
            self.assertEqual(mailboxes(text), addresses, text)

    def test_no_guess(self):
        """What has no one meaning is refused: a guess would send mail to a stranger."""
        for text in (
            b"a@x.org b@y.org", b"a@x@y.org", b"<a@x.org> <b@y.org>", b"<a@x.org", b"a@x.org>", b"a@", b"@x.org",
            b"(a@x.org", b'"a@x.org', b"a\0@x.org", b"a[b@x.org", b"<a@x.org, b@y.org>", b"<a@x.org>b",
        ):  # fmt: skip
            with self.assertRaises(BadMailbox, msg=text):
                mailboxes(text)

    @given(st.binary(max_size=60))
    def test_any(self, text):
        """Whatever stands there: addresses without line ends and brackets, or a refusal."""
        try:
            found = mailboxes(text)
        except BadMailbox:
            return
        for one in found:
            self.assertNotRegex(one, rb"[\r\n\0]")

    @given(st.lists(st.from_regex(r"[a-z]{1,5}(\.[a-z]{1,5})?@[a-z]{1,5}\.example", fullmatch=True)))
    def test_all(self, addresses):
        """Every address of a list is found, in order."""
        text = ", ".join(f"N. {n} <{a}>" if n % 2 else a for n, a in enumerate(addresses))

        self.assertEqual(mailboxes(text.replace("N. ", '"N." ').encode()), [a.encode() for a in addresses])


class LinesTests(SynchronousTestCase):
    def test_ends(self):
        """Lines end in LF or CRLF, also the last; they leave with CRLF."""
        self.assertEqual(lines(b"a\nb\r\nc\r\r\n\nd"), b"a\r\nb\r\nc\r\n\r\nd\r\n")

    def test_bare_cr(self):
        """A CR within a line becomes a blank, as with Postfix."""
        self.assertEqual(lines(b"a\rb\nc\r"), b"a b\r\nc\r\n")

    def test_dot(self):
        """A dot alone ends the text, but with -i not."""
        self.assertEqual(lines(b"a\n.\nb\n", dot_ends=True), b"a\r\n")
        self.assertEqual(lines(b"a\r\n.\r\nb\n", dot_ends=True), b"a\r\n")
        self.assertEqual(lines(b"a\n.\nb\n"), b"a\r\n.\r\nb\r\n")

    def test_long(self):
        """A line that the primary would refuse is broken, and goes on with a blank; a dot in it ends nothing."""
        text = lines(b"x" * 96 + b".\n" + b"b\n", dot_ends=True, longest=100)

        self.assertEqual(text, b"x" * 96 + b"\r\n .\r\nb\r\n")

    @given(st.lists(st.sampled_from([b"\r", b"\n", b".", b"x", b"\xc3", b"yyyyyyy"]), max_size=40).map(b"".join))
    def test_any(self, text):
        """Whatever comes in, only whole lines go out, none too long, and no other octet is changed."""
        out = lines(text, longest=12)
        check = LineCheck(12)
        check.feed(out)

        self.assertTrue(check.end(), out)
        self.assertTrue(not out or out.endswith(b"\r\n"))
        kept = out.replace(b"\r\n ", b"").translate(None, b"\r\n ")
        self.assertEqual(kept, text.translate(None, b"\r\n "))


class ComposeTests(SynchronousTestCase):
    def test_header(self):
        """The header ends at the empty line, or where no field stands any more; a From line in front is none of it."""
        self.assertEqual(
            header(b"From ann Mon\n>From bob\nA: 1\n 2\nB: 3\n\nbody\n")[0], [b"A: 1\r\n 2\r\n", b"B: 3\r\n"]
        )
        self.assertEqual(header(b"A: 1\nno field\n"), ([b"A: 1\r\n"], b"no field\r\n"))
        self.assertEqual(header(b"just text\n"), ([], b"just text\r\n"))
        self.assertEqual(header(b""), ([], b""))

    def test_too_long(self):
        """A header without end is refused."""
        with self.assertRaises(BadText):
            header_of(text_lines(io.BytesIO(b"A: 1\n" * 100).readline, dot_ends=False, longest=1000), 50)

    def test_recipients(self):
        """To, Cc and Bcc name the recipients; of a message that was resent, its Resent fields alone do."""
        fields = [b"To: a@x.org\r\n", b"CC : b@x.org\r\n", b"Bcc: c@x.org\r\n", b"From: d@x.org\r\n"]

        self.assertEqual(recipients_of(fields), [b"a@x.org", b"b@x.org", b"c@x.org"])
        self.assertEqual(recipients_of([*fields, b"Resent-To: e@x.org\r\n"]), [b"e@x.org"])
        with self.assertRaisesRegex(BadText, "^To: 'a b' is no list"):
            recipients_of([b"To: a b\r\n"])

    def test_added(self):
        """What is missing is added; Bcc and its like go; all else stays to the octet."""
        fields = [b"X-Odd:  \xff\r\n", b"Bcc: c@x.org,\r\n\td@x.org\r\n", b"Return-Path: <e@x.org>\r\n"]

        text = completed(fields, ("Ann Lee", "a@x.org"), "<1@x.org>", "Thu, 26 Nov 2026 00:08:16 +0000")

        self.assertEqual(
            text,
            b"X-Odd:  \xff\r\nMessage-Id: <1@x.org>\r\nDate: Thu, 26 Nov 2026 00:08:16 +0000\r\n"
            b"From: Ann Lee <a@x.org>\r\n",
        )

    def test_not_added(self):
        """What is there stays as it is."""
        fields = [b"date: today\r\n", b"FROM: me\r\n", b"Message-ID: <1@x.org>\r\n"]

        self.assertEqual(completed(fields, ("", "a@x.org"), "<2@x.org>", "now"), b"".join(fields))

    def test_resent(self):
        """A message that is resent gets Resent fields, and no others."""
        text = completed([b"Resent-To: a@x.org\r\n"], ("", "b@x.org"), "<1@x.org>", "now")

        self.assertEqual(
            text, b"Resent-To: a@x.org\r\nResent-Message-Id: <1@x.org>\r\nResent-Date: now\r\nResent-From: b@x.org\r\n"
        )

    def test_name(self):
        """A full name cannot add a field; one that is not ASCII is encoded."""
        text = completed([], ("Änn\r\nBcc: x@y.org", "a@x.org"), "<1@x.org>", "now")

        self.assertEqual(text.count(b"\r\n"), 3)
        self.assertIn(b"From: =?utf-8?", text)

    def test_qualified(self):
        """A name without a domain is at ours."""
        self.assertEqual(
            [qualified(one, "me.example") for one in (b"root", b"a@x.org", b'"a@b"', b"")],
            [b"root@me.example", b"a@x.org", b'"a@b"@me.example', b""],
        )


class OptionsTests(SynchronousTestCase):
    def test_php(self):
        """What PHP and cron call it with."""
        call = parse(["-t", "-i", "-fweb@x.org"])
        self.assertEqual((call.mode, call.extract, call.dot_ends, call.sender), ("deliver", True, False, b"web@x.org"))
        call = parse(["-FCronDaemon", "-i", "-B8BITMIME", "-oem", "root"])
        self.assertEqual((call.name, call.dot_ends, call.recipients), ("CronDaemon", False, ["root"]))

    def test_together(self):
        """Letters stand together; the last may take a value, in the same word or the next."""
        call = parse(["-tif", "a@x.org"])
        self.assertEqual((call.extract, call.dot_ends, call.sender), (True, False, b"a@x.org"))
        self.assertFalse(parse(["-oi", "a@x.org"]).dot_ends)
        self.assertFalse(parse(["-o", "i", "a@x.org"]).dot_ends)

    def test_ignored(self):
        """What Postfix's sendmail takes without doing anything, we take."""
        call = parse(
            [
                "-Am",
                "-Ac",
                "-G",
                "-U",
                "-n",
                "-m",
                "-em",
                "-eq",
                "-oem",
                "-odb",
                "-o7",
                "-O",
                "X=1",
                "-L",
                "tag",
                "-N",
                "never",
                "-R",
                "hdrs",
                "-V",
                "id",
                "-h",
                "5",
                "-p",
                "x",
                "-X",
                "log",
                "-x",
                "--",
                "-odd@x.org",
            ]
        )
        self.assertEqual(call.recipients, ["-odd@x.org"])

    def test_ends(self):
        """The first recipient ends the options, as with Postfix; so does --."""
        self.assertEqual(parse(["a@x.org", "-t"]).recipients, ["a@x.org", "-t"])
        self.assertEqual(parse(["--", "-t"]).recipients, ["-t"])

    def test_null_sender(self):
        """-f with <> or nothing is the null sender; without -f it is who calls."""
        self.assertEqual(parse(["-f", "<>", "a"]).sender, b"")
        self.assertEqual(parse(["-f", "", "a"]).sender, b"")
        self.assertIsNone(parse(["a"]).sender)
        self.assertEqual(parse(["-f", "Ann <a@x.org>", "a"]).sender, b"a@x.org")

    def test_modes(self):
        """Each mode by its letter."""
        for words, mode in (
            ("-bm", "deliver"), ("-bs", "smtp"), ("-bp", "list"), ("-bv", "verify"), ("-bi", "aliases"),
            ("-I", "aliases"), ("-bh", "nothing"), ("-q15m", "nothing"), ("-q", "flush"),
        ):  # fmt: skip
            self.assertEqual(parse([words]).mode, mode, words)
        self.assertEqual(parse(["-q"]).flush, ["-f"])
        self.assertEqual(parse(["-qIab-1"]).flush, ["-i", "ab-1"])
        self.assertEqual(parse(["-qRx.org"]).flush, ["-s", "x.org"])

    def test_conf(self):
        """The configuration can be named; so contrib/sendmail does."""
        self.assertEqual(parse(["--conf", "/c", "-t"]).conf, "/c")
        self.assertEqual(parse(["-t", "--conf=/c"]).conf, "/c")

    def test_usage(self):
        """A wrong call ends with EX_USAGE."""
        for words in ("-Z", "-f", "-bq", "-bd", "-t -bp", "-bp a@x.org", "-qSx", "-B X a", "-XV", "--to", "-f a,b"):
            with self.assertRaises(NotSent, msg=words) as caught:
                parse(words.split())
            self.assertEqual(caught.exception.code, 64)

    @given(st.lists(st.text("-tifbqovFX a@.", min_size=1, max_size=6), max_size=5))
    def test_any(self, words):
        """Whatever is said: a call, or EX_USAGE."""
        try:
            parse(words)
        except NotSent as error:
            self.assertEqual(error.code, 64)


class StartTests(SynchronousTestCase):
    def test_quick(self):
        """It starts without Twisted, rich or the whole of conf-qmq."""
        code = (
            "import sys, qmq.cli.sendmail\n"
            "print([m for m in ('twisted', 'rich', 'qmq.conf.load', 'cryptography') if m in sys.modules])"
        )
        output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

        self.assertEqual(output.strip(), "[]")
