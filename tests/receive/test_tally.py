from twisted.trial.unittest import SynchronousTestCase

from qmq.receive.tally import Credit, Tallies, Tally


class TallyTests(SynchronousTestCase):
    def test_facts(self):
        """Counts are over all phases, mean and longest of all answers; one that was never asked has no mean."""
        tallies = Tallies()
        tallies.of("x").threads = {"busy": 1}
        self.assertEqual(tallies.facts()["x"]["mean"], 0)
        for phase, seconds in (("helo", 3), ("sender", 1)):
            tallies.of("x", phase).asked += 1
            tallies.of("x", phase).waited(seconds)

        facts = tallies.facts()["x"]
        self.assertEqual((facts["asked"], facts["mean"], facts["longest"]), (2, 2, 3))
        self.assertEqual(facts["threads"], {"busy": 1})

    def test_usual(self):
        """How long a plain call takes is not known of a checker that must be waited for."""
        tally = Tally()
        self.assertEqual(tally.usual(), 0)
        tally.asked, tally.seconds = 10, 0.1
        self.assertEqual(tally.usual(), 0.01)
        tally.waited(3)

        self.assertEqual(tally.usual(), 0)

    def test_tell(self):
        """A failure is told at once, then once a minute with how many were not told."""
        tally = Tally()

        self.assertEqual([tally.tell(now) for now in (0, 1, 59, 60, 61, 300)], [0, None, None, 2, None, 1])

    def test_outlive(self):
        """A name keeps its tally."""
        tallies = Tallies()
        tallies.of("b").asked += 1
        tallies.of("a").asked += 1
        tallies.of("b").asked += 1

        self.assertEqual([(name, facts["asked"]) for name, facts in tallies.facts().items()], [("b", 2), ("a", 1)])


class CreditTests(SynchronousTestCase):
    def test_comes_back(self):
        """What is spent comes back at its share of the time, and never beyond the most."""
        credit = Credit(10, 0.5)
        credit.spend(100, 25)

        self.assertEqual([credit.left(now) for now in (100, 102, 112, 120, 1000)], [0, 1, 6, 10, 10])

    def test_spent_again(self):
        """Who spends more than comes back has nothing."""
        credit = Credit(10, 0.5)
        for now in range(100, 110):
            credit.spend(now, 10)

        self.assertEqual(credit.left(110), 0.5)
