import os
import shutil
import tempfile

import cdbx
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qmq.mail import Address, address
from qmq.rules.recipients import FOUND, PASSED, WILD, Keys, Program, keys, read, read_list, unknown
from qmq.rules.watched import BadLine, Files
from qmq.session import Conduct, Environment, Session


def write_cdb(path, *known):
    made = cdbx.CDB.make(path + ".new")
    for key in known:
        made.add(b":" + key, b"")
    made.commit().close()
    os.replace(path + ".new", path)


def program(name):
    """What looks programs up."""
    if name == "absent":
        raise ValueError("there is no program absent")
    return f"/bin/{name}"


class FolderCase(SynchronousTestCase):
    """A qmail folder."""

    def setUp(self):
        self.home = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.home)
        os.mkdir(os.path.join(self.home, "users"))
        self.warned = []
        self.files = Files(self.warned.append)

    def path(self, name):
        return os.path.join(self.home, name)

    def write(self, name, *lines):
        with open(self.path(name), "wb") as file:
            file.write(b"".join(line + b"\n" for line in lines))
        return self.path(name)

    def cdb(self, name, *known):
        write_cdb(self.path(name), *known)

    def read(self, *lines):
        return read(self.write("recipients", *lines), self.home, self.files, program)


class RecipientsTests(FolderCase):
    def said(self, rules, raw):
        """Why the address is known, as the checker goes about it; a program's name where it would be asked."""
        wanted = keys(address(raw))
        for source in rules.sources(wanted.domain):
            if isinstance(source, Program):
                return source.argv
            if reason := source.knows(wanted):
                return reason
        return ""

    def test_exact(self):
        """@dom is for the domain alone."""
        self.cdb("users/a.cdb", b"bob@one.test", b"bob@x.one.test")
        rules = self.read(b"@One.Test:users/a.cdb")

        self.assertEqual(self.said(rules, b"Bob@ONE.test"), FOUND)
        self.assertEqual(self.said(rules, b"eve@one.test"), "")
        self.assertEqual(self.said(rules, b"bob@x.one.test"), "")

    def test_domain_and_below(self):
        """Dom is for the domain and all below it, .dom for all below it: whole labels, not for what ends alike."""
        everywhere = [b"bob@" + d for d in (b"one.test", b"x.one.test", b"y.x.one.test", b"evilone.test", b"test")]
        self.cdb("a.cdb", *everywhere)

        for line, known in ((b"one.test:a.cdb", everywhere[:3]), (b".one.test:a.cdb", everywhere[1:3])):
            rules = self.read(line)
            self.assertEqual([raw for raw in everywhere if self.said(rules, raw)], known)

    def test_any(self):
        """*:path and a path alone are for any domain, without one it is localhost."""
        self.cdb("a.cdb", b"bob@one.test", b"root@localhost")

        for line in (b"*:a.cdb", b"a.cdb", b"*: a.cdb", self.path("a.cdb").encode()):
            rules = self.read(line)
            self.assertEqual([self.said(rules, raw) for raw in (b"bob@one.test", b"root", b"bob")], [FOUND, FOUND, ""])

    def test_each_is_asked(self):
        """Every source whose line fits is asked, in the order of the lines, until one knows the recipient."""
        self.cdb("a.cdb", b"a@x.one.test")
        self.cdb("b.cdb", b"b@x.one.test")
        rules = self.read(b"*:a.cdb", b"one.test:b.cdb", b"@x.one.test|check one two", b"other.test|no")

        self.assertEqual(self.said(rules, b"a@x.one.test"), FOUND)
        self.assertEqual(self.said(rules, b"b@x.one.test"), FOUND)
        self.assertEqual(self.said(rules, b"c@x.one.test"), ("/bin/check", "one", "two"))
        self.assertEqual(self.said(rules, b"c@one.test"), "")

    def test_wild(self):
        """!dom takes everybody in the domain, not below it, without asking."""
        rules = self.read(b"!One.test")

        self.assertEqual([self.said(rules, raw) for raw in (b"x@one.test", b"x@y.one.test")], [WILD, ""])

    def test_pass_others(self):
        """!* takes everybody in the domains that no line names, for which rcpthosts alone is the reason."""
        self.cdb("a.cdb", b"a@one.test")
        rules = self.read(b"one.test:a.cdb", b"*:a.cdb", b"!*")

        said = [self.said(rules, raw) for raw in (b"a@one.test", b"b@one.test", b"b@x.one.test", b"b@two.test")]
        self.assertEqual(said, [FOUND, "", "", PASSED])

    def test_extensions(self):
        """Who is not known is looked for without what stands behind the first -."""
        self.cdb("a.cdb", b"list-@one.test", b"a-b@one.test")
        rules = self.read(b"a.cdb")

        addresses = (
            b"List-bob=x.test-y@one.test",
            b"list-@one.test",
            b"list@one.test",
            b"a-b@one.test",
            b"a-c@one.test",
        )
        self.assertEqual([self.said(rules, raw) for raw in addresses], [FOUND, FOUND, "", FOUND, ""])

    def test_breaks(self):
        """The place to cut can be another, or none."""
        bob = Address(b"bob+a-b", b"one.test")

        self.assertEqual(keys(bob, (b"+", b"-")), Keys(b"one.test", b"bob+a-b@one.test", b"bob+@one.test"))
        self.assertEqual(keys(bob, ()), Keys(b"one.test", b"bob+a-b@one.test", b""))

    def test_list(self):
        """A source not named .cdb is a list of addresses, and of domains whose addresses are all taken."""
        self.write("users/list", b"# ours", b"", b"Bob@One.test  ", b"list-@one.test", b"@two.test")
        rules = self.read(b"*:users/list")

        said = [
            self.said(rules, raw)
            for raw in (b"bob@one.test", b"list-x@one.test", b"x@two.test", b"x@one.test", b"x@a.two.test")
        ]
        self.assertEqual(said, [FOUND, FOUND, WILD, "", ""])

    def test_program(self):
        """A program has up to five arguments."""
        rules = self.read(b"*|check a:1  b c d e")

        self.assertEqual(self.said(rules, b"x@one.test"), ("/bin/check", "a:1", "b", "c", "d", "e"))

    def test_bad_lines(self):
        """A line that is none, and a source that is not there or no cdb, is refused by file and line."""
        self.write("bad.cdb", b"x")
        self.write("list", b"bob")
        for line, word in (
            (b"*|", "no program"), (b"*|check 1 2 3 4 5 6", "5 arguments"), (b"*|absent", "absent"),
            (b"one..test:list", "no domain"), (b"*.one.test:list", "no domain"), (b":list", "no domain"), (b"!", "no domain"),
            (b"one.test:", "no path"), (b"one.test:absent.cdb", "absent.cdb"), (b"one.test", "one.test"),
            (b"bad.cdb", "bad.cdb"), (b"*:list", "'bob' is no address"), (b"!*\n!one.test", "last"), (b"bob@x.test:list", "no domain"),
        ):  # fmt: skip
            with self.assertRaises(BadLine) as caught:
                self.read(b"#", line)
            self.assertIn(self.path("recipients") + ":2: ", str(caught.exception))
            self.assertIn(word, str(caught.exception))

    def test_edited_source(self):
        """A cdb or a list that is replaced counts from the next connection on."""
        self.cdb("a.cdb", b"a@one.test")
        self.write("list", b"a@two.test")
        rules = self.read(b"a.cdb", b"*:list")
        self.cdb("a.cdb", b"b@one.test", b"c@one.test")
        self.write("list", b"# nobody any more, for now")

        before = [self.said(rules, raw) for raw in (b"a@one.test", b"b@one.test", b"a@two.test")]
        self.files.look()
        after = [self.said(rules, raw) for raw in (b"a@one.test", b"b@one.test", b"a@two.test")]

        self.assertEqual((before, after), ([FOUND, "", FOUND], ["", FOUND, ""]))
        self.assertEqual(self.warned, [])

    def test_lost_source(self):
        """A source that is gone, or broken, stays as it was, and the operator is told once."""
        self.cdb("a.cdb", b"a@one.test")
        self.cdb("b.cdb", b"b@one.test")
        rules = self.read(b"a.cdb", b"b.cdb")
        os.unlink(self.path("a.cdb"))
        self.write("b.cdb", b"broken")
        for _ in range(3):
            self.files.look()
            self.assertEqual([self.said(rules, raw) for raw in (b"a@one.test", b"b@one.test")], [FOUND, FOUND])

        self.assertEqual(len(self.warned), 2)
        self.assertIn("a.cdb is gone", self.warned[0])
        self.assertIn("b.cdb", self.warned[1])

    def test_many_domains(self):
        """However many domains are asked for, no more than ten thousand are remembered."""
        rules = self.read(b"!one.test")

        for number in range(25_000):
            rules.sources(b"%d.test" % number)

        self.assertLess(len(rules._gathered), 10_001)

    @given(st.binary(max_size=40), st.binary(max_size=40))
    def test_any_address(self, local, domain):
        """Whatever a stranger calls a mailbox, it is looked up, and not found."""
        if "known" not in vars(self):
            self.cdb("a.cdb", b"known@one.test")
            self.write("list", b"known@two.test")
            self.known = self.read(b"one.test:a.cdb", b"*:list")

        self.assertEqual(self.said(self.known, local + b"@" + domain), "")

    @given(st.binary(max_size=60))
    def test_any_file(self, text):
        """Any octets in the files are rules, or refused with a line; nothing else comes of them."""
        for reader in (lambda path: read(path, self.home, self.files, program), read_list):
            try:
                reader(self.write("any", text))
            except BadLine as refused:
                self.assertIn(self.path("any") + ":", str(refused))


class UnknownTests(SynchronousTestCase):
    def said(self, **environment):
        conduct = Conduct()
        session = Session("192.0.2.1", 1, "192.0.2.2", 25, environment=Environment(**environment), conduct=conduct)
        verdict = unknown(session)
        self.assertEqual(conduct.failed_recipients, 1)
        self.assertEqual(verdict.reason, "Reject::RCPT::Failed_Rcptto")
        return verdict.reply.code, verdict.reply.status, verdict.reply.text

    def test_unknown(self):
        """An unknown mailbox is refused for good, with RECIPIENTS450 for now, in the site's own words, and counted."""
        self.assertEqual(self.said()[:2], (550, "5.7.1"))
        self.assertEqual(self.said(recipients450=True)[:2], (450, "4.2.1"))
        self.assertTrue(self.said(replies={"REPLY_MAILBOX": "call us"})[2].endswith("call us"))
