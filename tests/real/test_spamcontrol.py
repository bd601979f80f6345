"""
SPAMCONTROL's checks as a client meets them: each through a session with a running gateway.

One gateway serves all tests; each test has a client address of its own, and
edits rules and control files while it runs, as an operator would.
"""

import atexit
import os
import re
import time
from functools import cache
from pathlib import Path

import pytest
from cdbx import CDB
from twisted.trial.unittest import SynchronousTestCase

from tests.real.gateway import Gateway, Sink, until
from tests.real.names import Names

pytestmark = pytest.mark.slow

RECORDS = {
    "client.test": {"A": ["192.0.2.1"]},
    "mx-only.test": {"MX": ["10 mx.other.test."]},
    "mx.other.test": {"A": ["192.0.2.9"]},
    "source.test": {"A": ["192.0.2.1"], "TXT": ['"v=spf1 ip4:127.0.0.1 -all"']},
    "soft.test": {"A": ["192.0.2.1"], "TXT": ['"v=spf1 ~all"']},
    "neutral.test": {"A": ["192.0.2.1"], "TXT": ['"v=spf1 ?all"']},
    "pass.test": {"A": ["192.0.2.1"], "TXT": ['"v=spf1 +all"']},
    "none.test": {"A": ["192.0.2.1"]},
    "explains.test": {"TXT": ['"v=spf1 -all exp=why.explains.test"']},
    "why.explains.test": {"TXT": ['"%{i} is not one of %{d}"']},
    "sad.test": "servfail",
    "nullmx.test": {"MX": ["0 ."]},
    "mail.yahoo.test": {"A": ["127.0.2.1"]},
    "1.2.0.127.in-addr.arpa": {"PTR": ["mail.yahoo.test."]},
    "2.2.0.127.in-addr.arpa": {"PTR": ["mx.evil.test."]},
    "mx.evil.test": {"A": ["127.0.2.2"]},
    "3.2.0.127.in-addr.arpa": {"PTR": ["liar.yahoo.test."]},  # and no address says so too
    "9.3.0.127.bl.test": {"A": ["127.0.0.2"], "TXT": ['"see http://bl.test/"']},
    "8.3.0.127.bl.test": {"A": ["127.0.0.2"], "TXT": ['"listed too"']},
    "8.3.0.127.wl.test": {"A": ["127.0.0.2"]},
}


def cdb(path, entries):
    """Make a cdb, and put it in place in one step."""
    fresh = f"{path}.new"
    maker = CDB.make(fresh)
    for key, text in entries.items():
        maker.add(key, text)
    maker.commit().close()
    os.replace(fresh, path)


def script(path, text):
    """Make a program."""
    Path(path).write_text(f"#!/bin/sh\n{text}\n")
    os.chmod(path, 0o755)
    return path


_CLASSIC = re.compile(
    r"qmail-smtpd: pid (?P<pid>\d+) (?P<word>\S+) P:(?P<proto>\S*) S:(?P<ip>[0-9a-f.:]*):(?P<host>[^ :]*) "
    r"H:(?P<helo>\S*) F:(?P<sender>\S*) T:(?P<rcpt>\S*)(?: '(?P<info>[^']*)')?$"
)


class House:
    """A gateway with hosts behind it and a name server."""

    def __init__(self):
        self.sink = Sink()
        self.host = Sink()  # of three.test; knows its mailboxes
        self.host.answers[b"RCPT"] = lambda line: (
            b"550 no such user\r\n" if b"nobody" in line else b"451 later\r\n" if b"busy" in line else None
        )
        self.names = Names(RECORDS)
        self.gateway = Gateway(
            {
                "one.test": f"smtp:127.0.0.1:{self.sink.port}",
                "two.test": f"smtp:127.0.0.1:{self.sink.port}",
                "three.test": f"smtp:127.0.0.1:{self.host.port}",
                "four.test": f"smtp:127.0.0.1:{self.host.port}",
            },
            qmq=f"nameservers = 127.0.0.1:{self.names.port}\nworkers = 0",
            primary="errors = 100",
            sections={
                "two": "databytes = 64K\nspf = 3\nrecipients = two.recipients\nbadmailfrom = two.badmailfrom",
                "three": "callout = open",
                "four": "callout = closed",
            },
            extra="[check dnsbl]\nlists = bl.test\nallow = wl.test\nprivate = yes\n"
            "[check tarpit]\nsleepers = 2\n"
            "[check qhpsi]\ntime = 3s\n"
            "[client 127.0.9.0/24]\nhelocheck = !\nmaxrecipients = 1\n",
        )
        self.control = Path(self.gateway.folder) / "control"
        self.control.mkdir()
        (Path(self.gateway.folder) / "tcp.smtp").write_text(":allow\n")
        (Path(self.gateway.folder) / "two.recipients").write_text("!two.test\n")
        (Path(self.gateway.folder) / "two.badmailfrom").write_text("@enemy-of-two.test\n")
        self.gateway.start()

    def close(self):
        self.gateway.clear()
        self.names.close()
        self.sink.close()
        self.host.close()


@cache
def house():
    """The one that all share; made when it is first asked for (trial knows no setUpClass)."""
    made = House()
    atexit.register(made.close)
    return made


class Sessions:
    """What tests of a shared gateway do: rules and files, sessions, and a look into the log."""

    def setUp(self):
        self.house = house()
        self.folder = Path(self.house.gateway.folder)
        self.control = self.house.control
        self.rules(":allow")
        for file in self.control.iterdir():
            file.unlink()
        self.before = os.path.getsize(self.house.gateway.log)

    def rules(self, *lines):
        (self.folder / "tcp.smtp").write_text("\n".join(lines) + "\n")

    def put(self, name, text):
        (self.control / name).write_text(text)

    def client(self, source="127.0.0.1", variables="", **how):
        """A session from that address, with these variables by a rule of its own."""
        if variables:
            self.rules(f"{source}:allow,{variables}", ":allow")
        client = self.house.gateway.client(source=source, **how)
        self.addCleanup(client.close)
        return client

    def arrives(self, mark):
        """The host behind one.test gets it; else what the gateway says of it."""
        try:
            until(lambda: self.house.sink.marks[mark])
        except AssertionError as late:
            raise AssertionError(f"{late}\n{self.house.gateway.text()[-4000:]}") from None

    def ask(self, client, sender="a@source.test", recipient="bob@one.test"):
        """What one recipient gets."""
        self.assertEqual(client.say(f"MAIL FROM:<{sender}>")[:3], b"250")
        answer = client.say(f"RCPT TO:<{recipient}>")
        self.assertEqual(client.say("RSET")[:3], b"250")
        return answer.decode().rstrip()

    def logged(self, word, part="", seconds=5):
        """A classic line with that word, and that part."""

        def look():
            with open(self.house.gateway.log, errors="replace") as log:
                log.seek(self.before)
                return next((line for line in log if f" {word} " in line and part in line), None)

        return until(look, seconds)

    def classic(self, word, **fields):
        """A line with that word has these fields, and the form of the original."""

        def look():
            with open(self.house.gateway.log, errors="replace") as log:
                log.seek(self.before)
                lines = [line.rstrip("\n") for line in log if f" {word} " in line]
            matches = [_CLASSIC.search(line) for line in lines]
            return any(match and all(match[key] == fields[key] for key in fields) for match in matches)

        until(look, 5)


class SpamcontrolTests(Sessions, SynchronousTestCase):
    def test_rcpthosts(self):
        """Without a rule a stranger reaches our domains only; an unlisted one is no open relay (2.20 #14)."""
        client = self.client()

        self.assertEqual(self.ask(client)[:3], "250")
        self.assertEqual(self.ask(client, recipient="x@foreign.test"), "553 5.7.1 relaying denied")
        self.classic(
            "Reject::SNDR::Invalid_Relay", proto="ESMTP", ip="127.0.0.1", helo="client.test", sender="a@source.test",
            rcpt="x@foreign.test", info=None,
        )  # fmt: skip
        self.classic("Accept::RCPT::Rcpthosts_Rcptto", rcpt="bob@one.test", info=None)

    def test_rcpthosts_edited(self):
        """An edit of control/rcpthosts holds for the next connection; domains of conf-qmq itself stay."""
        client = self.client()
        self.assertEqual(self.ask(client, recipient="x@elsewhere.test")[:3], "553")
        self.put("rcpthosts", "elsewhere.test\n.one.test\n")
        client = self.client()
        self.assertEqual(self.ask(client, recipient="x@elsewhere.test")[:3], "550")  # nobody's queue
        self.assertEqual(self.ask(client, recipient="x@one.test")[:3], "250")

    def test_relayclient(self):
        """RELAYCLIENT of a rule lets a client send anywhere; its text goes behind the recipient."""
        self.assertEqual(self.ask(self.client("127.0.1.1", 'RELAYCLIENT=""'), recipient="x@two.test")[:3], "250")
        self.classic("Accept::SNDR::Relay_Client", rcpt="x@two.test")
        client = self.client("127.0.1.2", 'RELAYCLIENT="@one.test"')
        self.assertEqual(client.mail("x@foreign.test", mark="suffix")[:3], b"250")
        self.arrives(b"suffix")
        recipients = next(r for _, r, text in self.house.sink.messages if b"X-Mark: suffix" in text)
        self.assertEqual(recipients, [b'"x@foreign.test"@one.test'])

    def test_rules_order(self):
        """The most specific rule counts, alone; a denied client is not let in; edits hold for the next connection."""
        self.rules('127.0.1.3:allow,MAXRECIPIENTS="1"', '127.0.1.:allow,RELAYCLIENT=""', "127.0.1.40-42:deny", ":allow")
        self.assertEqual(self.ask(self.client("127.0.1.3"), recipient="x@foreign.test")[:3], "553")
        self.assertEqual(self.ask(self.client("127.0.1.99"), recipient="x@two.test")[:3], "250")
        denied = self.client("127.0.1.41", hello=False)
        self.assertEqual(denied.banner[:3], b"554")
        self.rules("127.0.1.3:deny", ":allow")
        self.assertEqual(self.client("127.0.1.3", hello=False).banner[:3], b"554")
        self.assertEqual(self.client("127.0.1.41").banner[:3], b"220")

    def test_rules_by_name(self):
        """A rule for a host's name holds where the name is confirmed by its address, and not for one that lies."""
        self.rules('=.yahoo.test:allow,RELAYCLIENT=""', ":allow")
        self.assertEqual(self.ask(self.client("127.0.2.1"), recipient="x@foreign-but.two.test")[:3], "550")  # nobody's
        self.rules('=.yahoo.test:allow,MAXRECIPIENTS="1"', ":allow")
        for source, codes in (("127.0.2.1", ["250", "452"]), ("127.0.2.3", ["250", "250"])):
            client = self.client(source)
            client.say("MAIL FROM:<a@source.test>")
            self.assertEqual([client.say(f"RCPT TO:<u{n}@one.test>")[:3].decode() for n in (1, 2)], codes)

    def test_client_section(self):
        """A [client NET] of conf-qmq gives its words to its clients."""
        client = self.client("127.0.9.1")
        client.say("MAIL FROM:<a@source.test>")
        self.assertEqual([client.say(f"RCPT TO:<u{n}@one.test>")[:3] for n in (1, 2)], [b"250", b"452"])

    def test_badhelo(self):
        """A listed HELO is refused at RCPT, with the form that hit; an exempted one is not."""
        self.put("badhelo", "evil.test\n*.dyn.test\ngood.dyn.test!\n")
        variables = 'HELOCHECK=""'
        client = self.client("127.0.1.4", variables)
        for helo, info in (("evil.test", "."), ("a.dyn.test", "*")):
            self.assertEqual(client.say(f"EHLO {helo}")[:3], b"250")
            self.assertEqual(self.ask(client)[:9], "550 5.7.1")
            self.classic("Reject::SNDR::Bad_Helo", helo=helo, info=info)
        for helo in ("good.dyn.test", "other.test"):
            client.say(f"EHLO {helo}")
            self.assertEqual(self.ask(client)[:3], "250", helo)

    def test_helocheck_modes(self):
        """`!` and `.` refuse an empty name, any word of one character a missing HELO; `=` A and M ask DNS."""
        for mode, helo, code in (
            ("!", "", "550"), (".", "", "550"), ("!", "x", "250"),
            ("A", "client.test", "250"), ("A", "absent.test", "550"), ("A", "sad.test", "4"),
            ("M", "mx-only.test", "250"), ("M", "client.test", "250"), ("M", "absent.test", "550"),
        ):  # fmt: skip
            client = self.client("127.0.1.5", f'HELOCHECK="{mode}"', hello=False)
            self.assertEqual(client.say(f"HELO {helo}")[:3], b"250")
            self.assertTrue(self.ask(client).startswith(code), (mode, helo))
        self.classic("Reject::SNDR::DNS_Helo", info="A", helo="absent.test")
        for mode in "!.=AM":
            client = self.client("127.0.1.5", f'HELOCHECK="{mode}"', hello=False)
            self.assertEqual(self.ask(client)[:3], "550", mode)
        for helo, code in (("Mail.Yahoo.test", "250"), ("mx.yahoo.test", "550")):
            client = self.client("127.0.2.1", 'HELOCHECK="="', hello=helo)
            self.assertEqual(self.ask(client)[:3], code, helo)

    def test_helo_corrected(self):
        """A second, right HELO is not held to the first (2.20 #10)."""
        client = self.client("127.0.2.1", 'HELOCHECK="="', hello="wrong.test")
        self.assertEqual(self.ask(client)[:3], "550")
        client.say("EHLO mail.yahoo.test")
        self.assertEqual(self.ask(client)[:3], "250")

    def test_mfdnscheck(self):
        """A sender's domain must be in DNS; a null MX refuses; trouble is 451, once, at RCPT (2.20 #6)."""
        client = self.client("127.0.1.6", 'MFDNSCHECK=""')
        for sender, code in (
            ("a@source.test", "250"), ("a@mx-only.test", "250"), ("", "250"),
            ("a@absent.test", "553"), ("a@nullmx.test", "553"), ("a@sad.test", "451"),
        ):  # fmt: skip
            self.assertEqual(self.ask(client, sender)[:3], code, sender)
        self.classic("Reject::ORIG::DNS_MF", sender="a@absent.test", info=None)
        self.assertEqual(self.ask(self.client("127.0.1.7"), "a@absent.test")[:3], "250")

    def test_badmailfrom(self):
        """All forms of badmailfrom, the sender's own exemption from MFDNSCHECK too, for relay clients as well."""
        self.put(
            "badmailfrom",
            "?good@absent.test\n@absent.test\n@yahoo.test=\n@ours.test+\n@named.test-\n~yahoo.test\nspam@x.test\n*\n!\n!*@*.*\n*%*\n",
        )
        variables = 'MFDNSCHECK=""'
        for source, sender, code, info in (
            ("127.0.1.8", "good@absent.test", "250", None), ("127.0.1.8", "bad@absent.test", "553", None),
            ("127.0.2.1", "a@yahoo.test", "250", None), ("127.0.2.2", "a@yahoo.test", "553", "="),
            ("127.0.2.2", "a@YAHOO.test", "553", "="), ("127.0.1.8", "a@yahoo.test", "250", None),
            ("127.0.1.8", "me@ours.test", "553", "+"), ("127.0.1.8", "a@named.test", "553", "-"),
            ("127.0.2.2", "a@named.test", "250", None), ("127.0.2.1", "a@source.test", "553", "~"),
            ("127.0.2.1", "", "250", None), ("127.0.1.8", "SPAM@x.test", "553", "@"),
            ("127.0.1.8", "", "250", None), ("127.0.1.8", "a%b@x.test", "553", "*"),
        ):  # fmt: skip
            client = self.client(source, variables if "absent" in sender else 'X="y"')
            self.assertEqual(self.ask(client, sender)[:3], code, (source, sender))
            if info:
                self.logged(
                    "Reject::ORIG::Bad_Mailfrom", f"F:{sender.replace('YAHOO', 'yahoo')} T:bob@one.test '{info}'"
                )
        client = self.client("127.0.1.9", 'RELAYCLIENT=""')
        self.assertEqual(self.ask(client, "spam@x.test")[:3], "553")
        self.assertEqual(self.ask(client, "me@ours.test")[:3], "250")

    def test_badmailfrom_of_an_instance(self):
        """An instance's own list is asked for its recipients only."""
        client = self.client()
        self.assertEqual(self.ask(client, "a@enemy-of-two.test", "x@two.test")[:3], "553")
        self.assertEqual(self.ask(client, "a@enemy-of-two.test", "x@one.test")[:3], "250")

    def test_badrcptto(self):
        """A listed recipient is refused, for relay clients too, with the site's own words."""
        self.put("badrcptto", "spamtrap@one.test\n@nobody.one.test\n*%*\n!ok%ok@one.test\n")
        client = self.client("127.0.1.10", 'RELAYCLIENT="",REPLY_BADRCPTTO="call us"')
        self.assertRegex(self.ask(client, recipient="SpamTrap@one.test"), r"^553 5\.7\.1 .*call us$")
        self.classic("Reject::RCPT::Bad_Rcptto", rcpt="SpamTrap@one.test", info=None)
        for recipient, code in (("u%x@one.test", "553"), ("ok%ok@one.test", "250"), ("bob@one.test", "250")):
            self.assertEqual(self.ask(client, recipient=recipient)[:3], code, recipient)

    def test_morercpthosts(self):
        """A domain of morercpthosts.cdb is one of ours, if an instance has it."""
        cdb(self.control / "morercpthosts.cdb", {b"one.test": b"", b".elsewhere.test": b""})
        client = self.client()
        self.assertEqual(self.ask(client, recipient="x@a.elsewhere.test")[:3], "550")  # nobody's queue
        self.assertEqual(self.ask(client, recipient="x@b.test")[:3], "553")

    def test_recipients(self):
        """Unknown mailboxes are refused by each kind of source, 450 where the client's rule says so."""
        (self.folder / "users").mkdir(exist_ok=True)
        cdb(self.folder / "users" / "one.cdb", {b":bob@one.test": b"", b":list-@one.test": b""})
        checker = script(
            self.folder / "checker",
            'read -r address <&3; case "$address" in carol@*) exit 0;; dave@*) exit 111;; esac; exit 1',
        )
        self.put("recipients", f"@one.test:users/one.cdb\none.test|{checker}\n")
        for recipient, code, word in (
            ("Bob@one.test", "250", "Accept::RCPT::Recipients_Cdb"), ("list-x=y@one.test", "250", "Accept::RCPT::Recipients_Cdb"),
            ("carol@one.test", "250", "Accept::RCPT::Recipients_Pam"), ("nobody@one.test", "550", "Reject::RCPT::Failed_Rcptto"),
            ("dave@one.test", "4", ""),
        ):  # fmt: skip
            client = self.client()
            client.say("MAIL FROM:<a@source.test>")
            self.assertTrue(client.say(f"RCPT TO:<{recipient}>").decode().startswith(code), recipient)
            if word:
                self.classic(word, rcpt=recipient)
        client = self.client("127.0.1.11", 'RECIPIENTS450="",REPLY_MAILBOX="ask bob"')
        self.assertRegex(self.ask(client, recipient="nobody@one.test"), "^450 4.2.1 .*ask bob$")
        self.assertEqual(self.ask(self.client("127.0.1.12", 'RELAYCLIENT=""'), recipient="nobody@one.test")[:3], "250")
        self.assertEqual(self.ask(self.client(), "a@none.test", "whoever@two.test")[:3], "250")
        self.classic("Accept::RCPT::Recipients_Wild", rcpt="whoever@two.test")

    def test_callout(self):
        """The customer's own host is asked; what it said is remembered; if it cannot say, `open` takes, `closed` defers."""
        for recipient, code in (
            ("bob@three.test", "250"), ("nobody@three.test", "550"), ("busy@three.test", "250"),
            ("busy@four.test", "450"), ("nobody@four.test", "550"), ("bob@four.test", "250"),
        ):  # fmt: skip
            self.assertEqual(self.ask(self.client(), "a@none.test", recipient)[:3], code, recipient)
        self.classic("Reject::RCPT::Failed_Rcptto", rcpt="nobody@three.test")
        self.classic("Accept::RCPT::Recipients_Callout", rcpt="bob@four.test")
        asked = self.house.host.connections
        self.assertEqual(self.ask(self.client(), "a@none.test", "nobody@three.test")[:3], "550")
        self.assertEqual(self.house.host.connections, asked)
        relay = self.client("127.0.1.60", 'RELAYCLIENT=""')
        self.assertEqual(self.ask(relay, "a@none.test", "nobody@three.test")[:3], "250")

    def test_tarpit(self):
        """After n unknown recipients 452; from the n-th RCPT on answers come late; a notorious client is cut off at DATA."""
        self.put("recipients", "@two.test:none.txt\n!*\n")
        (self.folder / "none.txt").write_text("someone@two.test\n")
        (self.folder / "two.recipients").write_text(f"@two.test:{self.folder}/none.txt\n")
        self.addCleanup((self.folder / "two.recipients").write_text, "!two.test\n")
        client = self.client("127.0.1.13", 'TARPITCOUNT="2",TARPITDELAY="999"')
        client.say("MAIL FROM:<a@source.test>")
        self.assertEqual(client.say("RCPT TO:<bob@one.test>")[:3], b"250")
        codes = [client.say(f"RCPT TO:<no{n}@two.test>")[:3] for n in range(3)]
        self.assertEqual(codes, [b"550", b"550", b"452"])
        self.classic("Reject::RCPT::Toomany_Rcptto", rcpt="no2@two.test", info=None)
        self.assertEqual(client.say("DATA")[:3], b"503")
        self.assertEqual(client.reply(), b"")

        client = self.client("127.0.1.14", 'TARPITCOUNT="2",TARPITDELAY="1"')
        client.say("MAIL FROM:<a@source.test>")
        times = []
        for n in range(3):
            began = time.monotonic()
            self.assertEqual(client.say(f"RCPT TO:<u{n}@one.test>")[:3], b"250")
            times.append(time.monotonic() - began > 0.9)
        self.assertEqual(times, [False, True, True])

    def test_maxrecipients(self):
        """Beyond MAXRECIPIENTS a message gets 452, from relay clients too; the next message begins anew."""
        client = self.client("127.0.1.15", 'RELAYCLIENT="",MAXRECIPIENTS="2"')
        for _ in range(2):
            client.say("MAIL FROM:<a@source.test>")
            codes = [client.say(f"RCPT TO:<u{n}@one.test>")[:9] for n in range(3)]
            self.assertEqual(codes, [b"250 2.1.5", b"250 2.1.5", b"452 4.5.3"])
            client.say("RSET")
        self.classic("Reject::RCPT::Toomany_Rcptto", rcpt="u2@one.test")

    def test_greetdelay(self):
        """A client that does not wait for its banner is refused; one that waits is greeted late."""
        self.rules('127.0.1.16:allow,GREETDELAY="1"', ":allow")
        began = time.monotonic()
        early = self.client("127.0.1.16", early=b"EHLO x\r\n", hello=False)
        self.assertEqual(early.banner[:3], b"554")
        self.logged("Reject::SNDR::Early_Talker")
        patient = self.client("127.0.1.16")
        self.assertEqual(patient.banner[:3], b"220")
        self.assertGreater(time.monotonic() - began, 1.9)
        self.assertEqual(self.ask(patient)[:3], "250")

    def test_dnsbl(self):
        """A listed client is refused at RCPT, unless a white list has it; RBLSMTPD decides for itself."""
        self.assertRegex(self.ask(self.client("127.0.3.9")), r"^451 \S+ .*see http://bl\.test/")
        self.assertIn("T:bob@one.test", self.logged("Reject::SNDR::Blocklisted"))
        self.assertEqual(self.ask(self.client("127.0.3.8"))[:3], "250")
        self.assertEqual(self.ask(self.client("127.0.3.9", 'RBLSMTPD=""'))[:3], "250")
        self.assertRegex(self.ask(self.client("127.0.3.7", 'RBLSMTPD="-go away"')), "^553 .*go away")
        self.assertRegex(self.ask(self.client("127.0.3.7", 'RBLSMTPD="come later"')), "^451 .*come later")

    def test_spf(self):
        """The levels of SPF, each a step stricter; what was found stands in front of the message."""
        for level, sender, code in (
            (1, "a@source.test", "250"), (3, "a@source.test", "550"), (3, "a@soft.test", "250"),
            (4, "a@soft.test", "550"), (4, "a@neutral.test", "250"), (5, "a@neutral.test", "550"),
            (5, "a@none.test", "250"), (6, "a@none.test", "550"), (6, "a@pass.test", "250"),
            (1, "a@sad.test", "250"), (2, "a@sad.test", "451"),
        ):  # fmt: skip
            self.assertEqual(self.ask(self.client("127.0.1.17", f'SPF="{level}"'), sender)[:3], code, (level, sender))
        self.classic("Reject::SPF::Fail", rcpt="bob@one.test")
        self.classic("Accept::SPF::Rcpthosts_Rcptto", sender="a@pass.test")
        self.assertIn(
            "127.0.1.17 is not one of explains.test", self.ask(self.client("127.0.1.17", 'SPF="3"'), "a@explains.test")
        )
        self.assertEqual(
            self.ask(self.client("127.0.1.18"), "a@source.test", "x@two.test")[:3], "550"
        )  # two's own level
        client = self.client("127.0.1.17", 'SPF="1"')
        self.assertEqual(client.mail("bob@one.test", sender="a@soft.test", mark="spf")[:3], b"250")
        self.arrives(b"spf")
        text = next(text for _, _, text in self.house.sink.messages if b"X-Mark: spf" in text)
        self.assertTrue(text.startswith(b"Received-SPF: softfail"), text[:200])
        self.assertEqual(text.count(b"Received-SPF"), 1)

    def test_localmfcheck(self):
        """A trusted client's sender is verified as LOCALMFCHECK says; a verified one is marked M."""
        self.put("mailfromrules", "127.0.1.19-20:@source.test,boss@other.test\n")
        for variable, sender, code in (
            ("", "a@one.test", "250"), ("", "a@source.test", "553"), ("", "", "250"),
            ("source.test", "a@source.test", "250"), ("source.test", "a@other.test", "553"),
            ("!", "a@source.test", "250"), ("!", "boss@other.test", "250"), ("!", "a@other.test", "553"),
        ):  # fmt: skip
            client = self.client("127.0.1.19", f'RELAYCLIENT="",LOCALMFCHECK="{variable}"')
            self.assertEqual(self.ask(client, sender)[:3], code, (variable, sender))
        self.classic("Reject::ORIG::Invalid_Mailfrom", sender="a@source.test", info=None)
        self.classic("Accept::ORIG::Local_Sender", sender="a@one.test", proto="ESMTPM")
        client = self.client("127.0.1.20", 'RELAYCLIENT="",LOCALMFCHECK="=",TCPREMOTEINFO="joe@source.test"')
        self.assertEqual(self.ask(client, "Joe@source.test")[:3], "250")
        self.assertEqual(self.ask(client, "jim@source.test")[:3], "553")

    def test_databytes(self):
        """SIZE above databytes is refused at RCPT, in full (2.20 #11); a longer text at its end; an instance may want less."""
        client = self.client("127.0.1.21", 'DATABYTES="2000"')
        self.assertEqual(client.say("MAIL FROM:<a@source.test> SIZE=2001")[:3], b"250")
        self.assertEqual(client.say("RCPT TO:<bob@one.test>")[:9], b"552 5.3.4")
        self.assertEqual(client.say("RSET")[:3], b"250")
        self.classic("Reject::DATA::Invalid_Size", rcpt="bob@one.test", info=None)
        self.assertEqual(client.mail("bob@one.test", text="S: x\r\n\r\n" + "y" * 78 * 30 + "\r\n")[:9], b"552 5.3.4")
        client = self.client()
        client.say("MAIL FROM:<a@pass.test> SIZE=70000")
        self.assertEqual(
            [client.say(f"RCPT TO:<x@{domain}>")[:3] for domain in ("one.test", "two.test")], [b"250", b"552"]
        )
        client.say("RSET")
        self.assertEqual(
            client.mail("x@two.test", sender="a@pass.test", text=f"S: x\r\n\r\n{('y' * 76 + chr(13) + chr(10)) * 900}")[
                :3
            ],
            b"552",
        )

    def test_warlord(self):
        """A base64 part that begins as listed is refused, in every message of a session (2.20 #2), '' too (#3)."""
        self.put("badmimetypes", "TVqQAAMAA\n")
        self.put("badloadertypes", "Mi5kb\n")
        bad = (
            "MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nhi\r\n--b\r\n"
            "Content-Transfer-Encoding:\r\n base64\r\n\r\nTVqQAAMAAAAEAAAA//8AALgAAAAA\r\n--b--\r\n"
        )
        loader = bad.replace("TVqQAAMAAAAEAAAA//8AALgAAAAA", "AAAA" * 19 + "\r\nAAAAMi5kb" + "A" * 20)
        for variables, text, info in (
            ('BADMIMETYPE=""', bad, "TVqQAAMAA"), ('BADMIMETYPE="!"', bad, "TVqQAAMAA"), ('BADMIMETYPE="+"', bad, "TVqQAAMAA"),
            ('BADLOADERTYPE="M"', loader, "Mi5kb"),
        ):  # fmt: skip
            client = self.client("127.0.1.22", variables)
            for _ in range(2):
                self.assertEqual(client.mail("bob@one.test", text=text)[:9], b"554 5.3.2", variables)
            self.assertEqual(client.mail("bob@one.test")[:3], b"250")
            word = "Bad_MIME" if "MIME" in variables else "Bad_Loader"
            self.logged(f"Reject::DATA::{word}", f"'{info}'")
        self.assertEqual(
            self.client("127.0.1.22", 'BADMIMETYPE="+",RELAYCLIENT=""').mail("bob@one.test", text=bad)[:3], b"250"
        )
        self.assertEqual(self.client("127.0.1.23", 'BADMIMETYPE="-"').mail("bob@one.test", text=bad)[:3], b"250")

    def test_qhpsi(self):
        """A scanner's exit code decides; QHPSIRC says which means a virus (2.20 #4); one that hangs is 451."""
        scanner = script(
            self.folder / "scanner", 'grep -q VIRUS "$1" && exit ${2:-1}; grep -q HANG "$1" && sleep 60; exit 0'
        )
        for variables, text, code in (
            ("", "VIRUS\r\n", b"554"), ("", "fine\r\n", b"250"), (',QHPSIARG1="7",QHPSIRC="7"', "VIRUS\r\n", b"554"),
            (',QHPSIARG1="7"', "VIRUS\r\n", b"451"), ("", "HANG\r\n", b"451"),
            (',QHPSIMINSIZE="100000"', "VIRUS\r\n", b"250"), (',QHPSIMAXSIZE="1"', "VIRUS\r\n", b"250"),
            (',BASE64=""', "VIRUS\r\n", b"250"),
        ):  # fmt: skip
            client = self.client("127.0.1.24", f'QHPSI="{scanner}"{variables}')
            self.assertEqual(client.mail("bob@one.test", text="Subject: x\r\n\r\n" + text)[:3], code, (variables, text))
        self.logged("Reject::DATA::Virus_Infected", f"'{scanner}'")

    def test_qmailqueue(self):
        """A program in QMAILQUEUE's place judges by its exit code; it sees message, envelope and variables."""
        seen = self.folder / "seen"
        program = script(
            self.folder / "queue",
            f'cat > {seen}.message; tr "\\0" "\\n" <&1 > {seen}.envelope; env > {seen}.env\nexit $(sed -n "s/^X-Exit: *//p" {seen}.message | tr -dc 0-9)',
        )
        words = {31: "", 32: "Virus_Infected", 33: "Spam_Message", 34: "MIME_Attach", 81: "", 0: ""}
        codes = {31: b"554", 32: b"554", 33: b"554", 34: b"554", 81: b"451", 0: b"250"}
        client = self.client("127.0.1.25", f'QMAILQUEUE="{program}",DELIVERTO="extra@x.test"')
        for code, word in words.items():
            self.assertEqual(client.mail("bob@one.test", text=f"X-Exit: {code}\r\n\r\nhi\r\n")[:3], codes[code], code)
            if word:
                self.logged(f"Reject::DATA::{word}")
        self.assertEqual(Path(f"{seen}.envelope").read_text().split("\n")[:2], ["Fa@source.test", "Tbob@one.test"])
        environ = Path(f"{seen}.env").read_text()
        self.assertIn("RCPTTO=extra@x.test bob@one.test ", environ)
        self.assertIn("MAILFROM=a@source.test\n", environ)
        self.assertIn("HELOHOST=client.test\n", environ)

    def test_reply_words(self):
        """A site's own words stand in the replies."""
        client = self.client("127.0.1.26", 'REPLY_NOGATEWAY="see http://help.test/"')
        self.assertEqual(
            self.ask(client, recipient="x@foreign.test"), "553 5.7.1 relaying denied see http://help.test/"
        )

    def test_bad_edit(self):
        """A slip in a rule file leaves the rules as they were, and is told to the operator."""
        self.put("badrcptto", "trap@one.test\n")
        self.assertEqual(self.ask(self.client(), recipient="trap@one.test")[:3], "553")
        self.put("badrcptto", "[a\n")
        self.assertEqual(self.ask(self.client(), recipient="trap@one.test")[:3], "553")
        until(lambda: "badrcptto:1" in self.house.gateway.text())

    def test_received(self):
        """The Received field has the client's name, and the protocol's word."""
        client = self.client("127.0.2.1")
        self.assertEqual(client.mail("bob@one.test", mark="received")[:3], b"250")
        self.arrives(b"received")
        text = next(text for _, _, text in self.house.sink.messages if b"X-Mark: received" in text)
        self.assertIn(
            b"Received: from client.test (mail.yahoo.test [127.0.2.1])\r\n\tby gateway.test with ESMTP id", text
        )

    def test_loop(self):
        """A message with 100 Received fields is refused, and logged."""
        text = "Received: x\r\n" * 100 + "\r\nhi\r\n"
        self.assertEqual(self.client().mail("bob@one.test", text=text)[:9], b"554 5.4.6")
        self.logged("Reject::SMTP::Toomany_Hops")

    def test_nothing_forged(self):
        """No client writes a field or a line of its own into the log."""
        client = self.client(hello="x'H:forged")
        client.say('MAIL FROM:<"a T:forged@x.test"@source.test>')
        client.say("RCPT TO:<x@foreign.test>")
        line = self.logged("Reject::SNDR::Invalid_Relay")
        self.assertEqual(len(re.findall(" T:", line)), 1)
        self.assertEqual(line.count("'"), 0)
