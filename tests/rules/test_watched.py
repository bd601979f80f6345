import os

from twisted.trial.unittest import SynchronousTestCase

from qmq.rules.tcprules import read
from qmq.rules.watched import BadLine, Files, Slips


class SlipsTests(SynchronousTestCase):
    def test_all_told(self):
        """Of a file every bad line is told, in order, not the first alone."""
        path = self.mktemp()
        with open(path, "w", encoding="ascii") as file:
            file.write('foo\n:allow\n1.2.3.4:allow,MAXRECIPIENTS="a"\nbar\n')

        first = self.assertRaises(BadLine, read, path)

        self.assertEqual([slip.line for slip in (first, *first.others)], [1, 3, 4])

    def test_bounded(self):
        """Of a file that is something else the first fifty are enough."""
        slips = Slips()
        for number in range(1000):
            with slips:
                raise BadLine("x", number, "bad")

        self.assertEqual(len(self.assertRaises(BadLine, slips.tell).others), 49)

    def test_others_pass(self):
        """What is no bad line is not kept back."""

        def broken():
            with Slips():
                raise ZeroDivisionError

        self.assertRaises(ZeroDivisionError, broken)
        Slips().tell()


class FilesTests(SynchronousTestCase):
    def setUp(self):
        self.path = self.mktemp()
        self.told = []
        self.files = Files(self.told.append)

    def write(self, text):
        with open(self.path + ".new", "w", encoding="ascii") as file:
            file.write(text)
        os.rename(self.path + ".new", self.path)

    def read(self, path):
        with open(path, encoding="ascii") as file:
            text = file.read()
        if text == "bad":
            raise BadLine(path, 1, "is bad", "write good")
        return text

    def test_next_connection(self):
        """An edit holds from the next connection on, and not before; a file that goes is as if there never was one."""
        watched = self.files.watch(self.path, self.read, "none")
        self.assertEqual(watched.now(), "none")

        self.write("one")
        self.assertEqual(watched.now(), "none")
        self.files.look()
        self.assertEqual(watched.now(), "one")

        os.unlink(self.path)
        self.files.look()
        self.assertEqual(watched.now(), "none")

    def test_absent(self):
        """Who was told that a file is absent hears of it after the next connection once it has come; once."""
        watched, other = (self.files.watch(path, self.read, "none") for path in (self.path, self.path + "2"))
        come = []
        self.assertFalse(watched.absent())  # nobody would be told
        self.files.come = lambda: come.append(watched.absent())
        self.write("one")
        self.look()
        self.assertEqual(come, [])  # nobody asked for it

        self.assertFalse(watched.absent())
        self.assertTrue(other.absent())
        os.unlink(self.path)
        self.look()
        self.assertTrue(watched.absent())

        self.write("two")
        self.assertTrue(watched.absent())
        self.assertEqual(come, [])
        self.look()
        self.assertEqual(come, [False])
        self.assertEqual(watched.now(), "two")
        self.look()
        self.assertEqual(come, [False])

    def look(self):
        """A new connection, and somebody about to ask."""
        self.files.look()
        self.assertNotEqual(self.files.looked, self.files.round)
        self.files.find()
        self.assertEqual(self.files.looked, self.files.round)

    def test_slip(self):
        """A slip leaves the rules as they were, and is told once; mended, the new ones hold."""
        self.write("one")
        watched = self.files.watch(self.path, self.read, "none")

        self.write("bad")
        for _ in range(3):
            self.files.look()
            self.assertEqual(watched.now(), "one")
        self.assertEqual(len(self.told), 1)
        self.assertIn(f"{self.path}:1: is bad; write good", self.told[0])

        self.write("two")
        self.files.look()
        self.assertEqual(watched.now(), "two")

    def test_bad_at_first(self):
        """A file that is bad, or cannot be read, from the start on is an error there."""
        self.write("bad")
        self.assertRaises(BadLine, self.files.watch, self.path, self.read, "none")
        os.unlink(self.path)
        os.mkdir(self.path)
        self.assertRaises(BadLine, self.files.watch, self.path, self.read, "none")
