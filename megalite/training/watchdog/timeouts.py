"""How long a process may stand still or be silent before that is a fault."""

import math
from dataclasses import dataclass

from megalite.training.watchdog.heartbeat import WAIT

LONGEST_SILENCE_S = (
    60.0  # the thread reports whatever the main thread does, unless one holds Python
)
STALL_SHARE = 0.75  # of a collective's timeout: a hung process is named before collectives give up
SLOW_PHASES, SLOW_FACTOR = ("start", "save"), 4.0  # they read or write much, and nothing else moves


@dataclass(frozen=True)
class Timeouts:
    """When a process counts as hung, or as gone.

    Attributes:
        stall_s: a main thread that stands still for so long is hung.
    """

    stall_s: float

    @classmethod
    def beside(cls, collectives_s: float) -> "Timeouts":
        """Those of a run whose collectives give up after so many seconds."""
        return cls(STALL_SHARE * collectives_s)

    def stall_in(self, phase: str) -> float:
        """Seconds that a main thread may stand still in a phase."""
        if phase == WAIT:
            return math.inf
        return self.stall_s * (SLOW_FACTOR if phase in SLOW_PHASES else 1.0)

    @property
    def silence_s(self) -> float:
        """A process that reports nothing for so long is stopped or gone."""
        return min(self.stall_s, LONGEST_SILENCE_S)

    @property
    def interval_s(self) -> float:
        """Between two reports of a process."""
        return min(max(self.silence_s / 20, 0.05), 3.0)

    @property
    def renewal_s(self) -> float:
        """Seconds in which every process that isn't held up has reported again."""
        return 3 * self.interval_s
