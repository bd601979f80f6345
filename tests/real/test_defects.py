"""
The defects of the original that SPAMCONTROL.md 2.20 lists, by their numbers: a client of ours does not meet them.

Those of other parts (16: bounces, 18: qmail-send) have their tests there.
"""

import select
import threading
import time
from pathlib import Path

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.real.gateway import until
from tests.real.test_spamcontrol import Sessions, script

pytestmark = pytest.mark.slow

BAD = (
    "MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n"
    "Content-Transfer-Encoding: base64\r\n\r\nTVqQAAMAAAAEAAAA//8AALgAAAAA\r\n--b--\r\n"
)


class DefectTests(Sessions, SynchronousTestCase):
    def test_01_bare_lf(self):
        """A bare LF ends no line and no message: what looks like a second message is refused with the first."""
        client = self.client()
        client.say("MAIL FROM:<a@source.test>")
        client.say("RCPT TO:<bob@one.test>")
        client.say("DATA")
        client.write(b"Subject: x\r\n\r\nhi\n.\nMAIL FROM:<evil@source.test>\r\n.\r\n")
        self.assertEqual(client.reply()[:1], b"5")
        self.assertEqual(client.reply(), b"")

    def test_02_second_message(self):
        """After a bad attachment the next one of the session is found too, and what fails for another reason is called so."""
        self.put("badmimetypes", "TVqQAAMAA\n")
        client = self.client("127.0.4.2", 'BADMIMETYPE="!",DATABYTES="2000"')
        for _ in range(2):
            self.assertEqual(client.mail("bob@one.test", text=BAD)[:9], b"554 5.3.2")
        self.assertEqual(client.mail("bob@one.test", text="S: x\r\n\r\n" + "y" * 2000 + "\r\n")[:9], b"552 5.3.4")
        self.logged("Reject::DATA::Invalid_Size")

    def test_03_documented_words(self):
        """BADMIMETYPE='' scans, and BADLOADERTYPE='+' scans strangers' mail."""
        self.put("badmimetypes", "TVqQAAMAA\n")
        self.put("badloadertypes", "Mi5kb\n")
        loader = BAD.replace("TVqQAAMAAAAE", "AAAAMi5kbAAA")
        for variables, text in (('BADMIMETYPE=""', BAD), ('BADLOADERTYPE="+"', loader)):
            self.assertEqual(self.client("127.0.4.3", variables).mail("bob@one.test", text=text)[:3], b"554", variables)
        relay = self.client("127.0.4.3", 'BADLOADERTYPE="+",RELAYCLIENT=""')
        self.assertEqual(relay.mail("bob@one.test", text=loader)[:3], b"250")

    def test_04_qhpsirc(self):
        """QHPSIRC is the exit code that means a virus."""
        scanner = script(self.folder / "virus7", "exit 7")
        infected = self.client("127.0.4.4", f'QHPSI="{scanner}",QHPSIRC="7"')
        self.assertEqual(infected.mail("bob@one.test")[:3], b"554")
        self.assertEqual(self.client("127.0.4.4", f'QHPSI="{scanner}"').mail("bob@one.test")[:3], b"451")

    def test_05_nameless(self):
        """`@dom-` refuses clients without a name, and no others."""
        self.put("badmailfrom", "@named.test-\n")
        self.assertEqual(self.ask(self.client("127.0.4.5"), "a@named.test")[:3], "553")
        self.assertEqual(self.ask(self.client("127.0.2.2"), "a@named.test")[:3], "250")

    def test_06_one_reply(self):
        """While DNS has no answer each command gets its one reply, and RCPT says 451."""
        client = self.client("127.0.4.6", 'MFDNSCHECK="",HELOCHECK="A"', hello=False)
        client.write("EHLO sad.test\r\nMAIL FROM:<a@sad.test>\r\nRCPT TO:<bob@one.test>\r\nNOOP\r\nQUIT\r\n")
        codes = [client.reply()[-200:].split(b"\r\n")[-2][:3] for _ in range(5)]
        self.assertEqual(codes, [b"250", b"250", b"451", b"250", b"221"])

    def test_07_labels(self):
        """notyahoo.test is not within yahoo.test; nor is xone.test within one.test for `recipients`."""
        self.put("badmailfrom", "@evil.test=\n")
        self.house.names.records["7.4.0.127.in-addr.arpa"] = {"PTR": ["mx.notevil.test."]}
        self.assertEqual(self.ask(self.client("127.0.4.7"), "a@evil.test")[:3], "553")
        self.assertEqual(self.ask(self.client("127.0.2.2"), "a@evil.test")[:3], "250")  # mx.evil.test
        (self.folder / "none").write_text("nobody@one.test\n")
        self.put("recipients", f"ne.test:{self.folder}/none\n!*\n")
        self.assertEqual(self.ask(self.client())[:3], "250")

    def test_08_null_sender(self):
        """`~dom` says nothing about a bounce."""
        self.put("badmailfrom", "~yahoo.test\n")
        client = self.client("127.0.2.1")
        self.assertEqual(self.ask(client, "a@source.test")[:3], "553")
        self.assertEqual(self.ask(client, "")[:3], "250")

    def test_09_protocol(self):
        """The protocol's word has its letter once, in each message of a session."""
        client = self.client("127.0.4.9", 'RELAYCLIENT="",LOCALMFCHECK=""')
        for n in range(3):
            self.assertEqual(client.mail("bob@one.test", sender="a@one.test", mark=f"nine{n}")[:3], b"250")
        until(lambda: self.house.sink.marks[b"nine2"])
        texts = [text for _, _, text in self.house.sink.messages if b"X-Mark: nine" in text]
        self.assertTrue(all(b" with ESMTPM id " in text for text in texts))

    def test_10_second_helo(self):
        """A later, right HELO is not refused for an earlier one."""
        client = self.client("127.0.2.1", 'HELOCHECK="="', hello="wrong.test")
        self.assertEqual(self.ask(client)[:3], "550")
        client.say("EHLO mail.yahoo.test")
        self.assertEqual(self.ask(client)[:3], "250")

    def test_11_size_reply(self):
        """The 552 is a whole line."""
        client = self.client("127.0.4.11", 'DATABYTES="1000"')
        client.say("MAIL FROM:<a@source.test> SIZE=1001")
        self.assertRegex(client.say("RCPT TO:<bob@one.test>"), rb"\A552 5\.3\.4 .+\r\n\Z")

    def test_12_descriptor_3(self):
        """Programs get their descriptor 3 however many others are open."""
        checker = script(self.folder / "three", 'read -r address <&3; [ "$address" = bob@one.test ]')
        self.put("recipients", f"@one.test|{checker}\n")
        crowd = [self.client() for _ in range(20)]
        self.assertEqual([self.ask(client)[:3] for client in crowd], ["250"] * 20)
        self.assertEqual(self.ask(crowd[0], recipient="eve@one.test")[:3], "550")

    def test_13_own_words(self):
        """A REPLY_* text with a line's end is a mistake that is told; no client's word makes a field of the log."""
        self.assertEqual(self.client("127.0.4.13").banner[:3], b"220")
        self.rules('127.0.4.13:deny,REPLY_HELO="a\tb"', ":allow")
        self.assertEqual(self.client("127.0.4.13").banner[:3], b"220")  # the old rules stay
        until(lambda: "tcp.smtp:1" in self.house.gateway.text())
        client = self.client(hello="x'H:forged")
        client.say('MAIL FROM:<"a T:forged@x.test"@source.test>')
        client.say("RCPT TO:<x@foreign.test>")
        line = self.logged("Reject::SNDR::Invalid_Relay", "source.test")
        self.assertEqual((line.count(" T:"), line.count(" H:"), line.count(" F:")), (1, 1, 1))

    def test_14_rcpthosts_missing(self):
        """Without rcpthosts nothing is relayed."""
        self.assertFalse((self.control / "rcpthosts").exists())
        self.assertEqual(self.ask(self.client(), recipient="x@foreign.test")[:3], "553")

    def test_15_waiting(self):
        """While one session waits for DNS or a program, others go on."""
        self.house.names.records["silent.test"] = "silent"
        slow = script(self.folder / "slow", "sleep 2; exit 0")
        self.put("recipients", f"@two.test|{slow}\n*:{self.folder}/all\n")
        (self.folder / "all").write_text("bob@one.test\n")
        (self.folder / "two.recipients").write_text(f"@two.test|{slow}\n")
        self.addCleanup((self.folder / "two.recipients").write_text, "!two.test\n")
        self.rules('127.0.4.15:allow,MFDNSCHECK=""', ":allow")
        waiting = [self.client("127.0.4.15"), self.client()]
        answers = []
        asks = ((waiting[0], "a@silent.test", "bob@one.test"), (waiting[1], "a@none.test", "x@two.test"))
        threads = [threading.Thread(target=lambda a=a: answers.append(self.ask(*a)), daemon=True) for a in asks]
        for thread in threads:
            thread.start()
        time.sleep(0.2)

        began = time.monotonic()
        self.assertEqual(self.client().mail("bob@one.test")[:3], b"250")
        self.assertLess(time.monotonic() - began, 1)
        self.assertEqual(answers, [])
        for thread in threads:
            thread.join(15)
        self.assertEqual(sorted(answer[:3] for answer in answers), ["250", "451"])

    def test_17_program_not_run(self):
        """A checker that cannot be executed any more gives one reply."""
        checker = script(self.folder / "gone", "exit 0")
        self.put("recipients", f"@one.test|{checker}\n")
        self.assertEqual(self.ask(self.client())[:3], "250")
        Path(checker).unlink()
        client = self.client()
        client.write("MAIL FROM:<a@source.test>\r\nRCPT TO:<bob@one.test>\r\n")
        self.assertEqual(client.reply()[:3], b"250")
        self.assertEqual(client.reply()[:3], b"421")
        self.assertEqual(client.reply(), b"")

    def test_19_sleepers(self):
        """No more clients than `sleepers` (two here) are slowed down at once; others are answered."""
        self.rules('127.0.4.19:allow,TARPITCOUNT="1",TARPITDELAY="2"', ":allow")
        clients = [self.client("127.0.4.19") for _ in range(4)]
        for client in clients:
            client.say("MAIL FROM:<a@source.test>")
        for client in clients:
            client.write("RCPT TO:<bob@one.test>\r\n")
        time.sleep(1)
        answered, _, _ = select.select([client.socket for client in clients], [], [], 0)
        self.assertEqual(len(answered), 2)
        self.assertEqual([client.reply()[:3] for client in clients], [b"250"] * 4)
