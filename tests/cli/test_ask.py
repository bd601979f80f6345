import os
import socket
import time

import click

from qmq.cli.ask import ask
from tests.admin.fakes import FakeQueue, entry
from tests.cli.processes import ProcessesTestCase


class AskTests(ProcessesTestCase):
    def setUp(self):
        super().setUp()
        self.alpha, self.beta = FakeQueue(entry(1)), FakeQueue(entry(2))

    def test_all(self):
        """All processes are asked, and what each says is told."""
        self.process("main", {"alpha": self.alpha})
        self.process("worker-1", {"beta": self.beta})

        found = list(ask(self.conf, do="list"))

        self.assertEqual({fact["queue"] for fact in found}, {"alpha", "beta"})

    def test_silent(self):
        """A process that hangs is left out after a while and named; the others are not waited for."""
        self.process("main", {"alpha": self.alpha})
        self.process("worker-1", {"beta": self.beta}, mute=True)
        before = time.monotonic()

        answers = ask(self.conf, patience=0.3, do="list")
        first = next(answers)
        self.assertLess(time.monotonic() - before, 0.25)
        rest = list(answers)

        self.assertEqual((first["queue"], rest), ("alpha", []))
        self.assertEqual(answers.missing, {"worker-1": "no answer within 0.3 s"})

    def test_left(self):
        """A socket that a killed process left behind is named."""
        self.process("main", {"alpha": self.alpha})
        left = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        left.bind(os.path.join(self.run_folder, "worker-9.control"))
        left.close()

        answers = ask(self.conf, do="list")

        self.assertEqual(len(list(answers)), 1)
        self.assertIn("does not run", answers.missing["worker-9"])

    def test_nobody(self):
        """Where no gateway runs the remedy is told."""
        for setup in (lambda: None, self.test_left_alone):
            setup()
            with self.assertRaisesRegex(click.ClickException, "start it: twistd -n qmq --conf"):
                list(ask(self.conf, do="stat"))

    def test_left_alone(self):
        """A socket that was left behind alone is no gateway."""
        left = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        left.bind(os.path.join(self.run_folder, "main.control"))
        left.close()

        with self.assertRaisesRegex(click.ClickException, "no gateway answers"):
            list(ask(self.conf, do="stat"))

    def test_unknown_queue(self):
        """A queue that no process has is an error that names those there are."""
        self.process("main", {"alpha": self.alpha})
        self.process("worker-1", {"beta": self.beta})

        self.assertEqual(len(list(ask(self.conf, do="list", queue=["beta"]))), 1)
        with self.assertRaisesRegex(click.ClickException, "no queue betta; known are alpha, beta"):
            list(ask(self.conf, do="list", queue="betta"))

    def test_broken_off(self):
        """An answer without an end is no whole answer."""
        self.process("main", {"alpha": self.alpha}).cuts = True

        answers = ask(self.conf, do="list")

        self.assertEqual(len(list(answers)), 1)
        self.assertEqual(answers.missing, {"main": "broke off its answer"})

    def test_hang_up(self):
        """Who needs no more hangs up, and the process sees it."""
        main = self.process("main", {"alpha": FakeQueue(*map(entry, range(1, 1000)))})

        answers = ask(self.conf, do="list")
        next(answers)
        answers.close()

        self.assertTrue(main.hung_up.wait(5))

    def test_slow_reader(self):
        """The time in which nobody asks for more is nobody's silence."""
        self.process("main", {"alpha": FakeQueue(*map(entry, range(1, 1000)))})

        answers = ask(self.conf, patience=0.2, do="list")
        next(answers)
        time.sleep(0.3)

        self.assertEqual(len(list(answers)), 998)
        self.assertEqual(answers.missing, {})

    def test_conf_with_errors(self):
        """A gateway that runs can be asked while its conf-qmq is being edited and has errors."""
        self.process("main", {"alpha": self.alpha})
        with open(self.conf, "a", encoding="utf-8") as file:
            file.write("nonsense = 1\n")

        self.assertEqual(len(list(ask(self.conf, do="list"))), 1)
