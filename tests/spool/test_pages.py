"""The pages of a database."""

import apsw
from twisted.trial.unittest import SynchronousTestCase

from qmq.spool.pages import MOST, Pages


class PagesTests(SynchronousTestCase):
    """A cache as large as the batches of late ask for."""

    def setUp(self) -> None:
        """A database whose cache is 512 KiB at least."""
        self.connection = apsw.Connection(":memory:")
        self.pages = Pages(512)
        self.pages.of(self.connection)
        self.connection.pragma("cache_size", -512)
        self.addCleanup(self.connection.close)

    def cache(self) -> object:
        """KiB, as SQLite says it."""
        return -int(self.connection.pragma("cache_size"))

    def test_short_mail(self) -> None:
        """Short mail asks for no more than the least."""
        self.pages.fit(16 * 4096, 0)

        self.assertEqual(self.cache(), 512)

    def test_long_mail(self) -> None:
        """Where long mail comes in large batches its pages stay in memory, up to a bound."""
        self.pages.fit(20 * 65536, 0)
        self.assertEqual(self.cache(), 8192)

        self.pages.fit(1 << 30, 0)
        self.assertEqual(self.cache(), MOST)

    def test_deep_queue(self) -> None:
        """Where many rows are tried again at once more stays in memory, too."""
        self.pages.fit(0, 100)

        self.assertEqual(self.cache(), 4096)

    def test_flood_is_over(self) -> None:
        """The memory is given back when long mail has not come for a while, not at once."""
        self.pages.fit(20 * 65536, 0)

        self.pages.fit(4096, 0)
        self.assertEqual(self.cache(), 8192)
        for _ in range(400):
            self.pages.fit(4096, 0)
        self.assertEqual(self.cache(), 512)

    def test_weighed(self) -> None:
        """What is in use is told, pages that are free again are not; and it is known without a connection."""
        self.connection.execute("CREATE TABLE body (data); INSERT INTO body VALUES (zeroblob(100000))")
        self.pages.weigh()
        before = self.pages.used
        self.connection.execute("DELETE FROM body")
        self.pages.weigh()

        self.assertGreater(before, 100_000)
        self.assertLess(self.pages.used, 20_000)
        self.pages.of(None)
        self.pages.weigh()
        self.assertLess(self.pages.used, 20_000)
