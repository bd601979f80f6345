import os

from qmq.conf.write import conf_text
from tests.conf.folders import ConfTestCase

SHIPPED = os.path.join(os.path.dirname(__file__), "..", "..", "conf-qmq")


class WriteTests(ConfTestCase):
    def test_shipped(self):
        """The conf-qmq that ships is the one that qmq init writes."""
        with open(SHIPPED, encoding="utf-8") as file:
            self.assertEqual(file.read(), conf_text())

    def test_works(self):
        """It works at once, for an ordinary user, without a warning, and opens nothing to strangers."""
        conf = self.load(conf_text())

        self.assertEqual(conf.warnings, ())
        self.assertEqual(conf.primary.listen, (("127.0.0.1", 2525),))
        self.assertEqual([i.name for i in conf.instances], ["customer1", "customer2", "internet", "bounces", "storm"])
        self.assertEqual((conf.bounces.name, conf.default.name, conf.storm.name), ("bounces", "internet", "storm"))
        self.assertFalse(conf.accepts(b"elsewhere.example"))
        self.assertTrue(conf.accepts(b"customer1.example"))
        self.assertEqual(conf.instance("customer1").deliver, b"smtp:127.0.0.1:2601")
