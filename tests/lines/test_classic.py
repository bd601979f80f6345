import re

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qmq.lines import classic
from qmq.mail import NULL_SENDER, Address, Reply
from qmq.session import Environment, Session, Transaction

SESSION = Session("192.0.2.1", 4711, "192.0.2.25", 25, helo=b"client.example", number=7)
SENDER = Address(b"a", b"example.org")
RECIPIENT = Address(b"b", b"example.net")
MAIL = Transaction(b"q1-2a", SENDER)
NO = Reply(550, "5.7.1", "no")

# What an analyser makes of a line; written from SPAMCONTROL's facts, not from our code.
ANALYSER = re.compile(
    r"qmail-smtpd: pid (?P<pid>[0-9]+) (?P<action>Accept|Reject|Info)::(?P<type>[A-Z]+)::(?P<condition>[^ :']+)"
    r" P:(?P<proto>[^ ]*) S:(?P<ip>[^ ]*):(?P<host>[^ :]*)"
    r"(?: H:(?P<helo>[^ ]*)(?: F:(?P<from>[^ ]*) T:(?P<to>[^ ]*))?| (?P<mark>[?!]=))?(?: '(?P<info>[^']*)')?"
)
GENERIC = [
    "Accept::ORIG::Local_Sender",
    "Accept::SNDR::Relay_Client",
    "Accept::RCPT::Recipients_Cdb",
    "Accept::RCPT::Recipients_Pam",
    "Accept::RCPT::Recipients_Wild",
    "Accept::RCPT::Rcpthosts_Rcptto",
    "Accept::SPF::Recipients_Cdb",
    "Accept::SPF::Recipients_Pam",
    "Accept::SPF::Recipients_Wild",
    "Accept::SPF::Rcpthosts_Rcptto",
    "Reject::SNDR::Invalid_Relay",
    "Reject::ORIG::DNS_MF",
    "Reject::ORIG::Invalid_Mailfrom",
    "Reject::RCPT::Bad_Rcptto",
    "Reject::RCPT::Failed_Rcptto",
    "Reject::RCPT::Toomany_Rcptto",
    "Reject::DATA::Invalid_Size",
    "Reject::SPF::Fail",
]
WITH_INFO = [
    "Reject::SNDR::Bad_Helo",
    "Reject::SNDR::DNS_Helo",
    "Reject::ORIG::Bad_Mailfrom",
    "Reject::DATA::Bad_MIME",
    "Reject::DATA::Bad_Loader",
    "Reject::DATA::Spam_Message",
    "Reject::DATA::MIME_Attach",
    "Reject::DATA::Virus_Infected",
]


def unescaped(text):
    return re.sub(r"\\x(..)", lambda m: chr(int(m[1], 16)), text).encode("latin-1")


class ClassicTests(SynchronousTestCase):
    def told(self, reason, info="", session=SESSION, transaction=MAIL, recipient=RECIPIENT):
        """The line, by the way that such an event takes."""
        if reason.startswith("Accept"):
            return classic.passed(session, transaction, recipient, reason, info)
        if reason.startswith("Info"):
            return classic.noted(session, transaction, recipient, reason, info)
        return classic.refused(session, transaction, recipient, NO, reason, info)

    def parsed(self, line):
        match = ANALYSER.fullmatch(line)
        self.assertIsNotNone(match, line)
        return match.groupdict()

    def test_generic(self):
        """The events that say no more than who, from and to are octet for octet the original's, whatever we know more."""
        for reason in GENERIC:
            self.assertEqual(
                self.told(reason, "more"),
                f"qmail-smtpd: pid 7 {reason} P:ESMTP S:192.0.2.1:unknown H:client.example F:a@example.org T:b@example.net",
            )

    def test_with_info(self):
        """The events that have a condition or a name have it between quotes at the end, even if it is empty."""
        for reason in WITH_INFO:
            for info in ("!", "AV scanner", "TVqQAAMAA", ""):
                self.assertEqual(
                    self.told(reason, info),
                    f"qmail-smtpd: pid 7 {reason} P:ESMTP S:192.0.2.1:unknown H:client.example F:a@example.org"
                    f" T:b@example.net '{info}'",
                )

    def test_text_for_several(self):
        """What is refused at the end of the text is told with the first of its recipients; before it, with none."""
        mail = Transaction(b"q1-2a", SENDER, recipients=(RECIPIENT, Address(b"c", b"example.net")))
        for reason, to in (
            ("Reject::DATA::Invalid_Size", "b@example.net"), ("Reject::DATA::Virus_Infected", "b@example.net"),
            ("Reject::SMTP::Syntax_Error", ""),
        ):  # fmt: skip
            self.assertEqual(self.parsed(self.told(reason, transaction=mail, recipient=None))["to"], to)

    def test_host_only(self):
        """A client that should have used TLS, or AUTH, is named without sender and recipient."""
        for reason in ("Reject::TLS::missing", "Reject::AUTH::missing"):
            self.assertEqual(
                self.told(reason), f"qmail-smtpd: pid 7 {reason} P:ESMTP S:192.0.2.1:unknown H:client.example"
            )

    def test_auth_and_tls(self):
        """AUTH names the user, TLS the certificate."""
        self.assertEqual(
            self.told("Accept::AUTH::cram-md5", "joe"),
            "qmail-smtpd: pid 7 Accept::AUTH::cram-md5 P:ESMTP S:192.0.2.1:unknown ?= 'joe'",
        )
        self.assertEqual(
            self.told("Accept::TLS::TLS_AES_256_GCM_SHA384", "/CN=x"),
            "qmail-smtpd: pid 7 Accept::TLS::TLS_AES_256_GCM_SHA384 P:ESMTP S:192.0.2.1:unknown != '/CN=x'",
        )

    def test_ours(self):
        """Events that the original did not know have the same form, with information if there is any."""
        self.assertEqual(
            self.told("Reject::SNDR::Blocklisted", "bl.example"),
            "qmail-smtpd: pid 7 Reject::SNDR::Blocklisted P:ESMTP S:192.0.2.1:unknown H:client.example F:a@example.org"
            " T:b@example.net 'bl.example'",
        )
        self.assertEqual(
            self.told("Info::SNDR::Tarpit"),
            "qmail-smtpd: pid 7 Info::SNDR::Tarpit P:ESMTP S:192.0.2.1:unknown H:client.example F:a@example.org"
            " T:b@example.net",
        )

    def test_nothing_known(self):
        """What was not said yet is empty, as in the original."""
        stranger = Session("2001:db8::1", 1, "::1", 25)

        self.assertEqual(
            classic.refused(stranger, None, None, NO, "Reject::SNDR::Early_Talker", ""),
            "qmail-smtpd: pid 0 Reject::SNDR::Early_Talker P:ESMTP S:2001:db8::1:unknown H: F: T:",
        )
        self.assertTrue(
            self.told(GENERIC[0], transaction=Transaction(b"q", NULL_SENDER)).endswith(" F: T:b@example.net")
        )

    def test_protocol(self):
        """S for TLS, A for AUTH, M for a verified sender; what ident said of the client is no AUTH."""
        ident = Environment(info=b"joe")
        cases = [
            (SESSION, b"", "ESMTP"),
            (Session("::1", 1, "::1", 25, tls="TLSv1.3 X"), b"", "ESMTPS"),
            (Session("::1", 1, "::1", 25, user=b"joe"), b"", "ESMTPA"),
            (Session("::1", 1, "::1", 25, user=b"joe", environment=ident), b"M", "ESMTPM"),
            (Session("::1", 1, "::1", 25, tls="x", user=b"jim", environment=ident), b"M", "ESMTPSAM"),
        ]
        for session, letters, word in cases:
            line = self.told(GENERIC[0], session=session, transaction=Transaction(b"q", SENDER, protocol=letters))
            self.assertEqual(self.parsed(line)["proto"], word)

    def test_foreign_words(self):
        """A word of another form is told as information, and without any word the reply is."""
        end = "P:ESMTP S:192.0.2.1:unknown H:client.example F:a@example.org T:b@example.net"
        for line, said in (
            (classic.refused(SESSION, MAIL, RECIPIENT, NO, "", ""), f"Reject::SMTP::Other {end} '550 5.7.1 no'"),
            (
                classic.refused(SESSION, MAIL, RECIPIENT, NO, "failed:spf", ""),
                f"Reject::SMTP::Other {end} 'failed:spf'",
            ),
            (classic.refused(SESSION, MAIL, RECIPIENT, NO, "it's", "so"), f"Reject::SMTP::Other {end} 'it\\x27s so'"),
            (classic.noted(SESSION, MAIL, RECIPIENT, "slow", ""), f"Info::SMTP::Other {end} 'slow'"),
            (classic.passed(SESSION, MAIL, RECIPIENT, "", ""), f"Accept::RCPT::Other {end}"),
            (
                classic.passed(SESSION, MAIL, RECIPIENT, "Accept::RCPT::X Y", ""),
                f"Accept::RCPT::Other {end} 'Accept::RCPT::X Y'",
            ),
        ):
            self.assertEqual(line, f"qmail-smtpd: pid 7 {said}")

    def test_ordinary_values(self):
        """Ordinary addresses and names stand as they came."""
        for local in (b"o'brien", b"a+b=c", b"#$%&*/?^_`{|}~-", b"a:b", b"a<b>"):
            self.assertEqual(
                self.parsed(self.told(GENERIC[0], recipient=Address(local, b"x.org")))["to"], local.decode() + "@x.org"
            )
        session = Session("192.0.2.1", 1, "", 25, b"[IPv6:2001:db8::1]", host="mail-1.example_x.org")
        fields = self.parsed(self.told(GENERIC[0], session=session))
        self.assertEqual((fields["helo"], fields["host"]), ("[IPv6:2001:db8::1]", "mail-1.example_x.org"))

    def test_forgery(self):
        """A client that would write a field or a line of its own writes escapes."""
        session = Session("192.0.2.1", 1, "", 25, b"x F:me@x.org T:you\nqmail-smtpd: pid 1 Accept", host="a:b c")

        self.assertEqual(
            self.told("Reject::SNDR::Bad_Helo", "' T:x", session=session),
            "qmail-smtpd: pid 0 Reject::SNDR::Bad_Helo P:ESMTP S:192.0.2.1:a\\x3ab\\x20c"
            " H:x\\x20F:me@x.org\\x20T:you\\x0aqmail-smtpd:\\x20pid\\x201\\x20Accept"
            " F:a@example.org T:b@example.net '\\x27 T\\x3ax'",
        )

    @given(
        st.sampled_from(["Accept::SNDR::Relay_Client", "Reject::ORIG::Bad_Mailfrom", "Info::SNDR::Tarpit"]),
        st.binary(max_size=40),
        st.binary(max_size=40),
        st.binary(max_size=40),
        st.text(max_size=40),
        st.text(max_size=40),
    )
    def test_hostile_values(self, reason, helo, local, domain, host, info):
        """No value in any field makes a second field or line, and each can be had back as it was."""
        session = Session("192.0.2.1", 1, "", 25, helo, host=host, number=12)
        mailbox = Address(local, domain)

        line = self.told(reason, info, session, Transaction(b"q", mailbox), mailbox)

        self.assertRegex(line, r"\A[\x20-\x7e]*\Z")
        fields = self.parsed(line)
        self.assertEqual("::".join((fields["action"], fields["type"], fields["condition"])), reason)
        self.assertEqual(fields["pid"], "12")
        self.assertEqual(unescaped(fields["helo"]), helo)
        self.assertEqual(unescaped(fields["from"]), bytes(mailbox))
        self.assertEqual(unescaped(fields["to"]), bytes(mailbox))
        # A name from DNS is ASCII; of what is not, the octets are latin-1 or UTF-8.
        text = host.encode("latin-1") if host and max(host) <= "\xff" else host.encode()
        self.assertEqual(unescaped(fields["host"]), text)
        for name in "FT":
            self.assertEqual(line.count(f" {name}:"), 1)

    @given(st.text(max_size=60), st.text(max_size=60), st.binary(max_size=20))
    def test_hostile_words(self, reason, info, letters):
        """Whatever a stranger's checker calls it, it is one line that parses."""
        fields = self.parsed(
            classic.refused(SESSION, Transaction(b"q", SENDER, protocol=letters), None, NO, reason, info)
        )

        self.assertEqual((fields["action"], fields["from"], fields["to"]), ("Reject", "a@example.org", ""))

    def test_long_values(self):
        """Each field is cut after 1000 octets."""
        session = Session("192.0.2.1", 1, "", 25, b"x" * 5000, host="y" * 5000)
        long = Address(b"z" * 5000, b"x.org")

        line = self.told("Reject::ORIG::Bad_Mailfrom", "i" * 5000, session, Transaction(b"q", long), long)

        fields = self.parsed(line)
        self.assertEqual({len(fields[name]) for name in ("helo", "host", "from", "to", "info")}, {1000})

    @given(
        st.one_of(st.just(b"x" * 990), st.binary(max_size=6), st.from_regex(rb"[ -~]{1,9}", fullmatch=True)),
        st.one_of(st.just(b"y" * 12), st.binary(max_size=6), st.from_regex(rb"[ -~]{1,9}", fullmatch=True)),
    )
    @example(b"x" * 990, b"y" * 8)
    @example(b"x" * 990, b"y" * 9)
    def test_addresses_alike(self, local, domain):
        """An address stands in the line in the same form whether there is another one beside it or not."""
        address = Address(local, domain)
        reason = "Accept::SNDR::Relay_Client"

        both = classic.passed(SESSION, Transaction(b"q", address), address, reason, "")

        alone = classic.passed(SESSION, Transaction(b"q", NULL_SENDER), address, reason, "").partition(" F: T:")[2]
        self.assertTrue(both.endswith(f" H:client.example F:{alone} T:{alone}"), both)
