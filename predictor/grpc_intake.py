"""How many calls of a method the gRPC library is asked for at once.

A call that the library was not asked for waits outside of Python, and is reset where too many wait.
Cheap as that is, it is a bad answer to a burst; as good an answer as it is to an overload, of which
Python is to see no more than it can serve. So a process asks for many calls while it is not
overloaded, and for few while it is:

wide    for 128, whatever is being served. What was taken is asked for again every 10 ms.
narrow  so that all that were taken and not answered are as many as `Admission.at_once`; and for
        half of those at a time, since calls that come together cost less than one by one.

It gets narrow with the first refusal: whoever is refused in Python was asked for in vain. From then
on Python refuses hardly anybody and does not see who is reset, so it finds out by trying whether
the overload is over: it asks for 32 calls, and where those do not come within 10 ms for 64, and so
on. Where they do, or anybody is refused, it tries again later, each time twice as late.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from predictor.admission import Admission


@dataclass(frozen=True, slots=True)
class IntakeConfig:
    """wide: calls asked for where there is no overload. trial: of the first try to get there again.
    every_s: between two looks. again_s: from getting narrow to the first trial; then twice as much
    for each that failed, until `at_most_again_s`."""

    wide: int = 128
    trial: int = 32
    every_s: float = 0.01
    again_s: float = 0.1
    at_most_again_s: float = 1.0


@dataclass(slots=True)
class Intake:
    """How many calls one process asks for, of one method. A look is due every `every_s` from when a
    call was taken until `rests`."""

    admission: Admission
    config: IntakeConfig = field(default_factory=IntakeConfig)
    _asks: int = field(init=False)
    _refused: int = 0
    _again_s: float = field(init=False)
    _trial_at_s: float = 0.0

    def __post_init__(self) -> None:
        self._asks = self.config.wide
        self._again_s = self.config.again_s

    @property
    def narrow(self) -> bool:
        """Calls are asked for by how many are being served."""
        return self._asks == 0

    @property
    def rests(self) -> bool:
        """There is nothing to look for until the next call."""
        return self._asks == self.config.wide

    def wanted(self, unanswered: int) -> int:
        """How many calls the library should be asked for; 0: no matter how many it is.

        unanswered: calls that were taken and not answered. Those whose message does not come keep
        nobody waiting.
        """
        if self._asks:
            return self._asks
        at_once = self.admission.at_once
        free = at_once - (unanswered - self.admission.unsent)
        return free if 2 * free >= at_once else 0

    def look(self, asked: int) -> None:
        """asked: calls that the library was asked for and that did not come yet."""
        config, now_s = self.config, self.admission.clock()
        refused, self._refused = self._refused, self.admission.refused.total
        if self._refused > refused:
            self._get_narrow(now_s)
        elif self.narrow:
            if now_s >= self._trial_at_s:
                self._asks = config.trial
        elif not self.rests:
            if asked == 0:
                self._get_narrow(now_s)
                return
            self._asks = min(2 * self._asks, config.wide)
            if self._asks == config.wide:
                self._again_s = config.again_s

    def _get_narrow(self, now_s: float) -> None:
        if not self.narrow:
            self._asks = 0
            self._trial_at_s = now_s + self._again_s
            self._again_s = min(2 * self._again_s, self.config.at_most_again_s)
