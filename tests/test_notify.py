import contextlib
import os
import socket
import tempfile

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from qmq.notify import Notifier, listen_fds, matched


class Supervisor:
    """The socket of one, as systemd has it."""

    def __init__(self, address):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(address)

    def heard(self):
        """Each datagram since the last call, as a list of its lines."""
        heard = []
        with contextlib.suppress(BlockingIOError):
            while True:
                heard.append(self.socket.recv(4096).decode().split("\n"))
        return heard


class NotifierTests(SynchronousTestCase):
    def setUp(self):
        folder = tempfile.mkdtemp()  # trial's own path may be longer than a socket's can be
        self.addCleanup(os.rmdir, folder)
        self.path = os.path.join(folder, "notify")
        self.supervisor = Supervisor(self.path)
        self.addCleanup(os.unlink, self.path)
        self.addCleanup(self.supervisor.socket.close)
        self.clock = Clock()
        self.depth = 7

    def notifier(self, **environ):
        self.environ = {"NOTIFY_SOCKET": self.path, "PATH": "/bin", **environ}
        return Notifier(self.environ, self.clock, lambda: f"{self.depth} waiting", pid=4711)

    def pings(self, seconds):
        """What time of feeding the watchdog comes to, in pings."""
        self.supervisor.heard()
        self.clock.pump([1] * seconds)
        return self.supervisor.heard().count(["WATCHDOG=1"])

    def test_ready(self):
        """The supervisor hears that we are ready, and how many messages wait."""
        self.notifier().ready()

        self.assertEqual(self.supervisor.heard(), [["READY=1"], ["STATUS=7 waiting"]])

    def test_status(self):
        """The status is at most ten seconds old, and one line whatever is in it."""
        self.notifier().ready()
        self.supervisor.heard()

        self.clock.advance(9)
        self.assertEqual(self.supervisor.heard(), [])
        self.depth = "8\nREADY=0"
        self.clock.advance(1)
        self.assertEqual(self.supervisor.heard(), [["STATUS=8 READY=0 waiting"]])

    def test_watchdog(self):
        """The watchdog is fed twice in its time, by the reactor's clock, and not before we are ready."""
        notifier = self.notifier(WATCHDOG_USEC="30000000", WATCHDOG_PID="4711")

        self.assertEqual(self.pings(60), 0)
        notifier.ready()
        self.assertEqual(self.pings(60), 4)

    def test_watchdog_of_another(self):
        """A watchdog that is meant for another process is not fed."""
        self.notifier(WATCHDOG_USEC="30000000", WATCHDOG_PID="4712").ready()

        self.assertEqual(self.pings(60), 0)

    def test_watchdog_without_sense(self):
        """A time that is none is no watchdog."""
        for usec in ("", "0", "-5", "x", "²"):
            self.notifier(WATCHDOG_USEC=usec).ready()
            self.assertEqual(self.pings(60), 0, usec)

    def test_reload(self):
        """A reload is told with the time of its beginning, and its end; the watchdog is fed as before."""
        notifier = self.notifier(WATCHDOG_USEC="30000000")
        notifier.ready()
        self.clock.advance(1.5)
        self.supervisor.heard()

        notifier.reloading()
        notifier.ready()

        self.assertEqual(self.supervisor.heard(), [["RELOADING=1", "MONOTONIC_USEC=1500000"], ["READY=1"]])
        self.assertEqual(self.pings(60), 4)

    def test_stopping(self):
        """After the last word there is silence, and nothing is left in the reactor."""
        notifier = self.notifier(WATCHDOG_USEC="30000000")
        notifier.ready()
        self.supervisor.heard()

        notifier.stopping()

        self.assertEqual(self.supervisor.heard(), [["STOPPING=1"]])
        self.assertEqual(self.pings(60), 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stopping_unstarted(self):
        """A gateway that never got ready can say that it stops."""
        self.notifier(WATCHDOG_USEC="30000000").stopping()

        self.assertEqual(self.supervisor.heard(), [["STOPPING=1"]])

    def test_hand_over(self):
        """A new main process is named in one datagram; the old one says nothing after that, not even that it stops."""
        notifier = self.notifier()
        notifier.ready()
        self.supervisor.heard()

        self.assertTrue(notifier.main_pid(99))
        notifier.stopping()

        self.assertEqual(self.supervisor.heard(), [["MAINPID=99", "READY=1", "WATCHDOG=1"]])

    def test_heirloom(self):
        """What a new main process is given makes it speak to the same supervisor and feed the same watchdog."""
        old = self.notifier(WATCHDOG_USEC="30000000", WATCHDOG_PID="4711")

        new = Notifier({**self.environ, **old.heirloom}, self.clock, lambda: "new", pid=99)
        new.ready()

        self.assertEqual(self.supervisor.heard(), [["READY=1"], ["STATUS=new"], ["WATCHDOG=1"]])
        self.assertEqual(self.pings(60), 4)

    def test_children(self):
        """A worker or a filter program inherits nothing by which it could speak in our name."""
        self.notifier(WATCHDOG_USEC="1", WATCHDOG_PID="1")

        self.assertEqual(self.environ, {"PATH": "/bin"})

    def test_no_supervisor(self):
        """Without a supervisor nothing is said, and nothing is left in the reactor."""
        notifier = Notifier({"WATCHDOG_USEC": "30000000"}, self.clock, lambda: "x")

        notifier.ready()
        notifier.reloading()
        self.assertTrue(notifier.main_pid(1))
        notifier.stopping()

        self.assertEqual((self.clock.getDelayedCalls(), notifier.heirloom), ([], {}))

    def test_another_kind_of_socket(self):
        """An address that is no unix socket (vsock, of a virtual machine) counts as no supervisor."""
        Notifier({"NOTIFY_SOCKET": "vsock:2:1234"}, self.clock, lambda: "x").ready()

        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_abstract(self):
        """A supervisor may listen in the abstract namespace; its heir is told so in the same way."""
        name = f"qmq-test-{os.getpid()}"
        supervisor = Supervisor("\0" + name)
        self.addCleanup(supervisor.socket.close)

        notifier = Notifier({"NOTIFY_SOCKET": "@" + name}, self.clock, lambda: "x")
        notifier.reloading()

        self.assertEqual(supervisor.heard(), [["RELOADING=1", "MONOTONIC_USEC=0"]])
        self.assertEqual(notifier.heirloom, {"NOTIFY_SOCKET": "@" + name})

    def test_gone(self):
        """A supervisor that is gone is no trouble of ours."""
        notifier = self.notifier(WATCHDOG_USEC="30000000")
        os.rename(self.path, self.path + "-")
        self.addCleanup(os.rename, self.path + "-", self.path)

        notifier.ready()
        self.clock.advance(60)
        self.assertTrue(notifier.main_pid(1))

    def stuff(self):
        """The supervisor does not read, and no datagram more finds room."""
        ours = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        with ours, contextlib.suppress(BlockingIOError):
            while True:
                ours.sendto(b"x", self.path)

    def test_stuck(self):
        """A supervisor that does not read holds up nobody; when it reads again, it hears what it missed."""
        notifier = self.notifier()
        self.stuff()

        notifier.ready()
        self.assertFalse(notifier.main_pid(1))
        self.supervisor.heard()
        self.clock.advance(10)

        self.assertEqual(self.supervisor.heard(), [["READY=1"], ["STATUS=7 waiting"]])
        self.assertTrue(notifier.main_pid(1))


class SocketTests(SynchronousTestCase):
    # Where nothing else of the test's process is.
    FIRST = 900

    def passed(self, *addresses, v6only=True):
        """Listening sockets at the descriptors where a supervisor would have put them."""
        for n, (family, host) in enumerate(addresses):
            with socket.socket(family) as ours:
                if family == socket.AF_INET6:
                    ours.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
                ours.bind((host, 0))
                ours.listen()
                os.dup2(ours.fileno(), self.FIRST + n, inheritable=True)
            self.addCleanup(os.close, self.FIRST + n)

    def port(self, n=0):
        with socket.socket(fileno=os.dup(self.FIRST + n)) as peek:
            return peek.getsockname()[1]

    def test_passed(self):
        """Sockets that were opened for us are found with their names, and no child inherits them."""
        self.passed((socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "127.0.0.1"))
        environ = {"LISTEN_PID": "42", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "smtp:more", "A": "b"}

        found = listen_fds(environ, 42, self.FIRST)

        self.assertEqual(found, {900: "smtp", 901: "more"})
        self.assertEqual([(os.get_inheritable(fd), os.get_blocking(fd)) for fd in found], [(False, False)] * 2)
        self.assertEqual(environ, {"A": "b"})

    def test_passed_to_another(self):
        """Sockets that were meant for our parent are not ours, and our children don't hear of them."""
        environ = {"LISTEN_PID": "41", "LISTEN_FDS": "2"}

        self.assertEqual(listen_fds(environ, 42, self.FIRST), {})
        self.assertEqual(environ, {})

    def test_fewer_than_promised(self):
        """A number that is too high yields those that there are."""
        self.passed((socket.AF_INET, "127.0.0.1"))

        found = listen_fds({"LISTEN_PID": "42", "LISTEN_FDS": "9"}, 42, self.FIRST)

        self.assertEqual(found, {900: ""})

    @given(*[st.one_of(st.none(), st.text(max_size=5), st.sampled_from(["42", "042", "0", "1"]))] * 3)
    def test_any_environment(self, pid, number, names):
        """Whatever stands in the variables, nothing is raised, and they are gone."""
        given = {"LISTEN_PID": pid, "LISTEN_FDS": number, "LISTEN_FDNAMES": names}
        environ = {key: value for key, value in given.items() if value is not None}

        found = listen_fds(environ, 42, 1000)  # nothing is open there

        self.assertEqual((found, environ), ({}, {}))

    def test_matched(self):
        """A socket is known by its address, however that was written; what is no listener of ours is named."""
        self.passed((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"), (socket.AF_INET, "127.0.0.1"))
        wanted = {("127.0.0.1", self.port(0)): "smtp/a", ("0:0::1", self.port(1)): "smtp/b", ("", 25): "smtp/c"}

        ours, others = matched([900, 901, 902], wanted)

        self.assertEqual(ours, {"smtp/a": 900, "smtp/b": 901})
        self.assertEqual(others, {902: f"127.0.0.1:{self.port(2)}"})

    def test_all_of_ipv4(self):
        """A listener without a host is the socket for all of IPv4."""
        self.passed((socket.AF_INET, ""))

        self.assertEqual(matched([900], {("", self.port()): "smtp"}), ({"smtp": 900}, {}))

    def test_both_protocols(self):
        """A socket for IPv4 and IPv6 at once is not taken, for it would hide IPv4 clients from the rules."""
        self.passed((socket.AF_INET6, "::"), v6only=False)

        ours, others = matched([900], {("::", self.port()): "smtp"})

        self.assertEqual(ours, {})
        self.assertIn("BindIPv6Only=ipv6-only", others[900])

    def test_twice(self):
        """Of two sockets with one address the first is taken."""
        self.passed((socket.AF_INET, "127.0.0.1"))
        os.dup2(900, 901)
        self.addCleanup(os.close, 901)

        ours, others = matched([900, 901], {("127.0.0.1", self.port()): "smtp"})

        self.assertEqual((ours, list(others)), ({"smtp": 900}, [901]))

    def test_no_sockets(self):
        """A datagram socket, a unix socket and a file are none of ours."""
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
            socket.socket(socket.AF_UNIX) as unix,
            open(os.devnull, "rb") as file,
        ):
            unix.bind(f"\0qmq-test-unix-{os.getpid()}")
            unix.listen()
            ours, others = matched([udp.fileno(), unix.fileno(), file.fileno()], {("", 25): "smtp"})

        self.assertEqual(ours, {})
        self.assertEqual(len(others), 3)
