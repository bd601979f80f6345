import os
import random

import cdbx
from twisted.trial.unittest import SynchronousTestCase

from qmq.rules import cdb as module
from qmq.rules.cdb import open_cdb
from qmq.rules.watched import BadLine, Files


def write(path, entries):
    """A cdb at *path*, renamed into place."""
    made = cdbx.CDB.make(path + ".new")
    for key, value in entries:
        made.add(key, value)
    made.commit().close()
    os.rename(path + ".new", path)


def open_files():
    return len(os.listdir("/proc/self/fd"))


class CDBTests(SynchronousTestCase):
    def setUp(self):
        self.path = self.mktemp()

    def both_ways(self):
        """With the file small, and with it big."""
        for small in (1 << 20, 0):
            self.patch(module, "_SMALL", small)
            yield

    def test_get(self):
        """A key has its first value; an empty value is one; a key that is not there has none."""
        write(self.path, [(b"a", b"1"), (b"a", b"2"), (b"", b"empty key"), (b"e", b""), (b"\0\xff", b"x" * 70000)])
        for _ in self.both_ways():
            rules = open_cdb(self.path)
            self.assertEqual([rules.get(key) for key in (b"a", b"", b"e", b"A")], [b"1", b"empty key", b"", None])
            self.assertEqual(rules.get(b"\0\xff"), b"x" * 70000)
            self.assertEqual([key in rules for key in (b"e", b"b")], [True, False])

    def test_empty(self):
        """A cdb without keys is one."""
        write(self.path, [])
        for _ in self.both_ways():
            self.assertIsNone(open_cdb(self.path).get(b"a"))

    def test_no_cdb(self):
        """A file that is no cdb, or was cut short, is refused with its name and what to do."""
        write(self.path, [(b"key%d" % number, b"value") for number in range(100)])
        with open(self.path, "rb") as file:
            good = file.read()
        for bad in (b"", b"a@b.example\n", good[:2047], good[:2048], good[:-1], b"x" * 5000):
            with open(self.path, "wb") as file:
                file.write(bad)
            for _ in self.both_ways():
                with self.assertRaises(BadLine) as caught:
                    open_cdb(self.path)
                self.assertIn(self.path, str(caught.exception))
                self.assertIn("make it again", str(caught.exception))

    def test_no_file(self):
        """What is not there, or is a folder, is an OSError."""
        self.assertRaises(FileNotFoundError, open_cdb, self.path)
        os.mkdir(self.path)
        self.assertRaises(OSError, open_cdb, self.path)

    def test_damaged(self):
        """A damaged file gives values, right or wrong, or OSError; never anything else."""
        write(self.path, [(b"key%d" % number, b"v" * number) for number in range(30)])
        with open(self.path, "rb") as file:
            good = file.read()
        dice = random.Random(4)
        for _ in range(150):
            bad = bytearray(good)
            for _ in range(dice.choice((1, 5, 50))):
                bad[dice.randrange(dice.choice((2048, len(bad))))] = dice.choice((0, 255, dice.randrange(256)))
            with open(self.path, "wb") as file:
                file.write(bad)
            for _ in self.both_ways():
                try:
                    rules = open_cdb(self.path)
                except BadLine:
                    continue
                for number in range(0, 33, 4):
                    try:
                        rules.get(b"key%d" % number)
                    except OSError as trouble:
                        self.assertIn(self.path, str(trouble))

    def test_shortened_while_open(self):
        """Who shortens a file in place, instead of renaming, harms nobody but those who look for what is gone."""
        for _ in self.both_ways():
            write(self.path, [(b"key%d" % number, b"value") for number in range(3000)])
            rules = open_cdb(self.path)
            os.truncate(self.path, 4096)
            try:
                self.assertEqual(rules.get(b"key2999"), b"value")
            except OSError as trouble:
                self.assertIn(self.path, str(trouble))

    def test_closed(self):
        """A closed file says so, closing twice is no harm, and no descriptor stays open, whoever forgets to close."""
        write(self.path, [(b"a", b"1")])
        before = open_files()
        for _ in self.both_ways():
            rules = open_cdb(self.path)
            rules.close()
            rules.close()
            self.assertRaises(OSError, rules.get, b"a")
            forgotten = open_cdb(self.path)
            self.assertGreater(open_files(), before)
            del forgotten
            self.assertEqual(open_files(), before)
        with open(self.path, "wb"):
            pass
        self.assertRaises(BadLine, open_cdb, self.path)
        self.assertEqual(open_files(), before)

    def test_watched(self):
        """A new file holds from the next connection on, and the old one is closed."""
        files = Files()
        rules = files.watch(self.path, open_cdb, None)
        self.assertIsNone(rules.now())
        write(self.path, [(b"a", b"1")])
        files.look()
        self.assertEqual(rules.now().get(b"a"), b"1")
        before = open_files()
        write(self.path, [(b"a", b"two")])
        files.look()
        self.assertEqual(rules.now().get(b"a"), b"two")
        self.assertEqual(open_files(), before)
