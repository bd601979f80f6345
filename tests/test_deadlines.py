from twisted.trial.unittest import SynchronousTestCase

from qmq.deadlines import IDLE, TOO_LONG, TOO_SLOW, Deadlines, Stage, Watch


class WatchTests(SynchronousTestCase):
    def setUp(self):
        self.watch = Watch(Deadlines())

    def first(self, looks):
        """When the watch first says what, of (time, stage, body, moved)."""
        for now, stage, body, moved in looks:
            if reply := self.watch.look(now, stage, body, moved=moved):
                return now, reply
        return None

    def test_idle(self):
        """A client that completes no command for five minutes is cut, however many octets it dribbles."""
        looks = [(now, Stage.COMMAND, None, now <= 100) for now in range(1000)]

        self.assertEqual(self.first(looks), (401, IDLE))

    def test_busy(self):
        """A client that goes on is cut only for the length of its session."""
        looks = [(now, Stage.COMMAND, None, True) for now in range(5000)]

        self.assertEqual(self.first(looks), (3601, TOO_LONG))

    def test_waiting_for_us(self):
        """A client that waits for our answer is never cut, and has its five minutes after it."""
        looks = [(now, Stage.ANSWER, None, False) for now in range(10000)]
        self.assertIsNone(self.first(looks))

        self.watch = Watch(Deadlines(session=99999))
        self.assertIsNone(self.first(looks))
        self.assertEqual(
            self.first([(10299, Stage.COMMAND, None, False), (10300, Stage.COMMAND, None, False)]), (10300, IDLE)
        )

    def test_slow_body(self):
        """A body that dribbles is cut once it has lasted five minutes; one that keeps a pace is not."""
        draft = object()
        slow = [(now, Stage.BODY, (draft, now * 99), True) for now in range(3000)]
        steady = [(now, Stage.BODY, (draft, now * 100), True) for now in range(3000)]

        self.assertEqual(self.first(slow), (301, TOO_SLOW))
        self.watch = Watch(Deadlines())
        self.assertIsNone(self.first(steady))

    def test_each_body_anew(self):
        """Each body has its own time."""
        looks = [(now, Stage.BODY, (now // 200, (now % 200)), True) for now in range(3000)]

        self.assertIsNone(self.first(looks))

    def test_deaf(self):
        """Handshakes, unread replies and last words have their own, shorter times, and no words."""
        for stage, seconds in ((Stage.HANDSHAKE, 60), (Stage.READER, 60), (Stage.END, 10)):
            self.watch = Watch(Deadlines())
            self.assertEqual(self.first((now, stage, None, True) for now in range(1000)), (seconds + 1, TOO_SLOW))
            self.assertTrue(stage.deaf)
