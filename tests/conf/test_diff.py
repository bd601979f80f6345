import os
import re
import tempfile
from dataclasses import replace
from functools import cache

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qmq.conf.diff import Difference, difference, in_force
from qmq.conf.ground import Ground
from qmq.conf.load import load
from qmq.conf.settings import TABLES
from qmq.conf.units import BadValue
from qmq.conf.words import WORDS, raw, said
from qmq.conf.written import ConfErrors
from qmq.rules.environment import VARIABLES
from tests.conf.folders import USER, ConfTestCase

SITE = """\
[instances]
01:alpha
02:beta
80:internet
[qmq]
me = mx.example.org
relay = 127.0.0.1
[primary]
listen = 127.0.0.1:2525
certificate = mx.pem
[alpha]
domains = alpha.example
deliver = smtp:192.0.2.1
[beta]
domains = beta.example
deliver = smtp:192.0.2.2
[internet]
domains = *
"""
FILES = dict.fromkeys(("mx.pem", "other.pem", "list", "alpha/control/x", "control/x", "other/x"), "")

# What each kind of setting may be changed to; the first that is right, and another value, is taken.
CHANGES = ("7", "2", "100", "2000", "6s", "90s", "10m", "30m", "2h", "128M", "1K", "2M", "20%", "none", "4",
           "yes", "no", "confirmed", "at-once", "classic", "required", "multilog", "own", "closed",
           "192.0.2.77", "other.example", "1m 5m", "x@example.org", "storm")  # fmt: skip
# Where none of these would do, or the wrong one would.
SAID = {
    "qmq": {"user": "daemon", "spool": "elsewhere", "retired": "old=alpha", "log": "qmq.log", "control": "other"},
    "primary": {
        "listen": "127.0.0.1:2526", "checks": "rcpthosts", "rules": "list", "certificate": "other.pem",
        "key": "other.pem", "greeting": "mx2.example.org hello",
    },
    "instance": {
        "domains": "alpha.example alpha.example.org", "deliver": "smtp:192.0.2.3", "route": "x.example=mx",
        "spool": "elsewhere", "handover": "smtp", "qmtp-listen": "127.0.0.1:12345", "recipients": "list",
        "badmailfrom": "list", "overflow": "beta", "home": "alpha", "bouncefrom": "postmaster",
    },
}  # fmt: skip


def with_setting(kind, key, text):
    """SITE with one setting more, or another one."""
    section = "alpha" if kind == "instance" else kind
    head, begin, rest = SITE.partition(f"[{section}]\n")
    body, bracket, tail = rest.partition("\n[")
    body = re.sub(rf"(?m)^{key} = .*\n?", "", body + "\n")
    return f"{head}{begin}{body}{key} = {text}{bracket}{tail}\n"


@cache
def every():
    """SITE, and for each setting there is (kind, setting, SITE with another value of it)."""
    with tempfile.TemporaryDirectory(prefix="qmq-test-") as folder:
        path = os.path.join(folder, "conf-qmq")
        for name in FILES:
            os.makedirs(os.path.dirname(os.path.join(folder, name)), exist_ok=True)
            with open(os.path.join(folder, name), "w", encoding="utf-8"):
                pass
        old = written(path, SITE)
        changed = [(kind, setting, another(path, old, kind, setting)) for kind in TABLES for setting in TABLES[kind]]
    return old, changed


def written(path, text):
    """The Conf of that text."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return load(path, USER, rules=False)


def another(path, old, kind, setting):
    """SITE with the first other value of the setting that there can be."""
    said = SAID[kind].get(setting.key)
    for text in CHANGES if said is None else (said,):
        try:
            conf = written(path, with_setting(kind, setting.key, text))
        except ConfErrors:
            continue  # no such value, or out of bounds
        if difference(old, conf):
            return conf
    raise AssertionError(f"{kind} {setting.key}: say in SAID what it can be changed to")


class EverySettingTests(SynchronousTestCase):
    def test_told_once(self):
        """Any setting that is changed is told, once, with its section and name: nothing comes in unsaid."""
        old, changed = every()
        for kind, setting, conf in changed:
            found = difference(old, conf)
            told = [*found.lines, *found.restart, *found.refused]

            self.assertEqual(len(told), 1, f"{kind} {setting.key}: {told}")
            if setting.key != "retired":  # the instance says it
                section = "alpha" if kind == "instance" else kind
                self.assertTrue(told[0].startswith(f"~ [{section}] {setting.key}: "), told[0])

    def test_back_again(self):
        """What is taken back is told as well."""
        old, changed = every()
        for kind, setting, conf in changed:
            found = difference(conf, old)

            self.assertEqual(len([*found.lines, *found.restart, *found.refused]), 1, f"{kind} {setting.key}")

    def test_acted_on(self):
        """Any change that comes in with a reload is somebody's to take over: an instance's, or everybody's."""
        old, changed = every()
        for kind, setting, conf in changed:
            found = difference(old, conf)
            if kind == "instance" and setting.key not in {"memory", "files"}:  # alpha has no worker of its own
                self.assertEqual(found.changed, ("alpha",), setting.key)
            elif found.lines and setting.key not in {"retired", "rcpthosts"}:
                self.assertEqual(found.common, kind != "instance", setting.key)

    def test_when(self):
        """What a running process has read for good waits for a restart; what is in use does not move at all."""
        old, changed = every()
        found = {(kind, setting.key): difference(old, conf) for kind, setting, conf in changed}

        qmq = ("workers", "worker-memory", "worker-files", "log", "log-format", "nameservers", "stop")
        restart = {*(("qmq", key) for key in qmq), *(("primary", key) for key in ("processes", "inline", "header"))}
        self.assertEqual({key for key, one in found.items() if one.restart}, restart)
        self.assertEqual(
            {key for key, one in found.items() if one.refused},
            {("qmq", "spool"), ("qmq", "user"), ("instance", "spool")},
        )

    def test_in_force(self):
        """After a reload nothing is left to be told but what still waits for a restart."""
        old, changed = every()
        for kind, setting, conf in changed:
            told = difference(old, conf)
            if told.refused:
                continue

            left = difference(in_force(old, conf), conf)

            self.assertEqual((left.lines, left.refused, left.restart), ((), (), told.restart), f"{kind} {setting.key}")

    def test_written_as_read(self):
        """What is told of a setting is what an operator would write: it is read back as the same value."""
        for kind, setting, conf in every()[1]:
            holder = {"qmq": conf.general, "primary": conf.primary, "instance": conf.instances[0]}[kind]
            if setting.key in {"deliver", "route", "checks"}:
                continue  # in another form there
            value = getattr(holder, setting.field)
            text = setting.said(value)
            if text != setting.nothing:
                read = tuple(map(setting.parse, text.split())) if setting.each else setting.parse(text)
                self.assertEqual(read, value, f"{kind} {setting.key}: {text}")


class DiffTestCase(ConfTestCase):
    """Two configurations of one folder: of SITE, and of what has become of it."""

    def setUp(self):
        self.path = self.write(SITE, FILES)
        self.old = load(self.path, USER)

    def conf(self, text, here=USER):
        with open(self.path, "w", encoding="utf-8") as file:
            file.write(text)
        return load(self.path, here)

    def diff(self, text, old=None):
        """The difference from SITE, or from another text."""
        before = self.old if old is None else self.conf(old)
        return difference(before, self.conf(text))


class WordsTests(DiffTestCase):
    def test_nothing(self):
        """Of two equal configurations there is no difference, also if one is written otherwise."""
        same = SITE.replace("[alpha]", "[alpha]\nlifetime = 168h\nconcurrency = 120 # as always")

        self.assertEqual(difference(self.old, self.old), Difference())
        self.assertFalse(self.diff(SITE))
        self.assertFalse(self.diff(same))

    def test_units(self):
        """Times and sizes have their units, networks and places are as in conf-qmq."""
        lines = self.diff(
            SITE.replace("[alpha]\n", "[alpha]\nlifetime = 36h\nlimit-disk = 25%\nlimit-bytes = 20G\ndelay-notice = 4h\n")
            .replace("relay = 127.0.0.1", "relay = 10.0.0.0/8 ::1")
            .replace("listen = 127.0.0.1:2525", "listen = tcp:2525 [::1]:2526")
        ).lines  # fmt: skip

        self.assertEqual(lines, (
            "~ [qmq] relay: 127.0.0.1 -> 10.0.0.0/8 ::1",
            "~ [primary] listen: 127.0.0.1:2525 -> tcp:2525 [::1]:2526",
            "~ [alpha] lifetime: 7d -> 36h",
            "~ [alpha] delay-notice: never -> 4h",
            "~ [alpha] limit-bytes: 50G -> 20G",
            "~ [alpha] limit-disk: none -> 25%",
        ))  # fmt: skip

    def test_followers(self):
        """A setting that follows another is told by that one alone, if nobody said it."""
        found = self.diff(SITE.replace("mx.example.org", "mx2.example.org"))
        said = self.diff(with_setting("instance", "helohost", "h.example"))

        self.assertEqual(found.lines, ("~ [qmq] me: mx.example.org -> mx2.example.org",))
        self.assertEqual((found.changed, found.common), (("alpha", "beta", "internet"), True))
        self.assertEqual(said.lines, ("~ [alpha] helohost: mx.example.org -> h.example",))

    def test_long_row(self):
        """Of five hundred domains the one that came is told, not all of them."""
        many = " ".join(f"d{n}.example" for n in range(500))
        site = SITE.replace("domains = alpha.example", f"domains = {many}")

        found = self.diff(site.replace("d17.example ", "new.example "), site)
        none = self.diff(SITE, site)

        self.assertEqual(found.lines, ("~ [alpha] domains: + new.example, - d17.example",))
        self.assertLess(len(none.lines[0]), 500)
        self.assertTrue(none.lines[0].endswith(" and 481 more"), none.lines[0])

    def test_checks(self):
        """Options of checks are told one by one; what may be a secret only as changed."""
        site = SITE.replace("[alpha]", "checks = rcpthosts databytes\n[check databytes]\n[alpha]")
        before = self.conf(site)
        first = self.checks(before, {"limit": "20M", "password": "old"})
        after = self.checks(before, {"limit": "30M", "password": "new"})

        self.assertEqual(
            difference(before, first).lines, ("+ [check databytes] limit = 20M", "+ [check databytes] password = ...")
        )
        self.assertEqual(
            difference(first, after).lines,
            ("~ [check databytes] limit: 20M -> 30M", "~ [check databytes] password: changed"),
        )
        self.assertEqual(len(difference(first, before).lines), 2)

    def checks(self, conf, options):
        """As if the check databytes had these options."""
        return replace(conf, primary=replace(conf.primary, checks=(("rcpthosts", {}), ("databytes", options))))

    def test_clients(self):
        """What is set for clients is told in the words of conf-qmq, section by section."""
        site = SITE.replace("certificate", "helocheck = .\nspf = 3\ncertificate")
        site += "[listen 127.0.0.1:2525]\ngreetdelay = 2s\n[client 10.0.0.0/8 192.0.2.7]\ndatabytes = 2M\n"
        new = site.replace("helocheck = .", "helocheck = none").replace("spf = 3\n", "").replace("2s", "90s")
        new = new.replace("10.0.0.0/8 192.0.2.7", "192.0.2.7").replace("2M", "none")

        self.assertEqual(self.diff(new, site).lines, (
            "~ [primary] helocheck: . -> none",
            "- [primary] spf",
            "~ [listen 127.0.0.1:2525] greetdelay: 2s -> 90s",
            "~ [client 192.0.2.7] databytes: 2M -> none",
            "- [client 10.0.0.0/8]",
        ))  # fmt: skip
        self.assertTrue(self.diff(new, site).common)

    def test_rcpthosts(self):
        """Domains that an instance gets are told by it alone, also if rcpthosts is a file."""
        with open(os.path.join(os.path.dirname(self.path), "control", "rcpthosts"), "w", encoding="utf-8") as file:
            file.write("alpha.example\nbeta.example\n")
        more = SITE.replace("domains = alpha.example", "domains = alpha.example new.example")

        found = self.diff(more, SITE)

        self.assertEqual(found.lines, ("~ [alpha] domains: alpha.example -> alpha.example new.example",))
        self.assertFalse(found.common)


class InstancesTests(DiffTestCase):
    def test_added(self):
        """A new instance is told with what its section says, and where it will listen."""
        found = self.diff(
            SITE.replace("80:", "07:gamma\n80:") + "[gamma]\ndomains = g.example\nlifetime = 2d\nprocess = own\n"
        )

        self.assertEqual((found.added, found.changed), (("gamma",), ()))
        self.assertEqual((found.opened, found.closed), ((("gamma", ("127.0.0.1", 11007)),), ()))
        self.assertEqual(found.lines, (
            "+ [gamma] domains = g.example",
            "+ [gamma] deliver = mx",
            "+ [gamma] lifetime = 2d",
            "+ [gamma] process = own",
        ))  # fmt: skip

    def test_removed(self):
        """One that is gone is told, and where nobody listens any more."""
        found = self.diff(SITE.replace("02:beta\n", "").partition("[beta]")[0] + "[internet]\ndomains = *\n")

        self.assertEqual((found.removed, found.lines), (("beta",), ("- [beta]",)))
        self.assertEqual(found.closed, (("beta", ("127.0.0.1", 11002)),))

    def test_domain_moves(self):
        """A flood's domain goes to another instance: both are told, and both have changed."""
        found = self.diff(
            SITE.replace("alpha.example", "a.example").replace("beta.example", "beta.example alpha.example")
        )

        self.assertEqual(found.changed, ("alpha", "beta"))
        self.assertEqual(len(found.lines), 2)

    def test_retired(self):
        """Who is retired runs on: it is not removed, closes its port, and its mail's way is told."""
        retired = (
            SITE.replace("02:beta\n", "")
            .replace("[qmq]", "[qmq]\nretired = beta=alpha")
            .replace("[beta]\ndomains = beta.example\ndeliver = smtp:192.0.2.2\n", "")
        )

        found = self.diff(retired)
        to_other = self.diff(retired.replace("beta=alpha", "beta=internet"), retired)
        gone = self.diff(retired.replace("retired = beta=alpha", ""), retired)
        back = self.diff(SITE, retired)

        self.assertEqual((found.added, found.removed, found.changed, found.retired), ((), (), (), ("beta",)))
        self.assertEqual(found.lines, ("- [beta], what is left goes to alpha",))
        self.assertEqual(found.closed, (("beta", ("127.0.0.1", 11002)),))
        self.assertFalse(found.common)
        self.assertEqual(to_other.lines, ("~ [beta] what is left goes to: alpha -> internet",))
        self.assertEqual((to_other.changed, to_other.retired), (("beta",), ()))
        self.assertEqual((gone.removed, gone.lines), (("beta",), ("- [beta]",)))
        self.assertEqual((back.changed, back.lines[0]), (("beta",), "+ [beta] domains = beta.example"))

    def test_retired_follows(self):
        """The manners of a retired one are its successor's: told there, changed in both."""
        retired = SITE.replace("[qmq]", "[qmq]\nretired = old=alpha")

        found = self.diff(retired.replace("[alpha]", "[alpha]\nconcurrency = 5"), retired)

        self.assertEqual((found.changed, found.lines), (("alpha", "old"), ("~ [alpha] concurrency: 120 -> 5",)))

    def test_retired_store(self):
        """A retired instance's folder must still be said, or its mail would not be found."""
        site = (
            with_setting("instance", "spool", "elsewhere")
            .replace("beta.example", "*")
            .replace("[internet]\ndomains = *\n", "")
            .replace("80:internet\n", "")
        )
        head, _, rest = site.partition("[alpha]\n")
        retired = (
            head.replace("01:alpha\n", "").replace("[qmq]", "[qmq]\nretired = alpha=beta")
            + "[beta"
            + rest.partition("[beta")[2]
        )

        forgotten = self.diff(retired, site)
        said = self.diff(retired + "[alpha]\nspool = elsewhere\n", site)

        self.assertEqual(len(forgotten.refused), 1)
        self.assertIn("~ [alpha] spool: ", forgotten.refused[0])
        self.assertEqual((said.refused, said.retired), ((), ("alpha",)))

    def test_number(self):
        """Another number is another port, told as what it is."""
        found = self.diff(SITE.replace("01:alpha", "05:alpha"))

        self.assertEqual(found.lines, ("~ [instances] alpha: 01 -> 05",))
        self.assertEqual(found.closed, (("alpha", ("127.0.0.1", 11001)),))
        self.assertEqual(found.opened, (("alpha", ("127.0.0.1", 11005)),))

    def test_ports(self):
        """All listeners that come and go are there, the primary's too, and another base moves them all."""
        listen = self.diff(SITE.replace("127.0.0.1:2525", "127.0.0.1:2525 tcp:2526"))
        none = self.diff(with_setting("instance", "qmtp-listen", "none"))
        base = self.diff(with_setting("qmq", "base", "12000"))

        self.assertEqual((listen.opened, listen.closed), ((("primary", ("", 2526)),), ()))
        self.assertEqual((none.opened, none.closed), ((), (("alpha", ("127.0.0.1", 11001)),)))
        self.assertEqual((len(base.opened), len(base.closed), len(base.lines)), (3, 3, 1))

    def test_to_another_host(self):
        """An instance that has a store here cannot just be elsewhere; the other way round it can."""
        there = with_setting("instance", "handover", "qmtp:192.0.2.9:209")

        found = self.diff(there)
        back = self.diff(SITE, there)

        self.assertEqual((len(found.refused), found.lines), (1, ()))
        self.assertIn("retired = alpha=OTHER", found.refused[0])
        self.assertEqual((back.refused, back.changed), ((), ("alpha",)))
        self.assertEqual(back.opened, (("alpha", ("127.0.0.1", 11001)),))

    def test_anothers_store(self):
        """A new instance cannot take over the folder of one that is still in use."""
        found = self.diff(SITE.replace("beta", "gamma").replace("[gamma]\n", "[gamma]\nspool = var/spool/beta\n"))

        self.assertEqual(found.removed, ("beta",))
        self.assertEqual(len(found.refused), 1)
        self.assertIn("is the store of beta, which is in use", found.refused[0])

    def test_bounds_of_nothing(self):
        """The memory of all workers changes who has one of its own, not who shares one."""
        site = with_setting("instance", "process", "own")

        found = self.diff(site.replace("[qmq]", "[qmq]\nworker-memory = 1G"), site)

        self.assertEqual((found.changed, found.restart), (("alpha",), ("~ [qmq] worker-memory: 2G -> 1G",)))

    def test_environment(self):
        """The variables a process was started with are nobody's edit."""
        other = self.conf(SITE, Ground(environment={"HELOCHECK": "."}))

        self.assertFalse(difference(self.old, other))


class SaidTests(SynchronousTestCase):
    @given(
        st.sampled_from(sorted(WORDS)),
        st.sampled_from(["yes", "no", "none", "list", "notorious", "3", "90s", "1h", "2M", "text", "."]),
    )
    def test_words(self, word, text):
        """What is told of a client's word is read back as the same variable."""
        variable = WORDS[word]
        try:
            found = raw(variable, text)
        except BadValue:
            return

        self.assertEqual(raw(variable, said(variable, found)), found)

    def test_all_kinds(self):
        """No variable has a kind that nobody can tell."""
        self.assertEqual({v.kind for v in VARIABLES.values()}, {"flag", "count", "time", "size", "text"})
