"""Makes `twistd qmq` known; nothing else is imported until it is asked for."""

from twisted.application.service import ServiceMaker

qmq = ServiceMaker("qmq", "qmq.tap", "A mail gateway with a queue of its own for every customer", "qmq")
