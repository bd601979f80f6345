import os
import time
from unittest.mock import patch

from click.testing import CliRunner

from qmq.cli.main import COMMANDS, commands
from qmq.mail import HELD, MemoryBody
from tests.admin.fakes import LATER, FakeQueue, entry
from tests.cli.processes import ProcessesTestCase

SPAM = "x@spam.example"
OURS = {f"qmq.cli.{module}" for module in ("queues", "look", "orders", "drain", "running")}


def says(fact):
    """A word of the main process that tells this."""

    def doing(request, say):
        say(fact)

    return doing


class OperatorsTestCase(ProcessesTestCase):
    """alpha in one process, beta in another, the primary's queue in the main process."""

    def setUp(self):
        super().setUp()
        self.alpha = FakeQueue(
            *(entry(n, sender=SPAM if n > 3 else "s@source.example", reply=LATER) for n in range(1, 6))
        )
        self.beta = FakeQueue(entry(9, "u@beta.example", SPAM, site=b"smtp:mail.beta.example:25", age=7200))
        self.primary = FakeQueue()
        self.doings = {}
        self.main = self.process(
            "main", {"primary": self.primary}, self.doings, main=True, workers={"worker-1": 7, "worker-2": 0}
        )
        self.process("worker-1", {"alpha": self.alpha})
        self.process("worker-2", {"beta": self.beta})

    def numbers(self, queue):
        return sorted(queue.spool.entries)


class StatTests(OperatorsTestCase):
    def test_stat(self):
        """One table has the queues of all processes, with the age of the oldest message and what keeps them."""
        self.alpha.paused = True
        self.alpha.status = lambda: {**FakeQueue.status(self.alpha), "full": "limit-disk"}

        output = self.qmq("stat").stdout

        rows = {line.split()[1]: line for line in output.splitlines() if len(line.split()) > 1}
        self.assertIn("paused, full: limit-disk", rows["alpha"])
        for word in ("worker-2", "2h", "2.0K", "4 ms", "1.5 s"):
            self.assertIn(word, rows["beta"])
        self.assertIn("messages in queue: 6, 12K", output)

    def test_down(self):
        """A worker that is down is named."""
        self.assertIn("not running just now: worker-2", self.qmq("stat").stderr)

    def test_json(self):
        """For programs each process is an object."""
        facts = {fact["process"]: fact for fact in self.facts("stat")}

        self.assertEqual(facts["worker-1"]["queues"]["alpha"]["queued"], 5)
        self.assertEqual(facts["main"]["workers"], {"worker-1": 7, "worker-2": 0})
        self.assertEqual(facts["main"]["pid"], os.getpid())

    def test_silent(self):
        """A process that does not answer is named; the others are shown."""
        self.process("primary-2", {}, mute=True)

        result = self.qmq("stat", "--patience", "200ms")

        self.assertIn("primary-2: no answer within 0.2 s", result.stderr)
        self.assertIn("alpha", result.stdout)


class ListTests(OperatorsTestCase):
    def test_table(self):
        """People see a line a message, the latest answer below it."""
        output = self.qmq("list").stdout

        for word in (
            "abcdef-1",
            "<s@source.example> <u@alpha.example>",
            "451 4.7.1 greylisted",
            "2.0K",
            "2h",
            "6 messages",
        ):
            self.assertIn(word, output)

    def test_json(self):
        """For programs each message is an object."""
        self.assertEqual(
            {(f["queue"], f["number"]) for f in self.facts("list", "--sender", "@spam.example")},
            {("alpha", 4), ("alpha", 5), ("beta", 9)},
        )

    def test_predicates(self):
        """Every predicate reaches the queues, with units as in conf-qmq."""
        for options, number in (
            (["--older", "1h"], 1), (["--younger", "1h"], 5), (["--larger", "1K"], 6), (["--smaller", "1K"], 0),
            (["--queue", "alpha", "--queue", "beta"], 6), (["--queue", "beta"], 1), (["--attempts-below", "1"], 6),
            (["--attempts", "1"], 0), (["--error", "GREYlist"], 5), (["--destination", "mail.beta.example"], 1),
            (["--site", "mx:alpha.example"], 5), (["--state", "waiting"], 6), (["--state", "held"], 0),
            (["--recipient", "u@beta.example"], 1), (["--domain", "alpha.example"], 5), (["abcdef-1", "abcdef-9"], 2),
            (["abcdef-4", "--sender", SPAM], 1), (["--limit", "2"], 2), (["--queue", "alpha", "--after", "3"], 2),
        ):  # fmt: skip
            self.assertEqual(len(self.facts("list", *options)), number, options)

    def test_bad_words(self):
        """What cannot be asked for is an error with a remedy."""
        for options, text in (
            (["--older", "90"], "has no unit; write it as 90s"), (["--larger", "big"], "is no size"),
            (["alpha"], "for a queue say --queue alpha"), (["--state", "asleep"], "waiting"),
        ):  # fmt: skip
            self.assertIn(text, self.qmq("list", *options, code=2).stderr)

    def test_unknown(self):
        """An id that nobody has is an error."""
        output = self.qmq("list", "abcdef-1", "abcdef-ff", code=1).output

        self.assertIn("no such message in any queue: abcdef-ff", output)
        self.assertEqual(self.qmq("list", "--sender", "nobody@x.example").stdout, "no messages\n")

    def test_limit(self):
        """When there may be more, how to see it is told."""
        self.assertIn("--limit", self.qmq("list", "--limit", "3").stdout)

    def test_read(self):
        """As qmail-qread each recipient has a line."""
        output = self.qmq("read", "alpha").stdout

        self.assertIn("#abcdef-1  2000  <s@source.example>  alpha\n\tremote\tu@alpha.example\tdue", output)
        self.assertIn("451 4.7.1 greylisted", output)


class ShowTests(OperatorsTestCase):
    def test_show(self):
        """A message is shown with what is known of it, and its header."""
        output = self.qmq("show", "abcdef-9").stdout

        for word in ("beta, number 9", "smtp:mail.beta.example:25", "<u@beta.example>", "Subject: no. 9"):
            self.assertIn(word, output)
        self.assertEqual(self.facts("show", "abcdef-9")[0]["header"].splitlines()[0], "Received: by us")

    def test_cat(self):
        """The text comes as it is, whole."""
        one = self.beta.spool.entries[9]
        text = b"\r\n" + bytes(range(256)) * 1000
        one.message = type(one.message)(one.message.envelope, b"F: f\r\n", MemoryBody(text))

        self.assertEqual(self.qmq("cat", "abcdef-9").stdout_bytes, b"F: f\r\n" + text)

    def test_cat_in_two_queues(self):
        """Of a message that two queues have, the text is written once."""
        self.primary.spool.entries[9] = entry(9)

        self.assertEqual(len(self.qmq("cat", "abcdef-9").stdout_bytes), 2000)

    def test_unknown(self):
        """A message that nobody has is an error."""
        for command in ("show", "cat"):
            self.assertIn("no such message in any queue: abcdef-ff", self.qmq(command, "abcdef-ff", code=1).stderr)


class DryRunTests(OperatorsTestCase):
    def test_dry_run(self):
        """Without --yes it is told what would be done, how many in which queues, with examples, and nothing is done."""
        output = self.qmq("delete", "--sender", "@spam.example").stdout

        self.assertIn("would delete 3 messages, 5.9K:", output)
        self.assertRegex(output, r"alpha +2 +3\.9K")
        self.assertIn("abcdef-9", output)
        self.assertIn("nothing was done; to delete them say --yes too", output)
        self.assertEqual((self.numbers(self.alpha), self.numbers(self.beta)), ([1, 2, 3, 4, 5], [9]))

    def test_json(self):
        """For programs a dry run is an object a queue."""
        self.assertEqual(
            sorted((f["would"], f["queue"], f["matches"]) for f in self.facts("bounce", "--sender", "@spam.example")),
            [("bounce", "alpha", 2), ("bounce", "beta", 1)],
        )

    def test_all_or_nothing(self):
        """An order over everything must be said."""
        for order in (
            ["hold"],
            ["release"],
            ["delete", "--yes"],
            ["bounce", "--yes"],
            ["move", "--to", "beta", "--yes"],
        ):
            self.assertIn(f"--all: {order[0]} all", self.qmq(*order, code=2).stderr)
        self.assertEqual(self.alpha.said, [])
        self.assertIn("would delete 6", self.qmq("delete", "--all").stdout)

    def test_asked(self):
        """On a terminal it asks, and does nothing unless told yes."""
        with patch("qmq.cli.act.interactive", return_value=True):
            self.qmq("delete", "--queue", "beta", input="\n")
            self.assertEqual(self.numbers(self.beta), [9])
            output = self.qmq("delete", "--queue", "beta", input="y\n").stdout

        self.assertIn("do it? [y/N]", output)
        self.assertIn("beta: 1 deleted", output)
        self.assertEqual(self.numbers(self.beta), [])

    def test_nothing(self):
        """What matches nothing is no error; an id that nobody has is one."""
        self.assertIn("nothing matches", self.qmq("delete", "--older", "9d").stderr)
        self.assertIn("nothing matches", self.qmq("delete", "--older", "9d", "--yes").stderr)
        for yes in ([], ["--yes"]):
            self.assertIn("no such message in any queue", self.qmq("delete", "abcdef-ff", *yes, code=1).stderr)


class ActTests(OperatorsTestCase):
    def test_delete(self):
        """What matches goes, in all processes."""
        output = self.qmq("delete", "--sender", "@spam.example", "--yes").stdout

        self.assertEqual(sorted(output.splitlines()), ["alpha: 2 deleted", "beta: 1 deleted"])
        self.assertEqual((self.numbers(self.alpha), self.numbers(self.beta)), ([1, 2, 3], []))

    def test_progress(self):
        """On a terminal a bar shows how far it is; facts alone go to stdout."""
        result = self.qmq("delete", "--queue", "alpha", "--yes", env={"FORCE_COLOR": "1"})

        self.assertIn("delete", result.stderr)
        self.assertEqual(result.stdout, "alpha: 5 deleted\n")

    def test_hold_and_release(self):
        """What is held is known by its state, and let go by it."""
        self.qmq("hold", "abcdef-1", "abcdef-2", "--yes")
        self.assertEqual(len(self.facts("list", "--state", "held")), 2)
        self.assertEqual(self.alpha.spool.entries[1].due, HELD)

        self.assertIn("alpha: 2 released", self.qmq("release", "--state", "held").stdout)
        self.assertEqual(self.facts("list", "--state", "held"), [])

    def test_later(self):
        """What is in delivery just now is told: it follows when its attempt is over."""
        self.beta.spool.entries[9].due = None

        output = self.qmq("hold", "--queue", "beta", "--yes").stdout

        self.assertIn("beta: 0 held; 1 in delivery just now: held when that is over", output)
        self.assertEqual(self.facts("hold", "--queue", "beta", "--yes")[-1], {"queue": "beta", "done": 0, "later": 1})

    def test_bounce(self):
        """The reason goes to the queue."""
        self.qmq("bounce", "abcdef-9", "--reason", "gone for good", "--yes")

        self.assertEqual(self.beta.said, [("bounce", {"id": "abcdef-9"}, "", "gone for good")])

    def test_move(self):
        """Messages go to another queue of the gateway; one that is not there is an error with those that are."""
        self.assertIn("alpha: 5 moved to gamma", self.qmq("move", "--queue", "alpha", "--to", "gamma", "--yes").stdout)
        self.assertEqual({fact["state"] for fact in self.facts("list", "--queue", "alpha")}, {"moving"})

        output = self.qmq("move", "--all", "--to", "delta", "--yes", code=2).stderr
        self.assertIn("no queue delta to move to; there are alpha, beta, gamma", output)

    def test_move_to_itself(self):
        """What is in the queue to move to already is neither counted nor moved."""
        self.assertIn("would move 5 messages", self.qmq("move", "--all", "--to", "beta").stdout)

        self.qmq("move", "--all", "--to", "beta", "--yes")

        self.assertEqual(self.beta.said, [])

    def test_now(self):
        """A queue, some messages, or everything is due at once; no dry run is needed."""
        self.assertIn("alpha: 5 due now", self.qmq("now", "alpha").stdout)
        self.assertEqual(self.beta.said, [])
        self.assertIn("beta: 1 due now", self.qmq("now", "abcdef-9").stdout)
        self.assertEqual(
            sorted(self.qmq("now").stdout.splitlines()), ["alpha: 5 due now", "beta: 1 due now", "primary: 0 due now"]
        )
        self.assertIn("no queue betta", self.qmq("now", "betta", code=1).stderr)

    def test_silent(self):
        """An order that not all processes have heard ends with an error, and says which."""
        self.process("worker-3", {}, mute=True)

        result = self.qmq("delete", "--sender", SPAM, "--yes", "--patience", "200ms", code=1)

        self.assertIn("worker-3: no answer", result.stderr)
        self.assertIn("alpha: 2 deleted", result.stdout)

    def test_trouble(self):
        """A queue in trouble is named, the others do as they are told."""
        self.alpha.spool.trouble = "disk I/O error"

        result = self.qmq("delete", "--all", "--yes", code=1)

        self.assertIn("queue alpha: disk I/O error", result.stderr)
        self.assertIn("beta: 1 deleted", result.stdout)


class SwitchTests(OperatorsTestCase):
    def test_switches(self):
        """Queues are named, or --all is said; how to undo it is told."""
        result = self.qmq("pause", "alpha", "beta")

        self.assertEqual((self.alpha.paused, self.beta.paused, self.primary.paused), (True, True, False))
        self.assertIn("qmq resume alpha beta", result.stderr)
        self.qmq("resume", "--all")
        self.assertFalse(self.alpha.paused)
        self.assertEqual(self.facts("refuse", "beta"), [{"queue": "beta", "done": "refuse"}])
        for word in ("pause", "resume", "refuse", "accept"):
            self.assertIn("which queues?", self.qmq(word, code=2).stderr)


class DrainTests(OperatorsTestCase):
    def test_empty(self):
        """A queue that runs empty is told so, takes no mail, and how to undo that is told."""
        self.beta.spool.entries.clear()

        output = self.qmq("drain", "beta").stdout

        self.assertIn("beta is empty\nit takes no mail; to undo it: qmq accept beta", output)
        self.assertTrue(self.beta.refusing)
        self.assertEqual(self.beta.said[0][0], "now")

    def test_stays(self):
        """What does not go in time is told with the reasons, and the command fails."""
        self.alpha.spool.entries[1].due = HELD
        with patch.object(self.alpha, "act", return_value=self.alpha.act("release", {"id": "none-0"}, None)):
            output = self.qmq("drain", "alpha", "--wait", "10ms", code=1).stdout

        self.assertIn("alpha: 5 messages still there", output)
        self.assertIn("4  alpha.example: 451 4.7.1 greylisted, come back", output)
        self.assertIn("1  held: qmq release", output)

    def test_move(self):
        """With --to what is there is moved."""
        facts = self.facts("drain", "beta", "--to", "gamma", "--wait", "10ms", code=1)

        self.assertEqual(self.beta.said, [("move", {}, "gamma", "")])
        self.assertEqual(facts[0]["left"], 1)

    def test_mistakes(self):
        """A queue that is not there, or that is to be moved to itself, is an error."""
        self.assertIn("no queue betta", self.qmq("drain", "betta", code=1).stderr)
        self.assertIn("not moved to itself", self.qmq("drain", "beta", "--to", "beta", code=2).stderr)
        self.assertFalse(self.beta.refusing)


class RunningTests(OperatorsTestCase):
    def test_reload(self):
        """The main process reloads, and what has changed is told."""
        self.doings["reload"] = says(
            {
                "process": "main",
                "reload": "reloaded",
                "changes": ["+ [delta]", "~ [alpha] lifetime: 1d -> 2d"],
                "restart": [],
                "troubles": [],
            }
        )

        self.assertEqual(self.qmq("reload").stdout, "main: reloaded\n  + [delta]\n  ~ [alpha] lifetime: 1d -> 2d\n")

    def test_refused(self):
        """A configuration with errors changes nothing, and the command fails with them."""

        def reload(request, say):
            raise ValueError("conf-qmq:3: wrong")

        self.doings["reload"] = reload

        self.assertIn("conf-qmq:3: wrong", self.qmq("reload", code=1).stderr)

    def test_trouble(self):
        """What went wrong in a worker is told, and the command fails."""
        self.doings["reload"] = says({"process": "main", "reload": "reloaded", "troubles": ["worker-1: gone"]})

        self.assertIn("worker-1: gone", self.qmq("reload", code=1).stderr)

    def test_diff(self):
        """What a reload would do, what it would not, and what it would refuse; 1 if there is anything."""
        self.doings["diff"] = says(
            {"changes": ["- [beta]"], "refused": ["beta has mail"], "restart": ["~ [qmq] workers: 1 -> 2"]}
        )

        self.assertEqual(
            self.qmq("diff", code=1).stdout,
            "  - [beta]\nonly after qmq restart:\n  ~ [qmq] workers: 1 -> 2\nrefused:\n  beta has mail\n",
        )
        self.doings["diff"] = says({"changes": [], "refused": [], "restart": []})
        self.assertEqual(self.qmq("diff").stdout, "nothing differs from what runs\n")

    def test_restart(self):
        """Each step is told as it is done."""

        async def restart(request, say):
            say({"step": "the new process listens"})
            say({"step": "the old one ends"})

        self.doings["restart"] = restart

        self.assertEqual(self.qmq("restart").stdout, "the new process listens\nthe old one ends\n")

    def test_no_main(self):
        """Without a main process nobody can do it."""
        self.assertIn("no main process answers", self.qmq("restart", code=1).stderr)


class ConfTests(OperatorsTestCase):
    def test_environment(self):
        """QMQ_CONF names the configuration, for every command."""
        for words in (
            ["stat"],
            ["check"],
            ["explain", "u@alpha.example"],
            ["checkers", "rcpthosts"],
            ["pause", "alpha"],
        ):
            result = CliRunner().invoke(commands, words, env={"QMQ_CONF": self.conf})
            self.assertEqual(result.exit_code, 0, result.output)

    def test_system(self):
        """Without one in this folder it is the machine's."""
        here = os.getcwd()
        self.addCleanup(os.chdir, here)
        os.chdir(self.folder())
        self.assertIn("/etc/qmq/conf-qmq", CliRunner().invoke(commands, ["stat"]).output)

        os.chdir(os.path.dirname(self.conf))

        self.assertEqual(CliRunner().invoke(commands, ["stat"]).exit_code, 0)


class HelpTests(OperatorsTestCase):
    def test_examples(self):
        """Every command over messages or queues shows an example of itself, and can be told to speak JSON."""
        for heading in ("Look in", "Act on messages", "Act on queues", "Change"):
            for name in COMMANDS[heading]:
                if COMMANDS[heading][name][0].partition(":")[0] in OURS:
                    output = self.qmq(name, "--help").output
                    self.assertIn(f"qmq {name}", output.partition("\n")[2])
                    self.assertIn("--json", output)


class StreamTests(OperatorsTestCase):
    def test_first_page(self):
        """Who wants one message has it before a process that hangs has been waited for."""
        self.process("worker-3", {"gamma": FakeQueue(entry(1))}, mute=True)

        before = time.monotonic()
        found = self.facts("list", "--limit", "1", "--patience", "9s")

        self.assertEqual(len(found), 1)
        self.assertLess(time.monotonic() - before, 2)
