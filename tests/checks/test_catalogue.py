from pkgutil import iter_modules

from twisted.plugin import getPlugins
from twisted.trial.unittest import SynchronousTestCase

from qmq import checks
from qmq.conf.settings import OWN_CHECKS
from qmq.interfaces import ICheckerFactory


class CatalogueTests(SynchronousTestCase):
    def test_complete(self):
        """Each module of qmq.checks is a check that conf-qmq can name, and is named by default."""
        modules = {module.name for module in iter_modules(checks.__path__)}

        self.assertEqual(modules, set(OWN_CHECKS))
        self.assertLessEqual(modules, {factory.name for factory in getPlugins(ICheckerFactory)})

    def test_told(self):
        """Each says what it is for, and what its options are, in a line."""
        for factory in getPlugins(ICheckerFactory):
            self.assertTrue(factory.help)
            self.assertTrue(all(getattr(factory, "options", {}).values()), factory.name)
