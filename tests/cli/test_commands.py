import json
import os
import subprocess
import sys

from click.testing import CliRunner

from qmq.cli.main import COMMANDS, commands
from tests.conf.folders import HEAD, ConfTestCase
from tests.conf.test_model import SITE


class CommandTestCase(ConfTestCase):
    def qmq(self, *arguments, code=0):
        result = CliRunner().invoke(commands, arguments)
        self.assertEqual(result.exit_code, code, result.output + repr(result.exception))
        return result


class HelpTests(CommandTestCase):
    def test_teaches(self):
        """The help says what this is, how to begin, and every command in a line."""
        output = self.qmq("--help").output

        self.assertIn("queue of its own", output)
        self.assertIn("qmq init 01:alpha", output)
        for group in COMMANDS.values():
            for name, (_, text) in group.items():
                self.assertIn(name, output)
                self.assertIn(text, output)

    def test_quick(self):
        """The help does not wait for Twisted or rich to be loaded."""
        code = (
            "import sys; from qmq.cli.main import commands\n"
            "commands(['--help'], standalone_mode=False)\n"
            "print(any(m in sys.modules for m in ('twisted', 'rich', 'qmq.conf.load')))"
        )
        output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

        self.assertEqual(output.splitlines()[-1], "False")

    def test_every_command(self):
        """Every command of the table is there and has a help of its own."""
        for group in COMMANDS.values():
            for name in group:
                self.assertIn("Usage:", self.qmq(name, "--help").output)

    def test_unknown(self):
        """An unknown command is an error."""
        self.assertIn("No such command", self.qmq("bogus", code=2).output)


class CheckTests(CommandTestCase):
    def test_right(self):
        """A configuration that is right is summed up, one line an instance."""
        path = self.write(HEAD.replace("mx.example.org\n", "mx.example.org\nworkers = 0\n"))

        output = self.qmq("check", "--conf", path).output

        self.assertIn("01:alpha", output)
        self.assertIn("right, 1 instances", output)

    def test_wrong(self):
        """Every error has its file, line, text and remedy; the command fails."""
        path = self.write(HEAD + "lifetime = 24\nconcurency = 2\n")

        result = self.qmq("check", "--conf", path, code=1)

        self.assertIn(f"{path}:10: error: lifetime: '24' has no unit\n", result.output)
        self.assertIn(f"{path}:11: error: [alpha] knows no concurency\n    do you mean concurrency?", result.output)

    def test_json(self):
        """For programs each note is an object."""
        path = self.write(HEAD + "lifetime = 24\n")

        notes = [json.loads(line) for line in self.qmq("check", "--json", "--conf", path, code=1).output.splitlines()]

        errors = [note for note in notes if note["kind"] == "error"]
        self.assertEqual([(n["path"], n["line"]) for n in errors], [(path, 10)])


class ExplainTests(CommandTestCase):
    def test_json(self):
        """For programs each fact is an object with the place that decided it."""
        path = self.write(SITE)

        lines = self.qmq("explain", "u@beta.example", "--json", "--conf", path).output.splitlines()

        facts = {fact["name"]: fact for fact in map(json.loads, lines)}
        self.assertEqual(facts["instance"]["value"], "02:beta, by beta.example")
        self.assertEqual(facts["instance"]["place"], f"{path}:20")

    def test_for_people(self):
        """For people it is a table; a domain alone will do."""
        output = self.qmq("explain", "beta.example", "--conf", self.write(SITE)).output

        self.assertIn("02:beta, by beta.example", output)
        self.assertIn("default", output)


class InitTests(CommandTestCase):
    def test_plan(self):
        """It writes the named instances, each with a section that fits its name, and the stores' folder."""
        folder = self.folder()

        self.qmq("init", "01:alpha", "02:beta_2", "90:bounces", "--dir", folder, "--me", "mx.example.org")

        with open(os.path.join(folder, "conf-qmq"), encoding="utf-8") as file:
            text = file.read()
        conf = self.load(text)
        self.assertEqual(
            [(i.id, i.name, i.role) for i in conf.instances],
            [("01", "alpha", "normal"), ("02", "beta_2", "normal"), ("90", "bounces", "bounce")],
        )
        self.assertEqual(conf.general.me, "mx.example.org")
        self.assertEqual(conf.instance_for(b"beta-2.example").name, "beta_2")
        self.assertTrue(os.path.isdir(os.path.join(folder, "var", "spool")))

    def test_there_already(self):
        """A conf-qmq that is there is overwritten only by force."""
        path = self.write(HEAD)
        folder = os.path.dirname(path)

        output = self.qmq("init", "--dir", folder, code=1).output

        self.assertIn("--force", output)
        with open(path, encoding="utf-8") as file:
            self.assertEqual(file.read(), HEAD)
        self.qmq("init", "--dir", folder, "--force")
        with open(path, encoding="utf-8") as file:
            self.assertIn("01:customer1", file.read())

    def test_bad_plan(self):
        """A plan that is none leaves nothing behind."""
        folder = self.folder()

        for plan in (("alpha",), ("01:a", "01:b"), ("01:a", "02:a"), ("01:qmq",)):
            self.qmq("init", *plan, "--dir", folder, code=1)
        self.assertEqual([name for name in os.listdir(folder) if "conf" in name], [])
