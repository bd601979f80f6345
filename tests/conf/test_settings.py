import os
from dataclasses import fields

from twisted.trial.unittest import SynchronousTestCase

from qmq.conf import words
from qmq.conf.model import General, Instance, Primary
from qmq.conf.settings import GENERAL, INSTANCE, PRIMARY, TABLES, nearest, reference
from tests.conf.folders import HEAD, ConfTestCase

DOCS = os.path.join(os.path.dirname(__file__), "..", "..", "docs", "conf-qmq.md")


class TableTests(SynchronousTestCase):
    def test_objects(self):
        """Every setting is an attribute, and every attribute a setting."""
        of_table = [{s.field for s in table} for table in (GENERAL, PRIMARY, INSTANCE)]

        self.assertEqual(of_table[0], {f.name for f in fields(General)})
        of_words = {"environment", "listeners", "clients", "process", "said_hosts"}
        self.assertEqual(of_table[1] | of_words, {f.name for f in fields(Primary)})
        self.assertEqual(
            of_table[2] - {"route"} | {"id", "number", "name", "routes", "_routes"}, {f.name for f in fields(Instance)}
        )

    def test_defaults(self):
        """Every default is written as an operator would write it, and is within its bounds."""
        for setting in (s for table in TABLES.values() for s in table if s.default):
            values = [setting.parse(w) for w in (setting.default.split() if setting.each else [setting.default])]
            for value in values:
                if setting.floor is not None:
                    self.assertGreaterEqual(value, setting.floor, setting.key)
                if setting.ceiling is not None:
                    self.assertLessEqual(value, setting.ceiling, setting.key)

    def test_reference(self):
        """The reference in docs/conf-qmq.md is the table that the program goes by."""
        with open(DOCS, encoding="utf-8") as file:
            text = file.read()

        self.assertIn("\n".join(reference()).strip(), text)
        self.assertIn("\n".join(words.reference()), text)

    def test_words(self):
        """No word for clients is another setting's of [primary], but databytes, which is both."""
        self.assertEqual({s.key for s in PRIMARY} & set(words.WORDS), {"databytes"})

    def test_nearest(self):
        """A mistyped key is answered with the nearest; a key of elsewhere with its section."""
        self.assertEqual(nearest("instance", "concurency"), "do you mean concurrency?")
        self.assertEqual(nearest("instance", "listen"), "listen belongs into [primary]")
        self.assertEqual(nearest("primary", "helochek"), "do you mean helocheck?")
        self.assertIn("[client NET]", nearest("instance", "helocheck"))
        self.assertEqual(nearest("primary", "deliver"), "deliver belongs into [NAME]")
        self.assertIn("known are me, user", nearest("qmq", "xyzzy"))


class EverySettingTests(ConfTestCase):
    def test_default_written_out(self):
        """Writing a default into the file changes nothing."""
        plain = self.load(HEAD)
        said = {"qmq": "", "primary": "", "instance": ""}
        for kind, table in TABLES.items():
            # databytes said is stronger than the process's variable, databytes by default weaker.
            given = {"me", "listen", "domains", "deliver", "spool"} | ({"databytes"} if kind == "primary" else set())
            said[kind] = "".join(f"{s.key} = {s.default}\n" for s in table if s.default and s.key not in given)
        text = HEAD.replace("[primary]\n", said["qmq"] + "[primary]\n" + said["primary"]) + said["instance"]
        text = text.replace("control = control\n", "")

        written = self.load(text)

        self.assertEqual(written.primary, plain.primary)
        mine, other = written.instances[0], plain.instances[0]
        for field in fields(Instance):
            if field.name not in {"spool", "_routes"}:
                self.assertEqual(getattr(mine, field.name), getattr(other, field.name), field.name)
