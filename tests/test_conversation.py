from collections import deque

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from qmq.conversation import After, Conversation
from qmq.mail import Reply

OK = Reply(250, "2.0.0", "ok")
LATER = Reply(451, "4.3.0", "try again later")


class LineWire:
    """Lines are events; each awaits a reply, but those that begin with a dash."""

    def __init__(self):
        self.buffer = b""
        self.out = []
        self.awaiting = False

    @property
    def held(self):
        return len(self.buffer)

    def receive(self, data):
        self.buffer += data

    def next_event(self):
        if self.awaiting or b"\n" not in self.buffer:
            return None
        line, self.buffer = self.buffer.split(b"\n", 1)
        self.awaiting = not line.startswith(b"-")
        return line

    def reply(self, reply):
        self.say(reply.line)

    def line(self, reply):
        return reply.line

    def say(self, raw):
        self.out.append(raw)
        self.awaiting = False

    def to_send(self):
        out = b"".join(self.out)
        self.out.clear()
        return out


class Answers:
    """A dialogue that answers what it is told to."""

    def __init__(self, answer):
        self.after = None
        self.told = answer
        self.heard = []
        self.cancellable = True
        self.losses = 0

    def greet(self):
        return b"hello\n"

    def answer(self, event):
        self.heard.append(event)
        return self.told(event)

    def trouble(self):
        return LATER

    def secured(self, tls):
        pass

    def receiving(self):
        return None

    def early(self):
        pass

    def cut(self, reply):
        pass

    def lost(self):
        self.losses += 1
        return self.cancellable


class CountingTransport(StringTransport):
    writes = 0

    def write(self, data):
        self.writes += 1
        super().write(data)


class ConversationTests(SynchronousTestCase):
    def begin(self, answer, **how):
        self.dialogue = Answers(answer)
        self.ended = []
        self.conversation = Conversation(LineWire(), lambda _: self.dialogue, ended=self.ended.append, **how)
        self.transport = CountingTransport()
        self.conversation.makeConnection(self.transport)
        self.transport.clear()

    def say(self, data):
        self.conversation.dataReceived(data)
        return self.heard()

    def heard(self):
        out = self.transport.value()
        self.transport.clear()
        return out

    def test_one_write_a_packet(self):
        """All answers to one packet leave in one write."""
        self.begin(lambda event: event + b"!")
        self.transport.writes = 0

        self.assertEqual(self.say(b"a\nb\nc\n"), b"a!b!c!")
        self.assertEqual(self.transport.writes, 1)

    def test_no_answer(self):
        """An event that awaits none gets none."""
        self.begin(lambda event: OK if event == b"end" else None)

        self.assertEqual(self.say(b"-part\n-part\nend\n"), OK.line)

    def test_waits(self):
        """While an answer is awaited nothing more is asked; what came meanwhile is answered after it."""
        waiting = Deferred()
        self.begin(lambda event: waiting if event == b"slow" else event)

        self.assertEqual(self.say(b"a\nslow\nb\n"), b"a")
        self.assertEqual(self.say(b"c\n"), b"")
        self.assertEqual(self.dialogue.heard, [b"a", b"slow"])
        waiting.callback(OK)

        self.assertEqual(self.heard(), OK.line + b"bc")

    def test_deep_pipeline(self):
        """Ten thousand pipelined commands with answers that are there already take no recursion."""
        self.begin(lambda _: succeed(b"."))

        self.assertEqual(self.say(b"x\n" * 10000), b"." * 10000)

    def test_deep_pipeline_behind_a_slow_one(self):
        """Nor behind one that was waited for."""
        waiting = deque([Deferred()])
        self.begin(lambda _: waiting.popleft() if waiting else succeed(b"."))
        slow = waiting[0]
        self.say(b"x\n" * 10000)

        slow.callback(b"!")

        self.assertEqual(self.heard(), b"!" + b"." * 9999)

    def test_reads_no_further(self):
        """Behind a slow answer no more is read ahead than a bound; then reading goes on."""
        waiting = Deferred()
        self.begin(lambda event: waiting if event == b"slow" else event, held=10)
        self.say(b"slow\n")
        self.say(b"123456789\n")
        self.assertEqual(self.transport.producerState, "producing")

        self.say(b"1\n")
        self.assertEqual(self.transport.producerState, "paused")
        waiting.callback(OK)

        self.assertEqual(self.heard(), OK.line + b"1234567891")
        self.assertEqual(self.transport.producerState, "producing")

    def test_unread_replies(self):
        """A client that does not read its replies gets no more, and is not read from, until it does."""
        self.begin(lambda event: event)

        self.conversation.pauseProducing()
        self.assertEqual(self.transport.producerState, "paused")
        self.assertEqual(self.say(b"a\nb\n"), b"")
        self.assertEqual(self.dialogue.heard, [])
        self.conversation.resumeProducing()

        self.assertEqual(self.heard(), b"ab")
        self.assertEqual(self.transport.producerState, "producing")

    def test_never_read(self):
        """One that never reads them is cut after a minute."""
        self.begin(lambda event: event)
        self.conversation.pauseProducing()

        for now in range(61):
            self.conversation.sweep(now)
        self.assertFalse(self.transport.disconnected)
        self.conversation.sweep(61)

        self.assertTrue(self.transport.disconnected)

    def test_raises(self):
        """An answer that raises is a 451, told once in the log; the session goes on."""
        self.begin(lambda event: 1 / 0 if event == b"bad" else event)

        self.assertEqual(self.say(b"a\nbad\nb\n"), b"a" + LATER.line + b"b")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_fails_later(self):
        """So is one that fails later."""
        waiting = Deferred()
        self.begin(lambda event: waiting if event == b"bad" else event)
        self.say(b"bad\nb\n")

        waiting.errback(OSError("disk"))

        self.assertEqual(self.heard(), LATER.line + b"b")
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)

    def test_raises_where_nothing_is_awaited(self):
        """Where no reply is awaited nobody knows how to go on: 421 and the end."""
        self.begin(lambda _: 1 / 0)

        self.assertEqual(self.say(b"-part\nnext\n")[:9], b"421 4.3.0")
        self.assertTrue(self.transport.disconnecting)
        self.assertEqual(self.dialogue.heard, [b"-part"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_close(self):
        """After the last answer nothing is heard any more."""

        def answer(event):
            self.dialogue.after = After.CLOSE
            return b"bye"

        self.begin(answer)

        self.assertEqual(self.say(b"quit\nmore\n"), b"bye")
        self.assertTrue(self.transport.disconnecting)
        self.assertEqual(self.say(b"more\n"), b"")
        self.assertEqual(self.dialogue.heard, [b"quit"])

    def lose(self):
        self.conversation.connectionLost(Failure(ConnectionDone()))

    def test_lost(self):
        """When the client goes, what is awaited is cancelled, once and quietly."""
        waiting = Deferred()
        self.begin(lambda _: waiting)
        self.say(b"slow\n")

        self.lose()

        self.assertTrue(waiting.called)
        self.assertEqual((self.dialogue.losses, self.ended), (1, [self.conversation]))
        self.assertEqual(self.heard(), b"")

    def test_lost_while_committing(self):
        """Unless it has begun to be committed: then it ends by itself, and is told to nobody."""
        waiting = Deferred()
        self.begin(lambda _: waiting)
        self.dialogue.cancellable = False
        self.say(b"slow\n")

        self.lose()

        self.assertFalse(waiting.called)
        waiting.callback(OK)
        self.assertEqual(self.heard(), b"")

    def test_broken_after_loss(self):
        """What breaks then is in the log."""
        waiting = Deferred()
        self.begin(lambda _: waiting)
        self.dialogue.cancellable = False
        self.say(b"slow\n")
        self.lose()

        waiting.errback(OSError("disk"))

        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)

    def test_hang_up(self):
        """Hanging up waits for the answer that is awaited."""
        waiting = Deferred()
        self.begin(lambda _: waiting)
        self.say(b"slow\n")

        self.conversation.hang_up(Reply(421, "4.3.2", "bye"))
        self.assertFalse(self.transport.disconnecting)
        waiting.callback(OK)

        self.assertEqual(self.heard(), OK.line + b"421 4.3.2 bye\r\n")
        self.assertTrue(self.transport.disconnecting)
