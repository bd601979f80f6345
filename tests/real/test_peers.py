"""The gateway among programs that others wrote: Postfix before and behind it, smtp-source, smtp-sink, swaks; and LMTP."""

import email
import email.policy
import re
import tempfile
from pathlib import Path

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.real.gateway import Gateway, Sink, free_port, needs, until
from tests.real.peers import LMTPSink, Postfix, SmtpSink, certificate, run

pytestmark = pytest.mark.slow

OFFER_TLS = "smtpd_tls_security_level = may\nsmtpd_tls_cert_file = {folder}/pem\nsmtpd_tls_key_file = {folder}/pem\n"
TLS_RECEIVED = "smtpd_tls_received_header = yes\n"


class PeerCase(SynchronousTestCase):
    """Starts what a test needs, and ends it."""

    def postfix(self, *mailboxes, main="", tls=False):
        needs("postfix", root=True)
        postfix = Postfix(mailboxes, main)
        self.addCleanup(postfix.clear)
        if tls:
            certificate(postfix.folder / "pem", "postfix.test")
        return postfix.start()

    def sink(self, kind=Sink, *arguments):
        sink = kind(*arguments)
        self.addCleanup(sink.close if hasattr(sink, "close") else sink.clear)
        return sink

    def gateway(self, domains, *, options=(), **settings):
        gateway = Gateway(domains, **settings)
        self.addCleanup(gateway.clear)
        return gateway.start(30, *options)

    def pem(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        return certificate(Path(folder.name, "pem"), "gateway.test")


class FeedTests(PeerCase):
    """Postfix's own load tools at both ends."""

    def setUp(self):
        needs("smtp-source", "smtp-sink", root=True)

    def test_source_to_sink(self):
        """500 messages of smtp-source's, over several sessions, come to smtp-sink, each once."""
        sink = self.sink(SmtpSink)
        gateway = self.gateway({"one.test": f"smtp:127.0.0.1:{sink.port}"})

        done = run(
            "smtp-source", "-d", "-N", "-s", 8, "-m", 500, "-l", 4096, "-M", "client.test",
            "-f", "load@source.test", "-t", "box@one.test", f"127.0.0.1:{gateway.port}",
        )  # fmt: skip

        self.assertEqual((done.returncode, done.stderr), (0, ""))
        until(lambda: sink.count() >= 500, 40)
        until(lambda: all(q["queued"] == 0 for q in gateway.stat().values()))
        messages = sink.messages()
        self.assertEqual(len(messages), 500)
        recipients = {re.search(rb"^X-Rcpt-Args: <(.*)>", m, re.MULTILINE)[1] for m in messages}
        self.assertEqual(len(recipients), 500)
        [text] = {m.partition(b"\n\n")[2] for m in messages}  # the same text each time
        self.assertRegex(text, rb"\A(?:\dX{77}\n){51}X{16}\n\n\Z")


class DownstreamTests(PeerCase):
    """A customer whose mail server is a Postfix: bob@one.test, eve@one.test, and authors' mailboxes too."""

    def setUp(self):
        self.server = self.postfix(
            "bob@one.test", "eve@one.test", "jörg@one.test", "author@source.test",
            main="local_header_rewrite_clients =\n" + TLS_RECEIVED,
        )  # fmt: skip
        self.hop = f"smtp:127.0.0.1:{self.server.port}"
        self.gate = self.gateway({"one.test": self.hop}, bounce_route=self.hop)

    def arrived(self, mailbox, number=1):
        until(lambda: len(self.server.mailbox(mailbox)) >= number)
        return sorted(self.server.mailbox(mailbox), key=lambda text: text.partition(b"X-Mark: ")[2])

    def test_content(self):
        """What Postfix stores is what the client sent: dots, 8 bits, long lines, no last line end; by CHUNKING."""
        client = self.gate.client()
        hard = b"".join((
            b"X-Mark: 1\r\nSubject: dots\r\n\r\n.\r\n..\r\n.x\r\n..x\r\n\r\n.\r\n\r\n",
            "8-bit: \xe4\u20ac ".encode(), bytes(range(0x80, 0x100)), b"\r\n", b"l" * 997 + b"\r\n", b"." * 997 + b"\r\n",
        ))  # fmt: skip
        open_end = b"X-Mark: 2\r\nSubject: open\r\n\r\n.first\r\nthe last line does not end"
        large = b"X-Mark: 3\r\nSubject: large\r\n\r\n" + b"".join(
            b".%06d" % n + b"y" * 60 + b"\r\n" for n in range(6000)
        )

        for text, recipients in ((hard, ("bob", "eve")), (open_end, ("bob",)), (large, ("bob",))):
            client.say("MAIL FROM:<author@source.test> BODY=8BITMIME")
            for recipient in recipients:
                client.say(f"RCPT TO:<{recipient}@one.test>")
            client.write(b"BDAT %d\r\n%s" % (len(text) - 7, text[:-7]))
            self.assertTrue(client.reply().startswith(b"250"))
            client.write(b"BDAT 7 LAST\r\n" + text[-7:])
            self.assertTrue(client.reply().startswith(b"250"))

        stored = self.arrived("bob@one.test", 3)
        for text, found in zip((hard, open_end + b"\r\n", large), stored, strict=True):
            self.assertTrue(found.endswith(b"\n" + text.replace(b"\r\n", b"\n")), (found[:3000], text[:100]))
        [other] = self.arrived("eve@one.test")
        self.assertTrue(other.endswith(hard.replace(b"\r\n", b"\n")))
        self.gate.stop()  # its connections are kept for a while; at their end Postfix tells what was said
        until(lambda: "disconnect from" in self.server.log())
        said = re.findall(r"disconnect from .*", self.server.log())
        self.assertTrue(any(" bdat=" in line for line in said), said)
        self.assertFalse(any(" data=" in line for line in said), said)

    def test_unknown_recipient(self):
        """Whom Postfix does not know, its words come back for, well-formed; the others get the mail."""
        answer = self.gate.client().mail(
            "nobody@one.test", "bob@one.test", sender="author@source.test", text="Subject: for two\r\n\r\nhello\r\n"
        )

        self.assertTrue(answer.startswith(b"250"), answer)
        self.assertIn(b"Subject: for two\n\nhello\n", self.arrived("bob@one.test")[0])
        [bounce] = self.arrived("author@source.test")
        report = email.message_from_bytes(bounce, policy=email.policy.default)
        self.assertEqual(report["Return-Path"], "<>")
        self.assertEqual(report["To"], "author@source.test")
        self.assertEqual(
            (report.get_content_type(), report.get_param("report-type")), ("multipart/report", "delivery-status")
        )
        human, status, original = report.iter_parts()
        self.assertIn("nobody@one.test", human.get_content())
        about, per_recipient = status.get_payload()
        self.assertEqual(about["Reporting-MTA"], "dns; gateway.test")
        self.assertEqual(per_recipient["Final-Recipient"], "rfc822; nobody@one.test")
        self.assertEqual((per_recipient["Action"], per_recipient["Status"]), ("failed", "5.1.1"))
        self.assertIn("User unknown in virtual mailbox table", per_recipient["Diagnostic-Code"])
        self.assertIn("Subject: for two", str(original))
        self.assertEqual([d for part in report.walk() for d in part.defects], [])
        self.assertEqual(len(self.server.mailbox("bob@one.test")), 1)
        until(lambda: all(q["queued"] == 0 for q in self.gate.stat().values()))

    def test_smtputf8(self):
        """Mail to an internationalized address, with a header in UTF-8, is taken by Postfix as such."""
        client = self.gate.client()
        client.say("MAIL FROM:<ä@source.test> BODY=8BITMIME SMTPUTF8".encode())
        client.say("RCPT TO:<jörg@one.test>".encode())
        client.say("DATA")
        client.write("Subject: Grüße\r\n\r\nhällo\r\n.\r\n".encode())

        self.assertTrue(client.reply().startswith(b"250"))

        [text] = self.arrived("jörg@one.test")
        self.assertTrue(text.endswith("Subject: Grüße\n\nhällo\n".encode()), text)
        self.assertIn("Return-Path: <ä@source.test>".encode(), text)
        self.assertIn(b"with UTF8SMTP", text)


class DownstreamTLSTests(PeerCase):
    """Behind the gateway a Postfix with STARTTLS and a certificate that nobody vouches for."""

    def test_unverified(self):
        """It is spoken to in TLS, and the log tells so without "verified"; an instance with `tls = none` stays in clear."""
        server = self.postfix("bob@one.test", "eve@two.test", main=OFFER_TLS + TLS_RECEIVED, tls=True)
        hop = f"smtp:127.0.0.1:{server.port}"
        gateway = self.gateway({"one.test": hop, "two.test": hop}, sections={"two": "tls = none"})

        gateway.client().mail("bob@one.test", "eve@two.test", text="Subject: secret\r\n\r\nhello\r\n")

        until(lambda: server.mailbox("bob@one.test") and server.mailbox("eve@two.test"))
        [secret], [clear] = server.mailbox("bob@one.test"), server.mailbox("eve@two.test")
        self.assertRegex(secret, rb"from gateway\.test .*\n\s+\(using TLSv1\.3 with cipher TLS_")
        self.assertNotIn(b"using TLS", clear)
        delivered = until(lambda: re.search(r" delivered .*queue=one .*", gateway.text()))[0]
        self.assertRegex(delivered, r' mta=\[127\.0\.0\.1\] tls="TLSv1\.3 TLS_\w+"\Z')
        delivered = until(lambda: re.search(r" delivered .*queue=two .*", gateway.text()))[0]
        self.assertRegex(delivered, r" mta=\[127\.0\.0\.1\]\Z")


class UpstreamTests(PeerCase):
    """A Postfix whose relayhost is the gateway."""

    UTF8 = b"250-sink.test\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n"  # Postfix declares what has UTF-8 in its header
    TEXT = "From: author@one.test\nSubject: Grüße\n\n.\n..dots\n8-bit ä\n".encode()

    def test_relayhost(self):
        """What a program there hands to sendmail comes through; what the gateway refuses Postfix bounces, through us."""
        sink = self.sink()
        sink.answers[b"EHLO"] = self.UTF8
        gateway = self.gateway({"one.test": f"smtp:127.0.0.1:{sink.port}"})
        client = self.postfix(main=f"relayhost = [127.0.0.1]:{gateway.port}\nbounce_size_limit = 5000\n")

        client.sendmail(self.TEXT, "bob@one.test", "eve@one.test", sender="author@one.test")
        client.sendmail(b"Subject: astray\n\nhello\n", "x@elsewhere.test", sender="author@one.test")

        until(lambda: len(sink.messages) == 2)
        messages = sorted(sink.messages)  # the null sender's first
        sender, recipients, text = messages[1]
        self.assertIn(b"<author@one.test>", sender)
        self.assertEqual(sorted(recipients), [b"bob@one.test", b"eve@one.test"])
        self.assertTrue(text.endswith(self.TEXT.partition(b"\n\n")[2].replace(b"\n", b"\r\n")), text)
        self.assertIn("Subject: Grüße\r\n".encode(), text)
        sender, recipients, text = messages[0]
        self.assertIn(b"MAIL FROM:<>", sender)
        self.assertEqual(recipients, [b"author@one.test"])
        self.assertIn(b"Status: 5.7.1", text)

    def test_relayhost_tls(self):
        """A Postfix that demands TLS gets it, by the certificate in [primary]; the trace field tells."""
        sink = self.sink()
        sink.answers[b"EHLO"] = self.UTF8
        gateway = self.gateway({"one.test": f"smtp:127.0.0.1:{sink.port}"}, primary=f"certificate = {self.pem()}")
        client = self.postfix(
            main=f"relayhost = [127.0.0.1]:{gateway.port}\nsmtp_tls_security_level = encrypt\nsmtp_tls_loglevel = 1\n"
        )

        client.sendmail(self.TEXT, "bob@one.test", sender="author@one.test")

        until(lambda: sink.messages)
        sender, _, text = sink.messages[0]
        self.assertRegex(sender, rb"\AMAIL FROM:<author@one\.test> .*SMTPUTF8\Z")
        self.assertRegex(text, rb"\tby gateway\.test with UTF8SMTPS \(TLSv1\.3 TLS_")
        self.assertIn("TLS connection established to 127.0.0.1", client.log())
        until(lambda: re.search(r' accepted .* tls="TLSv1\.3 TLS_', gateway.text()))


class SwaksTests(PeerCase):
    """swaks, by hand as an operator would use it."""

    def setUp(self):
        needs("swaks")
        self.target = self.sink()
        self.gate = self.gateway(
            {"one.test": f"smtp:127.0.0.1:{self.target.port}"}, primary=f"certificate = {self.pem()}\ndatabytes = 100K"
        )

    def swaks(self, *words, to="bob@one.test"):
        return run(
            "swaks", "--server", f"127.0.0.1:{self.gate.port}", "--helo", "client.test",
            "--from", "a@source.test", "--to", to, *words,
        )  # fmt: skip

    def test_tls(self):
        """--tls: the configured certificate is shown, and the mail comes through."""
        done = self.swaks("--tls", "--tls-get-peer-cert", "--header", "X-Mark: tls")

        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("TLS started with cipher TLSv1.3:", done.stdout)
        self.assertIn("CN=gateway.test", done.stdout)
        until(lambda: self.target.marks[b"tls"])
        self.assertIn(b"with ESMTPS (TLSv1.3 ", self.target.messages[0][2])

    def test_pipelining(self):
        """--pipeline: MAIL, RCPT and DATA in one write; a foreign domain among the recipients is refused alone."""
        done = self.swaks("--pipeline", "--header", "X-Mark: pipe", to="bob@one.test,x@elsewhere.test,eve@one.test")

        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("553 5.7.1", done.stdout)
        alone = self.swaks(to="x@elsewhere.test")
        self.assertEqual(alone.returncode, 24, alone.stdout)
        until(lambda: self.target.marks[b"pipe"])
        self.assertEqual(self.target.messages[0][1], [b"bob@one.test", b"eve@one.test"])

    def test_too_large(self):
        """More than databytes is refused for good: at RCPT by a declared SIZE (RFC 1870), else at the message's end."""
        client = self.gate.client()
        client.say("MAIL FROM:<a@source.test> SIZE=102401")
        declared = client.say("RCPT TO:<bob@one.test>")
        big = Path(self.gate.folder, "big")
        big.write_text(("x" * 70 + "\n") * 2000)

        done = self.swaks("--body", f"@{big}")

        self.assertRegex(declared, rb"\A552 5\.3\.4")
        self.assertEqual(done.returncode, 26, done.stdout[-2000:])
        self.assertIn("250-SIZE 102400", done.stdout)
        self.assertIn("552 5.3.4", done.stdout)
        self.assertEqual(self.target.messages, [])


class OtherWaysTests(PeerCase):
    """Routes and hand-overs that are not the usual ones."""

    def test_lmtp(self):
        """By LMTP each recipient has an answer of its own: who is refused is bounced, the others have the mail."""
        world = self.sink()
        boxes = self.sink(LMTPSink, {"full@one.test": b"552 5.2.2 mailbox full"})
        gateway = self.gateway(
            {"one.test": f"lmtp:127.0.0.1:{boxes.port}"}, bounce_route=f"smtp:127.0.0.1:{world.port}"
        )

        gateway.client().mail(
            "bob@one.test",
            "full@one.test",
            "eve@one.test",
            sender="author@source.test",
            text="Subject: x\r\n\r\n..x\r\n",
        )

        until(lambda: len(boxes.messages) == 2 and world.messages)
        self.assertEqual([recipient for recipient, _ in boxes.messages], ["bob@one.test", "eve@one.test"])
        self.assertTrue(boxes.messages[0][1].endswith(b"Subject: x\r\n\r\n.x\r\n"))
        _, recipients, text = world.messages[0]
        self.assertEqual(recipients, [b"author@source.test"])
        self.assertIn(b"full@one.test", text)
        self.assertIn(b"Status: 5.2.2", text)
        self.assertNotIn(b"bob@one.test", text.partition(b"message/rfc822")[0].partition(b"text/rfc822-headers")[0])
        until(lambda: all(q["queued"] == 0 for q in gateway.stat().values()))

    def test_handover_smtp(self):
        """`handover = smtp`: the instance gets its mail by SMTP, as any host would; its answers count."""
        sink = self.sink()
        gateway = self.gateway(
            {"one.test": f"smtp:127.0.0.1:{sink.port}"},
            sections={"one": f"handover = smtp\nqmtp-listen = 127.0.0.1:{free_port()}"},
        )

        answer = gateway.client().mail("bob@one.test", text=b"Subject: x\r\n\r\n..x\r\n8-bit \xe4\r\n", mark="m")

        self.assertTrue(answer.startswith(b"250"), answer)
        until(lambda: sink.marks[b"m"])
        self.assertTrue(sink.messages[0][2].endswith(b"Subject: x\r\n\r\n.x\r\n8-bit \xe4\r\n"))
        until(lambda: gateway.stat()["one"]["queued"] == 0)
        self.assertEqual(gateway.stat()["primary"]["queued"], 0)
        self.assertEqual(sink.marks[b"m"], 1)

    def test_one_process(self):
        """`workers = 0` to a Postfix and by LMTP: the same, without a hop between."""
        server = self.postfix("bob@one.test", main="local_header_rewrite_clients =\n")
        boxes = self.sink(LMTPSink)
        gateway = self.gateway(
            {"one.test": f"smtp:127.0.0.1:{server.port}", "two.test": f"lmtp:127.0.0.1:{boxes.port}"}, qmq="workers = 0"
        )

        answer = gateway.client().mail("bob@one.test", "eve@two.test", text="Subject: both\r\n\r\nhello\r\n")

        self.assertTrue(answer.startswith(b"250"), answer)
        until(lambda: server.mailbox("bob@one.test") and boxes.messages)
        self.assertIn(b"Subject: both\n\nhello\n", server.mailbox("bob@one.test")[0])
        self.assertTrue(boxes.messages[0][1].endswith(b"Subject: both\r\n\r\nhello\r\n"))
        self.assertEqual(gateway.workers(), [])

    def test_instance_elsewhere(self):
        """`handover = qmtp:HOST:PORT`: the instance in another gateway takes it, keeps it, delivers and bounces."""
        sink, world = self.sink(), self.sink()
        port = free_port()
        sink.answers[b"RCPT"] = lambda line: b"550 5.1.1 unknown\r\n" if b"nobody" in line else None
        theirs = self.gateway(
            {"one.test": f"smtp:127.0.0.1:{sink.port}"},
            sections={"one": f"qmtp-listen = 127.0.0.1:{port}\npeers = 127.0.0.1"},
            bounce_route=f"smtp:127.0.0.1:{world.port}",
            options=("--only", "one,bounces"),
        )
        ours = self.gateway({"one.test": "mx"}, sections={"one": f"handover = qmtp:127.0.0.1:{port}"})

        answer = ours.client().mail(
            "bob@one.test", "nobody@one.test", text=b"Subject: x\r\n\r\n..x\r\n\xe4\r\n", mark="m"
        )

        self.assertTrue(answer.startswith(b"250"), answer)
        until(lambda: sink.marks[b"m"] and world.messages)
        sender, recipients, text = sink.messages[0]
        self.assertIn(b"<a@source.test>", sender)
        self.assertEqual(recipients, [b"bob@one.test"])
        self.assertTrue(text.endswith(b"Subject: x\r\n\r\n.x\r\n\xe4\r\n"))
        self.assertIn(b"nobody@one.test", world.messages[0][2])
        until(lambda: theirs.stat()["one"]["queued"] == 0)
        self.assertEqual(ours.stat()["primary"]["queued"], 0)
        self.assertEqual(sink.marks[b"m"], 1)

    def test_instance_elsewhere_away(self):
        """While that gateway is away its mail waits here, taken with 250; it is delivered when it is back."""
        sink = self.sink()
        port = free_port()
        theirs = Gateway(
            {"one.test": f"smtp:127.0.0.1:{sink.port}"},
            sections={"one": f"qmtp-listen = 127.0.0.1:{port}\npeers = 127.0.0.1"},
        )
        self.addCleanup(theirs.clear)
        ours = self.gateway(
            {"one.test": "mx"}, sections={"one": f"handover = qmtp:127.0.0.1:{port}"}, primary="retry = 1s*60"
        )

        answer = ours.client().mail("bob@one.test", mark="m")

        self.assertTrue(answer.startswith(b"250"), answer)
        until(lambda: ours.stat()["primary"]["queued"] == 1)
        theirs.start(30, "--only", "one")
        until(lambda: sink.marks[b"m"])
        until(lambda: ours.stat()["primary"]["queued"] == 0)
        self.assertEqual(sink.marks[b"m"], 1)
