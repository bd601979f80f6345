"""docs/checkers.md keeps its word: its code runs, and its own tests pass."""

import sys
import types
import unittest
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from qmq.dns.query import DNSTrouble, NoSuchDomain
from qmq.interfaces import IBlocking, IRecipientChecker, ISelective
from qmq.testing import Client, make

PAGE = Path(__file__).resolve().parent.parent / "docs" / "checkers.md"
MODULE = "twisted.plugins.no_noreply"


class PageTests(SynchronousTestCase):
    def setUp(self):
        """Run the page's Python, block by block, as one module."""
        self.blocks = [part.partition("```")[0] for part in PAGE.read_text().split("```python\n")[1:]]
        self.page = types.ModuleType(MODULE)
        sys.modules[MODULE] = self.page
        self.addCleanup(sys.modules.pop, MODULE)
        names = vars(self.page)
        names.update(NoSuchDomain=NoSuchDomain, DNSTrouble=DNSTrouble, NoWords=frozenset)
        names.update(IBlocking=IBlocking, IRecipientChecker=IRecipientChecker, ISelective=ISelective)
        for block in self.blocks:
            exec(compile(block, str(PAGE), "exec"), names)

    def test_short(self):
        """The first example is a whole checker in less than 20 lines."""
        self.assertLess(len(self.blocks[0].splitlines()), 20)

    def test_example(self):
        """Its factory makes a checker that refuses."""
        client = Client(make(self.page.nonoreply))

        self.assertTrue(client.mail("noreply@shop.example", "bob@ours.example").reply.startswith("553"))

    def test_its_tests(self):
        """The tests that the page shows pass."""
        names = [name for name in dir(self.page.Tests) if name.startswith("test_")]
        result = unittest.TestResult()

        unittest.TestSuite(map(self.page.Tests, names)).run(result)

        self.assertEqual(result.errors + result.failures, [])
        self.assertEqual(result.testsRun, 3)

    def test_options(self):
        """The example with options takes them, and refuses what makes no sense with what to say."""
        factory = self.page.WordsFactory()

        self.assertEqual(make(factory, {"words": "a B"}), {b"a", b"b"})
        with self.assertRaises(ValueError) as caught:
            make(factory, {"words": ""})
        self.assertIn("say noreply", str(caught.exception))

    def test_blocking(self):
        """The example that blocks is asked like any other."""
        client = Client(self.page.KnownToCRM({b"a@x.example"}.__contains__))

        self.assertTrue(client.mail("a@x.example", "bob@ours.example").taken)
        self.assertTrue(client.mail("b@x.example", "bob@ours.example").reply.startswith("550"))
