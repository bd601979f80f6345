import os
import stat
import tempfile

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qmq.mail import FileBody, MemoryBody
from qmq.receive.draft import Drafts

TEXT = b"Subject: x\r\nX-Other: y\r\n\r\nbody\r\n"


class DraftTests(SynchronousTestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp()
        self.drafts = Drafts(self.folder, inline=100, header=500)
        self.addCleanup(lambda: self.drafts.clear() and None)

    def files(self):
        return os.listdir(self.folder)

    @given(st.lists(st.binary(max_size=80), max_size=20), st.sampled_from([0, 10, 100, 10000]))
    def test_whole(self, pieces, inline):
        """Whatever the pieces, the body is what was written, in memory or in a file."""
        draft = Drafts(self.folder, inline=inline).begin()
        for piece in pieces:
            draft.write(piece)
        whole = b"".join(pieces)

        body = draft.close()

        self.assertEqual(b"".join(body.chunks()), whole)
        self.assertEqual((body.size, draft.size), (len(whole), len(whole)))
        self.assertIs(type(body), FileBody if len(whole) > inline else MemoryBody)
        draft.discard()
        self.assertEqual(self.files(), [])

    def test_octet_by_octet(self):
        """A text that comes octet by octet does not cost an object an octet."""
        draft = Drafts(self.folder).begin()

        for _ in range(5000):
            draft.write(b"x")

        self.assertLess(len(draft._parts), 300)
        self.assertEqual(draft.close().data, b"x" * 5000)

    def test_private(self):
        """A draft's file is readable by us alone, and no two have the same name."""
        drafts = [self.drafts.begin() for _ in range(3)]
        for draft in drafts:
            draft.write(b"x" * 200)

        self.assertEqual(len(self.files()), 3)
        for name in self.files():
            mode = os.stat(os.path.join(self.folder, name)).st_mode
            self.assertEqual(stat.S_IMODE(mode), 0o600)
        for draft in drafts:
            draft.discard()
            draft.discard()

    def test_header(self):
        """The header is the text up to the empty line, wherever the text is kept and however long it is."""
        for inline in (10, 1000):
            for tail in (b"", b"z" * 2000):
                draft = Drafts(self.folder, inline=inline, header=500).begin()
                for octet in TEXT + tail:
                    draft.write(bytes([octet]))
                self.assertEqual(draft.header(), TEXT[:24])
                draft.discard()

    def test_no_header(self):
        """A text that begins with an empty line has an empty header; one without any is all header."""
        for text, header in ((b"\r\nbody\r\n\r\n", b""), (b"", b""), (b"only: this\r\n", b"only: this\r\n")):
            draft = self.drafts.begin()
            draft.write(text)
            self.assertEqual(draft.header(), header)

    def test_endless_header(self):
        """A header longer than is kept is none."""
        for inline in (10, 10000):
            draft = Drafts(self.folder, inline=inline, header=500).begin()
            draft.write(b"X: y\r\n" * 200 + b"\r\n")
            self.assertIsNone(draft.header())
            draft.discard()

    def test_limit(self):
        """What comes after the limit is counted, and nothing of the text is kept."""
        draft = self.drafts.begin(limit=300)
        draft.write(b"x" * 300)
        self.assertFalse(draft.over)

        draft.write(b"x")

        self.assertTrue(draft.over)
        self.assertEqual((draft.size, self.files()), (301, []))

    def test_header_of_too_much(self):
        """Of what is too long the header is there all the same, and no more than a header may have."""
        for inline in (10, 1000):
            draft = Drafts(self.folder, inline=inline, header=500).begin(40)
            for piece in (TEXT, b"x" * 30, b"y" * 3000):
                draft.write(piece)
            self.assertTrue(draft.over)
            self.assertEqual((draft.header(), self.files()), (b"Subject: x\r\nX-Other: y\r\n", []))
            draft.discard()

    def test_trouble(self):
        """A disk that refuses spoils the text, and nobody else's day."""
        draft = Drafts(os.path.join(self.folder, "missing"), inline=10).begin()

        draft.write(b"x" * 20)
        draft.write(b"x" * 20)

        self.assertIsInstance(draft.trouble, OSError)
        self.assertRaises(OSError, draft.close)
        draft.discard()

    def test_trouble_at_the_end(self):
        """The same if it refuses only the last octets."""
        draft = self.drafts.begin()
        draft.write(b"x" * 200)
        draft.write(b"x")
        os.close(draft._fd)

        self.assertRaises(OSError, draft.close)

    def test_clear(self):
        """What a crash left behind is removed at the next start; what is not ours stays."""
        self.drafts.begin().write(b"x" * 200)
        open(os.path.join(self.folder, "other"), "w").close()
        self.addCleanup(os.unlink, os.path.join(self.folder, "other"))

        self.assertEqual(Drafts(self.folder).clear(), 1)

        self.assertEqual(self.files(), ["other"])

    def test_folder_made(self):
        """The folder is made, for us alone."""
        folder = os.path.join(self.folder, "new")
        self.addCleanup(os.rmdir, folder)

        Drafts(folder).clear()

        self.assertEqual(stat.S_IMODE(os.stat(folder).st_mode), 0o700)
