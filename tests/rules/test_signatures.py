import base64
import os
import tempfile
from pathlib import Path

import cdbx
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qmq.rules.signatures import LOADERS, TYPES, Hunt, Loaders, Signatures, read_loaders, read_types
from qmq.rules.watched import BadLine

EXE = base64.b64encode(b"MZ\x90\x00\x03\x00\x00\x00\x04" + bytes(60))  # begins with TVqQAAMAA


def hunted(text, step=None, types=TYPES, loaders=LOADERS, first=b"", blanks=False):
    """What is hit in one part."""
    hunt = Hunt(Signatures(types, Loaders(loaders).finder(first), blanks))
    hunt.part()
    step = step or max(1, len(text))
    for at in range(0, len(text), step):
        hunt.text(text[at : at + step])
    return hunt.hit


class HuntTests(SynchronousTestCase):
    """What gives a part away."""

    def test_types(self):
        """A part that begins with a listed signature is hit, however its lines are broken."""
        for text in (
            EXE,
            b"\r\n" + EXE,
            b"\r\n\r\n \t" + EXE,
            b"\r\n".join(EXE[i : i + 1] for i in range(20)),
            b"TVqQ AAMAA",
            b"T-V!qQAAMAA\r\n",
        ):
            for step in (1, 2, 3, None):
                self.assertEqual(hunted(text, step), ("MIME", b"TVqQAAMAA"), (text, step))

    def test_not_types(self):
        """Not hit are other cases, signatures elsewhere, and parts that are shorter."""
        for text in (EXE.lower(), b"A" + EXE, b"TVqQAAMA", b"", b"\r\n"):
            self.assertIsNone(hunted(text), text)

    def test_each_part(self):
        """What one part ends with says nothing of the next."""
        hunt = Hunt(Signatures(TYPES, Loaders(LOADERS).finder(b""), True))
        for text in (b"TVqQ", b"AAMAA", b"AAAAAAAAAMi5", b"kbAAAAAA A"[:6], b"\r\nA", b" B"):
            hunt.part()
            hunt.text(text)
        self.assertIsNone(hunt.hit)

    def test_loaders(self):
        """Five listed characters anywhere in a part are hit, across lines too."""
        for text in (
            b"AAAAAAAAAAAAMi5kbAAAA",
            b"AAAAAAAAAAAAMi5\r\nkbAAAA",
            b"AAAAAAAAAA Mi5kb",
            b"Mi5kb",
            b"=Mi\r\n5k\r\n\r\nb",
        ):
            for step in (1, 3, None):
                self.assertEqual(hunted(text, step), ("Loader", b"Mi5kb"), (text, step))
        self.assertIsNone(hunted(b"AAAAAmi5kbAAAAAMi5kB"))

    def test_loaders_first_character(self):
        """Only those are looked for that begin with the character that was set."""
        loaders = {b"Mi5kb", b"MzIuZ", b"XXXXX"}

        self.assertEqual(hunted(b"AAXXXXX", loaders=loaders), ("Loader", b"XXXXX"))
        self.assertEqual(hunted(b"AAXXXXXMzIuZ", loaders=loaders, first=b"M"), ("Loader", b"MzIuZ"))
        self.assertIsNone(hunted(b"AAXXXXX", loaders=loaders, first=b"A"))

    def test_dll_names(self):
        """The default list finds kernel32.dll and the like at each alignment."""
        for name in (b"KERNEL32.dll", b"user32.dll", b"ws2_32.dll"):
            for shift in range(3):
                self.assertIsNotNone(hunted(base64.encodebytes(bytes(60 + shift) + name + bytes(99))), (name, shift))

    def test_blanks(self):
        """Blanks inside a line of base64 are hit where that is wanted."""
        for text in (
            b"AAAA AAAABBBB\r\n",
            b"AAAABBBBCCCC\r\nDDDD \tEEEE",
            b"\r\nAAAA   BBBB\r\n",
            b"A" * 76 + b"\r\n" + b"B" * 20 + b"\t" * 30 + b"C",
        ):
            for step in (1, 2, 7, None):
                kind, first = hunted(text, step, blanks=True)
                self.assertEqual((kind, first), ("MIME", b"".join(text.split())[: len(first)]), (text, step))
            self.assertIsNone(hunted(text))

    def test_no_blanks_inside(self):
        """Blanks around lines are none inside, nor is what a mailing list writes below."""
        for text in (
            b"AAAABBBB \r\n CCCCDDDD\t\r\n", b"AAAABBBB=\r\n-- \r\nthe members of this list\r\n", b"AAAABBBB\r\n\r\nthe members of\r\n",
            b"AAAABBBB\n\nthe members of\n", b"  \r\n\r\n \t AAAABBBB", b"AAAA ==\r\n", b"",
        ):  # fmt: skip
            for step in (1, 2, 7, None):
                self.assertIsNone(hunted(text, step, blanks=True), (text, step))

    @given(st.binary(max_size=200), st.integers(1, 9))
    @settings(max_examples=60, deadline=None)
    def test_slices(self, text, step):
        """Slices do not matter."""
        text = text.translate((b"AMi5kbT \t\r\n=" * 22)[:256])

        self.assertEqual(hunted(text, step, blanks=False), hunted(text, blanks=False))
        self.assertEqual(hunted(text, step, blanks=True) is None, hunted(text, blanks=True) is None)


class ListTests(SynchronousTestCase):
    """The control files."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = os.path.join(folder.name, "list")

    def test_text(self):
        """A line's first characters count; comments, and words behind them, do not."""
        Path(self.path).write_text("# DOS\nTVqQAAMAA\n\nTVpQAAIAAxyz and so on\r\n")

        self.assertEqual(read_types(self.path), {b"TVqQAAMAA", b"TVpQAAIAA"})

    def test_loaders(self):
        """Loaders have five characters."""
        Path(self.path).write_text("Mi5kb\nMzIuZ\n")

        self.assertEqual(read_loaders(self.path).finder(b"")(b"xxMzIuZ"), b"MzIuZ")
        self.assertIsNone(read_loaders(self.path).finder(b"A"))
        Path(self.path).write_text("")
        self.assertIsNone(read_loaders(self.path).finder(b""))

    def test_cdb(self):
        """What qmail-badmimetypes compiled is read too."""
        path = self.path + ".cdb"
        with open(path, "wb") as file:
            maker = cdbx.CDB.make(file)
            maker.add(b"TVqQAAMAA", b"")
            maker.add(b"TVpQAAIAA", b"")
            maker.commit()

        self.assertEqual(read_types(path), {b"TVqQAAMAA", b"TVpQAAIAA"})

    def test_bad(self):
        """What is no signature is named with its line."""
        for text, words in (("TVqQAAMAA\nTVq\n", ":2: 'TVq'"), ("TVqQAAMA!\n", ":1:"), ("\0" * 9, ":1:")):
            Path(self.path).write_text(text)
            with self.assertRaises(BadLine) as caught:
                read_types(self.path)
            self.assertIn(words, str(caught.exception))
        Path(self.path + ".cdb").write_text("no cdb")
        with self.assertRaises(BadLine):
            read_types(self.path + ".cdb")
