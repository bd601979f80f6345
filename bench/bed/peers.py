"""
The relays that are measured, each an honest durable relay set up to do its best.

All of a peer's settings that are not its defaults stand here, each with its why;
nothing that makes a message safe is turned off. `NAME:setting=value` changes one
of `settings` for one run.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from types import MappingProxyType

from .load import BENCH, Unavailable, built, cache
from .target import Target, debian, identity, write


class Postfix(Target):
    """Debian's, installed."""

    word = "postfix"
    settings = MappingProxyType(
        {
            "processes": 100,  # default_process_limit: shipped 100; of smtpd and of smtp each
            "concurrency": 50,  # connections to one host: shipped 20
            "first": 20,  # of which at once: shipped 5, and then slowly more
            "flow": 0,  # in_flow_delay: shipped 1 s, by which it slows clients down that are faster than its deliveries
            "connect": 30,  # smtp_connect_timeout, as shipped
        }
    )
    _SERVICES = """
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
proxywrite unix - - n - 1 proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
tlsmgr unix - - n 1000? 1 tlsmgr
"""

    def prepare(self):
        """Chroots are off throughout: nothing is to be copied into the queue."""
        program = shutil.which("postfix", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if program is None:
            raise Unavailable("postfix is not installed; say: apt-get install postfix")
        s = self.settings
        os.makedirs(f"{self.spool}/queue")
        os.makedirs(f"{self.spool}/own")
        shutil.chown(f"{self.spool}/own", "postfix")
        write(f"{self.etc}/routes", "".join(f"{domain} smtp:[{host}]:{port}\n" for domain, host, port in self.routes))
        write(
            f"{self.etc}/main.cf",
            f"""compatibility_level = 3.6
queue_directory = {self.spool}/queue
data_directory = {self.spool}/own
meta_directory = /etc/postfix
# no syslog here, and no file either: its best case
maillog_file =
myhostname = relay.test
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mydestination =
local_recipient_maps =
alias_maps =
mynetworks = 127.0.0.0/8
smtpd_relay_restrictions = permit_mynetworks, reject
# texthash is read once into memory: no file is locked for a look
transport_maps = texthash:{self.etc}/routes
# addresses are literal: nothing to look up
disable_dns_lookups = yes
smtpd_peername_lookup = no
smtp_tls_security_level = none
default_process_limit = {s["processes"]}
in_flow_delay = {s["flow"]}
default_destination_concurrency_limit = {s["concurrency"]}
initial_destination_concurrency = {s["first"]}
# a process serves so many connections before it is started anew: shipped 100
max_use = 1000
smtp_connect_timeout = {s["connect"]}
""",
        )
        write(f"{self.etc}/master.cf", f"127.0.0.1:{self.port} inet n - n - - smtpd{self._SERVICES}")
        return [program, "-c", self.etc, "start-fg"]


class Exim(Target):
    """Debian's exim4-daemon-light, unpacked."""

    word = "exim"
    users = ("Debian-exim",)
    settings = MappingProxyType(
        {
            "clients": 300,  # smtp_accept_max: shipped 20
            "runners": 5,  # queue runners at once, as shipped
            "every": "10s",  # queue run: by hand in the shipped one, 30m in Debian's
            "connect": 30,  # connect_timeout: shipped 5m
        }
    )

    def prepare(self):
        """Its configuration must be where it was built for; from elsewhere it would give up root, and its queue."""
        program = debian("exim4-daemon-light", "usr/sbin/exim4")
        s = self.settings
        number = identity("Debian-exim")
        os.chown(self.spool, number, number)
        write(f"{self.etc}/routes", "".join(f"{domain}: {host}::{port} byname\n" for domain, host, port in self.routes))
        conf = write(
            f"{self.etc}/exim.conf",
            f"""exim_path = {program}
primary_hostname = relay.test
daemon_smtp_ports = {self.port}
local_interfaces = 127.0.0.1
disable_ipv6
keep_environment =
spool_directory = {self.spool}
log_file_path = {self.spool}/log/%slog
# a log file for each message costs two files more; what it logs otherwise stays
no_message_logs
# 62 folders: long queues are found faster
split_spool_directory
smtp_accept_max = {s["clients"]}
# all messages of a connection are delivered at once, not only its first ten
smtp_accept_queue_per_connection = 0
smtp_accept_max_per_connection = 0
smtp_connect_backlog = 1000
queue_run_max = {s["runners"]}
# no looking up, no ident
host_lookup =
rfc1413_query_timeout = 0s
tls_advertise_hosts =
acl_smtp_rcpt = everything
acl_smtp_data = everything

begin acl
everything:
  accept

begin routers
hosts:
  driver = manualroute
  transport = host
  self = send
  host_find_failed = defer
  route_data = ${{lookup{{$domain}}lsearch{{{self.etc}/routes}}}}

begin transports
host:
  driver = smtp
  hosts_avoid_tls = *
  hosts_try_fastopen =
  connect_timeout = {s["connect"]}s

begin retry
* * F,2h,1m
""",
        )
        self.mounts = [
            "mount -t tmpfs tmpfs /var/lib", "mkdir /var/lib/exim4", f"cp {conf} /var/lib/exim4/config.autogenerated",
        ]  # fmt: skip
        return [program, "-bdf", f"-q{s['every']}"]


class OpenSMTPD(Target):
    """
    Debian's, unpacked, with `backlog.c`.

    It syncs nothing before its 250 (queue_fs.c, and strace agrees): a power cut loses what it has just taken, and
    what it shows is the speed of a relay that may do so. With sync=1 its queue's folders are marked as chattr
    +S +D does, which all that is made in them inherits; it then writes more than a relay that syncs once must.
    """

    word = "opensmtpd"
    users = ("opensmtpd", "opensmtpq")
    settings = MappingProxyType(
        {
            "concurrency": 50,  # connections to a host, a route, a relay: shipped 10, 5, 100
            "sync": 0,  # as shipped
        }
    )

    def prepare(self):
        """The folders of its queue are what it makes itself, if it has the users it was built for."""
        program = debian("opensmtpd", "usr/sbin/smtpd")
        os.chmod(self.spool, 0o711)
        queue, group = identity("opensmtpq"), identity("opensmtpq")
        os.makedirs(f"{self.spool}/offline")
        os.chown(f"{self.spool}/offline", 0, group)
        os.chmod(f"{self.spool}/offline", 0o770)
        for name in ("purge", "temporary", "queue", "corrupt", "incoming"):
            os.makedirs(f"{self.spool}/{name}", mode=0o700)
            os.chown(f"{self.spool}/{name}", queue, 0)
        if int(self.settings["sync"]):
            marked = subprocess.run(["chattr", "-R", "+SD", self.spool], capture_output=True, text=True, check=False)
            if marked.returncode:
                raise Unavailable(f"chattr +S +D: {marked.stderr.strip()}")
        n = self.settings["concurrency"]
        lines = [
            f"listen on 127.0.0.1 port {self.port} hostname relay.test",
            "smtp limit max-mails 1000000",  # a connection: shipped 100
            f"mta limit max-conn-per-host {n} max-conn-per-route {n} max-conn-per-relay {n} max-conn-per-connector {n}",
            "mta limit max-conn-per-source 1000",
            # between connections: shipped 5, 2 and 3 s
            "mta limit conn-delay-route 0 conn-delay-relay 0 reconn-delay-route 0",
            "mta limit session-mail-max 1000",  # messages over one connection: shipped 100
            "mta limit task-hiwat 20000 task-lowat 10000 task-release 5000",  # deliveries in memory: shipped 50, 30, 10
            *(f'action "to{n}" relay host smtp://{host}:{port}' for n, (_, host, port) in enumerate(self.routes)),
            *(f'match from any for domain "{domain}" action "to{n}"' for n, (domain, _, _) in enumerate(self.routes)),
        ]
        write(f"{self.etc}/smtpd.conf", "\n".join(lines) + "\n")
        self.environ = {"LD_PRELOAD": built([BENCH / "backlog.c"], "-shared", "-fPIC", "-ldl")}
        self.mounts = [
            "mount -t tmpfs tmpfs /var/lib", "mkdir -p /var/lib/opensmtpd/empty",
            f"mount --bind {self.spool} {self.etc}/here",
            "mount -t tmpfs -o mode=755 tmpfs /var/spool", "mkdir -m 711 /var/spool/smtpd",
            f"mount --bind {self.etc}/here /var/spool/smtpd",
        ]  # fmt: skip
        os.makedirs(f"{self.etc}/here")
        return [program, "-F", "-f", f"{self.etc}/smtpd.conf"]


class Haraka(Target):
    """From npm. It syncs its queue's files, but not the folders they are in: not quite durable, either."""

    word = "haraka"
    root = False
    settings = MappingProxyType(
        {
            "nodes": 2,  # processes: shipped 1
            "concurrency": 100,  # outbound.concurrency_max, as shipped
        }
    )

    def prepare(self):
        """A plug-in has the routes."""
        folder = cache() / "haraka"
        program = folder / "node_modules/Haraka/bin/haraka"
        if not program.exists():
            self._fetch(folder)
        s, config = self.settings, f"{self.etc}/config"
        nodes = f"nodes={s['nodes']}\n" if int(s["nodes"]) > 1 else ""
        write(f"{config}/smtp.ini", f"listen=127.0.0.1:{self.port}\n{nodes}")
        write(f"{config}/me", "relay.test\n")
        write(f"{config}/plugins", "routes\n")
        write(f"{config}/loglevel", "ERROR\n")
        write(f"{config}/queue_dir", f"{self.spool}\n")
        # local_mx_ok: our hosts are on loopback, which it else takes for a loop
        write(f"{config}/outbound.ini", f"concurrency_max={s['concurrency']}\nenable_tls=false\nlocal_mx_ok=true\n")
        shutil.copy(folder / "node_modules/Haraka/config/connection.ini", config)
        routes = {domain: {"priority": 0, "exchange": host, "port": port} for domain, host, port in self.routes}
        write(
            f"{self.etc}/plugins/routes.js",
            f"""'use strict'
const routes = {json.dumps(routes)}
exports.hook_connect = (next, connection) => {{ connection.relaying = true; next() }}
exports.hook_rcpt = (next) => next(OK)
exports.hook_get_mx = (next, mail, domain) => routes[domain] ? next(OK, [routes[domain]]) : next(DENY)
""",
        )
        return ["node", str(program), "-c", self.etc]

    def _fetch(self, folder):
        if not (shutil.which("npm") and shutil.which("node")):
            raise Unavailable("haraka needs node and npm; say: apt-get install npm")
        folder.mkdir(exist_ok=True)
        write(folder / "package.json", '{"private": true}\n')
        done = subprocess.run(
            ["npm", "install", "--silent", "Haraka"], cwd=folder, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise Unavailable(f"npm cannot install Haraka: {done.stderr.strip() or done.stdout.strip()}")


class Qmq(Target):
    """Ours: `relay-target`, the shipped defaults with these routes; ROOT is the checkout that runs."""

    word = "qmq"
    pace = 5
    root = False
    ready = "qmq ready"
    settings = MappingProxyType({"root": str(BENCH.parent), "instances": "", "workers": "", "checks": "", "rules": ""})

    def prepare(self):
        """As its own words say: OPT_NAME."""
        s = dict(self.settings)
        home = s.pop("root")
        self.environ = {
            "PORT": str(self.port), "SPOOL": self.spool,
            "ROUTES": ",".join(f"{domain}={host}:{port}" for domain, host, port in self.routes),
            "OPT_BASE": str(base([*range(1, len(self.routes) + 1), 9000])),  # as relay-target numbers them
            **{f"OPT_{name.upper()}": str(value) for name, value in s.items() if value},
        }  # fmt: skip
        return [sys.executable, f"{home}/bench/relay-target"]


def base(numbers):
    """A port such that those *numbers* above it are free, for QMTP: another qmq may be running here."""
    for number in range(12_000 + os.getpid() % 5000, 23_000, 7):
        try:
            for more in numbers:
                with socket.socket() as ours:
                    ours.bind(("127.0.0.1", number + more))
        except OSError:
            continue
        return number
    raise Unavailable("no free ports")


TARGETS = {kind.word: kind for kind in (Postfix, OpenSMTPD, Exim, Haraka, Qmq)}


def asked(words):
    """`postfix:concurrency=20,qmq` as (label, class, settings); raises Unavailable."""
    found = []
    for label in filter(None, words.split(",")):
        word, *settings = label.split(":")
        if word not in TARGETS:
            raise Unavailable(f"no target {word}; there are {', '.join(TARGETS)}")
        found.append((label, TARGETS[word], dict(setting.split("=", 1) for setting in settings)))
    return found
