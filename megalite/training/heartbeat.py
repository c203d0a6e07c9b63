"""What a process is doing: written by the training loop, read by the watchdog's thread."""

from collections.abc import Callable
from typing import Any

WAIT = "wait"  # for work from other processes, which may take as long as it likes
PHASES = (
    "start",
    WAIT,
    "data",
    "rollout",
    "forward_backward",
    "reduce",
    "optimizer",
    "evaluate",
    "save",
    "end",
)
WRITE_POINTS = ("write_data", "write_manifest", "rename", "move_latest", "delete_old")


def _nothing(_point: str, _step: int, _model: Any) -> None:
    """No fault is asked for."""


class Heartbeat:
    """The step and phase that this process is in.

    Attributes:
        step: under way, from 1; 0 before the first.
        phase: of the training loop, one of ``PHASES``.
        writing: what a checkpoint's writer is at, one of ``WRITE_POINTS``, or empty.
    """

    def __init__(self, meet: Callable[[str, int, Any], None] = _nothing) -> None:
        """Begin.

        Args:
            meet: is told (phase or write point, step, model) at each; for faults on purpose.
        """
        self.step, self.phase, self.writing = 0, PHASES[0], ""
        self._meet = meet

    def enter(self, phase: str, model: Any = None) -> None:
        """The training loop enters a phase, with this model if one is at work."""
        self.phase = phase
        self._meet(phase, self.step, model)

    def write(self, point: str, step: int) -> None:
        """The writer of the checkpoint of ``step`` comes to a point; empty when it is done."""
        self.writing = point
        self._meet(point, step, None)
