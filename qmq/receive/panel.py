"""
Who is asked of whom: the checks of each phase that have anything to say of clients with the same settings.

Most checks do nothing where their variable is not set. Those that say so
(ISelective) are left out once, for all whom the same rule covers, and cost
their messages nothing at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from qmq.mail import value
from qmq.receive.check import Check
from qmq.rules.watched import Files
from qmq.session import Environment

# As many settings as there are rules for are few; a bound all the same.
_MOST = 4000


@value
class Panel:
    """Those who judge clients with these settings, by phase, in order."""

    environment: Environment
    connection: Sequence[Check]
    helo: Sequence[Check]
    sender: Sequence[Check]
    recipient: Sequence[Check]
    data: Sequence[Check]
    message: Sequence[Check]


class Panels:
    """
    Chooses among *phases*, all the checks by phase.

    *broken* is told of a check that raises when it is asked whom it concerns;
    such a check is asked of everybody. When *present* gives another object, the
    configuration has changed, and it is chosen anew; so it is when one of the *files*
    has come that a check said to be absent.
    """

    def __init__(
        self,
        phases: Mapping[str, Sequence[Check]],
        broken: Callable[[Check, BaseException], object],
        present: Callable[[], object],
        files: Files,
    ) -> None:
        self._phases = phases
        self._broken = broken
        self._present = present
        self._conf = present()
        self._panels: dict[int, Panel] = {}  # by the identity of their environments, which they hold
        self._files = files
        files.come = self._panels.clear

    def of(self, environment: Environment) -> Panel:
        """Those who judge clients with these settings."""
        if (conf := self._present()) is not self._conf:
            self._conf = conf
            self._panels.clear()
        if self._files.looked != self._files.round:
            self._files.find()
        panel = self._panels.get(id(environment))
        if panel is None:
            if len(self._panels) >= _MOST:
                self._panels.clear()
            chosen = {
                phase: tuple([check for check in checks if self._concerned(check, environment, phase)])
                for phase, checks in self._phases.items()
            }
            panel = self._panels[id(environment)] = Panel(environment, **chosen)
        return panel

    def _concerned(self, check: Check, environment: Environment, phase: str) -> bool:
        if check.concerns is None:
            return True
        try:
            return bool(check.guarded(check.concerns, environment, phase))
        except BaseException as error:  # noqa: BLE001 - a stranger's code; not even its SystemExit is for us
            self._broken(check, error)
            return True
