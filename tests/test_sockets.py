import contextlib
import fcntl
import os
import shutil
import socket
import tempfile

from twisted.internet.protocol import Factory
from twisted.trial.unittest import SynchronousTestCase

from qmq import sockets
from qmq.paths import reachable
from qmq.sockets import CannotListen, Listener, Sockets
from tests.cords import Reactor


class FakePort:
    """A Twisted port that does nothing."""

    connected, disconnecting = True, False

    def stopListening(self):
        self.connected = False


class FakeReactor:
    """Adopts by making a note."""

    def adoptStreamPort(self, descriptor, family, factory):
        return FakePort()


class SocketsTests(SynchronousTestCase):
    """Listening sockets of a process, or of two that share a folder."""

    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="qmq-test-")
        self.addCleanup(shutil.rmtree, self.folder)
        self.path = os.path.join(self.folder, "socket")
        self.unix = Listener("qmtp/one", path=self.path)
        self.tcp = Listener("smtp", "127.0.0.1", 0)

    def sockets(self, *listeners):
        """A process with these open."""
        made = Sockets()
        made.open(listeners)
        self.addCleanup(made.let_go)
        return made

    def connects(self, path=None):
        """Whether somebody listens on the path."""
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(path or self.path)
            except OSError:
                return False
            return True

    def test_handed_on(self):
        """An address that one of ours gives up is another's without a moment in which nobody listens."""
        sockets = self.sockets(self.tcp)
        host, port = sockets._open["smtp"].getsockname()

        sockets.open([Listener("other", host, port)], patience=0)
        sockets.drop("smtp")

        with socket.create_connection((host, port), 2):
            self.assertIn("other", sockets)

    def heir(self, before):
        """A process to which the other one hands down: with descriptors of its own."""
        descriptors, environ = before.hand_down(100_000)
        copies = {number: fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, 900) for number, ours in descriptors.items()}
        for number, copy in copies.items():
            for name in environ:
                environ[name] = environ[name].replace(str(number), str(copy))
        made = Sockets()
        made.inherit(environ)
        self.addCleanup(made.let_go)
        return made

    def test_open_once(self):
        """What is open stays as it is; what is new is added."""
        made = self.sockets(self.tcp)
        before = made.descriptor("smtp")

        made.open([self.tcp, self.unix])

        self.assertEqual(made.descriptor("smtp"), before)
        self.assertEqual(made.words(), ["smtp", "qmtp/one"])
        self.assertTrue(self.connects())
        self.assertEqual(os.stat(self.path).st_mode & 0o777, 0o600)

    def test_all_or_none(self):
        """If one cannot be opened, the others that were opened with it are closed again."""
        made = self.sockets()

        with self.assertRaises(CannotListen):
            made.open([self.unix, Listener("x", path="/nowhere/socket")])

        self.assertEqual((made.words(), os.path.exists(self.path)), ([], False))
        self.assertEqual(self.sockets(self.unix).words(), ["qmtp/one"])

    def test_lock_of_another(self):
        """A unix socket of a running gateway cannot be taken over; the error names the process."""
        self.sockets(self.unix)

        with self.assertRaises(CannotListen) as caught:
            Sockets().open([self.unix])

        self.assertIn(f"process {os.getpid()}", str(caught.exception))
        self.assertTrue(self.connects())

    def test_address_in_use_for_a_moment(self):
        """An address whose holder leaves within the patience is had; without patience the error says what may be there."""
        with socket.socket() as holder:
            holder.bind(("127.0.0.1", 0))
            holder.listen()
            listener = Listener("smtp", *holder.getsockname())
            made = self.sockets()
            with self.assertRaises(CannotListen) as caught:
                made.open([listener], patience=0)
            self.assertIn("another qmq", str(caught.exception))
            waits = []
            self.patch(sockets.time, "sleep", lambda _: (waits.append(1), holder.close() if len(waits) == 3 else None))

            made.open([listener])

        self.assertEqual((made.words(), len(waits)), (["smtp"], 3))

    def test_drop(self):
        """A socket that is dropped refuses connections, its path is gone and its lock is free."""
        made = self.sockets(self.unix, self.tcp)
        port = made.adopt(FakeReactor(), "smtp", Factory())
        address = socket.socket(fileno=os.dup(made.descriptor("smtp"))).getsockname()

        for word in ("qmtp/one", "smtp", "smtp"):
            made.drop(word)

        self.assertEqual((made.words(), os.path.exists(self.path), port.connected), ([], False, False))
        with self.assertRaises(ConnectionRefusedError):
            socket.create_connection(address)
        self.assertTrue(self.sockets(self.unix))

    def test_unix_port(self):
        """A unix socket stays closed to other users when it is served, and open to clients when that ends."""
        made = self.sockets(self.unix)
        reactor = Reactor()

        port = made.adopt(reactor, "qmtp/one", Factory())
        self.assertEqual((reactor.readers, os.stat(self.path).st_mode & 0o777), ({port}, 0o600))
        port.stopListening()
        reactor.advance(0)

        self.assertEqual(reactor.readers, set())
        self.assertTrue(self.connects())

    def test_take(self):
        """A socket that comes later is one of ours; it neither blocks nor goes to programs. A newer one replaces it."""
        made = self.sockets()
        first, second = socket.socket(), socket.socket()
        number = first.detach()
        os.set_inheritable(number, True)
        made.take("smtp", number)
        self.assertEqual((os.get_inheritable(number), os.get_blocking(number)), (False, False))

        made.take("smtp", other := second.detach())

        self.assertEqual(made.descriptor("smtp"), other)
        with self.assertRaises(OSError):
            os.fstat(number)

    def test_close(self):
        """At the end the paths are gone, once: what somebody puts there afterwards stays."""
        made = self.sockets(self.unix)
        made.close()
        self.assertFalse(os.path.exists(self.path))
        other = self.sockets(self.unix)

        made.close()
        made.let_go()

        self.assertTrue(self.connects())
        self.assertTrue(other)

    def test_a_worker_owns_nothing(self):
        """Who inherits a socket alone does not remove its path."""
        made = self.sockets(self.unix)
        worker = Sockets()
        worker.inherit({"QMQ_SOCKETS": f"qmtp/one={os.dup(made.descriptor('qmtp/one'))}"})

        worker.close()
        worker.let_go()

        self.assertTrue(self.connects())

    def test_hand_down(self):
        """A new main process goes on with all sockets; the old one, when it has disowned them, leaves all as it is."""
        before = self.sockets(self.unix, self.tcp)
        after = self.heir(before)
        after.open([self.unix, self.tcp])
        self.assertEqual(sorted(after.words()), ["qmtp/one", "smtp"])

        before.disown()
        after.own()
        before.close()
        before.let_go()

        self.assertTrue(self.connects())
        with self.assertRaises(CannotListen):
            Sockets().open([self.unix])
        after.close()
        self.assertFalse(os.path.exists(self.path))

    def test_heir_that_fails(self):
        """Until a new process owns what was handed down, it takes nothing with it when it fails."""
        before = self.sockets(self.unix)
        after = self.heir(before)
        after.open([self.unix])

        after.close()
        after.let_go()

        with self.assertRaises(CannotListen):
            Sockets().open([self.unix])
        self.assertTrue(self.connects())

    def test_path_that_has_moved(self):
        """If the new process wants a unix socket elsewhere, it has that; the old one stays the old process's."""
        before = self.sockets(self.unix)
        after = self.heir(before)
        elsewhere = os.path.join(self.folder, "elsewhere")

        after.open([Listener("qmtp/one", path=elsewhere)])

        self.assertTrue(self.connects(elsewhere))
        self.assertTrue(self.connects())
        before.close()
        after.own()
        after.close()
        self.assertEqual((os.path.exists(elsewhere), os.path.exists(self.path)), (False, False))

    def test_long_path(self):
        """A path longer than the kernel takes is opened and removed all the same."""
        folder = os.path.join(self.folder, "f" * 120)
        os.mkdir(folder)
        listener = Listener("x", path=os.path.join(folder, "socket"))

        made = self.sockets(listener)

        self.assertTrue(self.connects(reachable(listener.path)))
        made.close()
        self.assertFalse(os.path.exists(listener.path))

    def test_left_by_a_killed_process(self):
        """A path that a killed process has left is used again."""
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as left:
            left.bind(self.path)
        self.assertFalse(self.connects())

        self.sockets(self.unix)

        self.assertTrue(self.connects())

    def test_sweep(self):
        """What killed processes have left is removed, what somebody listens at stays, and so does what is not meant."""
        for name in ("dead.control", "dead.qmtp"):
            left = os.path.join(self.folder, name)
            with socket.socket(socket.AF_UNIX) as gone:
                gone.bind(left)
        ours = Sockets()
        ours.open([Listener("control", path=os.path.join(self.folder, "ours.control"))])

        sockets.sweep(self.folder, ".control")

        found = {name for name in os.listdir(self.folder) if not name.endswith(".lock")}
        self.assertEqual(found, {"ours.control", "dead.qmtp"})
        ours.let_go()
