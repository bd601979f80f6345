from tests.conf.folders import HEAD, ConfTestCase

TWO = HEAD.replace("01:alpha\n", "01:alpha\n02:beta\n80:storm\n90:bounces\n") + (
    "[beta]\ndomains = b.example\ndeliver = smtp:192.0.2.2\n{beta}[storm]\nrole = storm\n{storm}[bounces]\nrole = bounce\n"
)  # [beta] begins at line 13, its further settings at 16


def two(beta="", storm=""):
    """Four instances, two of them with more settings."""
    return TWO.format(beta=beta, storm=storm)


class DefaultTests(ConfTestCase):
    def test_reserve(self):
        """An instance keeps as much of its disk free as the primary, unless it says otherwise; none is 0B."""
        text = HEAD.replace("[alpha]", "reserve = 7M\n[alpha]")

        self.assertEqual(self.load(HEAD).instance("alpha").reserve, 100 << 20)
        self.assertEqual(self.load(text).instance("alpha").reserve, 7 << 20)
        self.assertEqual(self.load(text + "reserve = 0B\n").instance("alpha").reserve, 0)

    def test_worker(self):
        """A worker of one's own has the bounds of all workers, unless other ones are said; none is none."""
        text = HEAD.replace("[primary]", "worker-memory = 1G\nworker-files = 500\n[primary]") + "process = own\n"
        by_default = self.load(HEAD).instance("alpha")
        ours = self.load(text).instance("alpha")
        own = self.load(text + "memory = none\nfiles = 64\n").instance("alpha")

        self.assertEqual((by_default.memory, by_default.files), (2 << 30, None))
        self.assertEqual((ours.memory, ours.files), (1 << 30, 500))
        self.assertEqual((own.memory, own.files), (None, 64))

    def test_disk(self):
        """A share of the device is a float, a size is octets."""
        self.assertEqual(self.load(HEAD + "limit-disk = 25%\n").instance("alpha").limit_disk, 0.25)
        self.assertEqual(self.load(HEAD + "limit-disk = 20G\n").instance("alpha").limit_disk, 20 << 30)
        self.assertIsNone(self.load(HEAD).instance("alpha").limit_disk)


class OverflowTests(ConfTestCase):
    def error(self, conf, line, text, remedy):
        found = self.errors(conf)
        self.assertEqual([e[1] for e in found], [line], found)
        self.assertIn(text, found[0][2])
        self.assertIn(remedy, found[0][3])

    def test_right(self):
        """Mail may overflow into another, into one on another host, and from there into a third."""
        conf = self.load(
            two("overflow = storm\nhandover = qmq:192.0.2.9:209\n").replace("[beta]", "overflow = beta\n[beta]", 1)
        )

        self.assertEqual([i.overflow for i in conf.instances], ["beta", "storm", "", ""])
        self.assertEqual(conf.warnings, ())

    def test_unknown(self):
        """A name that is none is answered with the nearest, or with one that would do."""
        self.error(two("overflow = strom\n"), 16, "strom is no instance", "do you mean storm?")
        self.error(two("overflow = xyz\n"), 16, "xyz is no instance", "write overflow = storm")

    def test_itself(self):
        """It cannot be the place for its own mail."""
        self.error(two("overflow = beta\n"), 16, "is this instance itself", "write overflow = storm")

    def test_bounces(self):
        """The bounces of all must not wait behind one customer's flood."""
        self.error(two("overflow = bounces\n"), 16, "sends the bounces of all", "write overflow = storm")

    def test_retired(self):
        """What is retired takes no mail."""
        text = two("overflow = old\n").replace("[primary]", "retired = old=alpha\n[primary]")

        self.error(text, 17, "old is retired and takes no mail", "write overflow = storm")

    def test_circle(self):
        """Mail must not go round: told once, at the circle's first instance."""
        text = two("overflow = storm\n", "overflow = beta\n")
        self.error(text, 16, "storm leads back to beta", "cut one of these lines")
        # alpha leads into the circle, but is not of it.
        self.error(
            text.replace("[beta]", "overflow = beta\n[beta]", 1),
            17,
            "storm leads back to beta",
            "cut one of these lines",
        )


class BoundsTests(ConfTestCase):
    def test_processes(self):
        """One process is one process: several that take mail need workers."""
        text = HEAD.replace("[primary]", "workers = {}\n[primary]\nprocesses = 2")

        self.assertEqual(self.load(text.format(1)).primary.processes, 2)
        ((_, line, what, remedy),) = self.errors(text.format(0))
        self.assertEqual(line, 7)
        self.assertIn("everything is in one process, not in 2", what)
        self.assertIn("workers = 1 or more", remedy)

    def test_shared_worker(self):
        """Bounds of a worker that is not one's own do not count, and that is told."""
        found = self.warnings(HEAD + "memory = 1G\nfiles = 100\n")

        self.assertEqual([line for _, line, _ in found], [10, 11])
        self.assertEqual(found[0][2], "memory does not count: alpha shares its worker")
        self.assertEqual(self.warnings(HEAD + "process = own\nmemory = 1G\nfiles = 100\n"), [])

    def test_age(self):
        """A message that was deferred once is older than a minute: such a limit would close the door."""
        found = self.warnings(HEAD + "limit-age = 59s\n")

        self.assertEqual(found, [("conf-qmq", 10, "alpha takes no mail once a message is 59s old")])
        self.assertEqual(self.warnings(HEAD + "limit-age = 1m\n"), [])
