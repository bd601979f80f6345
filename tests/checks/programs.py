"""Programs that end as a test tells them, for the checkers that ask some."""

from twisted.internet.defer import Deferred

from qmq.programs import Exit, ProgramTrouble


class FakePrograms:
    """Keeps what is asked for; each run ends when `end` says so."""

    def __init__(self):
        self.runs = []  # (argv, feeds, environ, seconds)
        self.waiting = []
        self.cancelled = 0
        self.seen = lambda _: None  # called when a program begins

    def run(self, argv, feeds, environ, seconds):
        self.seen(argv)
        feeds = {fd: feed if isinstance(feed, bytes) else b"".join(feed) for fd, feed in feeds.items()}
        self.runs.append((argv, feeds, environ, seconds))
        self.waiting.append(Deferred(self._cancelled))
        return self.waiting[-1]

    def _cancelled(self, _):
        self.cancelled += 1

    def end(self, code, words=b""):
        """The oldest that runs ends: with a code, or in trouble."""
        if isinstance(code, str):
            self.waiting.pop(0).errback(ProgramTrouble(code, words))
            return
        code = Exit(code)
        code.stderr = words
        self.waiting.pop(0).callback(code)
