"""What a process is doing: written by the training loop, read by the watchdog's thread."""

from collections.abc import Callable

from megalite.distributed.beginning import DATA, EVALUATION, STEP, Beginning
from megalite.engine.model import Model
from megalite.training.watchdog.stopwatch import Stopwatch

WAIT = "wait"  # for work from other processes, which may take as long as it likes
SAVE = "save"
PHASES = (
    "start",
    WAIT,
    "data",
    "rollout",
    "forward_backward",
    "reduce",
    "optimizer",
    "log",
    "compare",
    "evaluate",
    SAVE,
    "end",
)
WRITE_POINTS = ("write_data", "write_manifest", "rename", "move_latest", "delete_old")
BEGINNINGS = {"data": DATA, "evaluate": EVALUATION}  # of a run's time; in other phases it steps
SAVING_GROUPS = SHARED, LOCAL = "checkpoints", "local checkpoints"  # of threads beside the steps
LOCAL_POINTS = ("local_data", "local_manifest", "local_copy", "local_delete")

OnPoint = Callable[[str, int, Model | None], None]


def _ignore(_point: str, _step: int, _model: Model | None) -> None:
    """Nobody wants to know."""


class Heartbeat:
    """The step and phase that this process is in.

    Attributes:
        step: under way, from 1; 0 before the first.
        phase: of the training loop, one of ``PHASES``.
        write_point: what the checkpoint's writer is doing, one of ``WRITE_POINTS`` or
            ``LOCAL_POINTS``, or empty.
        model: at work in this phase, if one is.
        stopwatch: how long this process takes for its own work in each phase.
        beginning: how the time until the end of the first step is spent.
    """

    def __init__(self, on_point: OnPoint = _ignore, beginning: Beginning | None = None) -> None:
        """Begin in the first phase.

        Args:
            on_point: is called with (phase or write point, step, model) at each; for faults on
                purpose.
            beginning: is told, too; None: nothing counts.
        """
        self.step, self.phase, self.write_point = 0, PHASES[0], ""
        self.model: Model | None = None
        self._on_point, self.stopwatch = on_point, Stopwatch()
        self.beginning = beginning or Beginning()

    def enter(self, phase: str, model: Model | None = None) -> None:
        """The training loop enters a phase, with this model if one is at work."""
        self.phase, self.model = phase, model
        self.stopwatch.enter(phase)
        self.beginning.enter(BEGINNINGS.get(phase, STEP))
        self._on_point(phase, self.step, model)

    def enter_write(self, point: str, step: int) -> None:
        """The writer of the checkpoint of ``step`` comes to a point; empty when it is done."""
        self.write_point = point
        self._on_point(point, step, None)
