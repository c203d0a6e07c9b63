"""A run that is asked to stop ends after the step that is under way."""

import os
import signal
from types import FrameType

from megalite.distributed.mesh import Mesh
from megalite.distributed.sums import is_true_anywhere


class StopSignal:
    """SIGTERM and SIGINT ask for a stop at the end of a step; a second one kills.

    Attributes:
        received: the number of the signal that came, 0 for none.
    """

    def __init__(self, mesh: Mesh) -> None:
        """Catch the signals from now on."""
        self._mesh, self.received = mesh, 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.received = number
        signal.signal(number, signal.SIG_DFL)
        if number == signal.SIGINT and self._mesh.world.rank == 0:
            os.write(2, b"\nmegalite: stopping after this step; a second signal stops at once\n")

    def ignore(self) -> None:
        """Ignore SIGTERM from now on: torchrun sends it to all as soon as the first has ended."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def anywhere(self, elsewhere: bool = False) -> bool:
        """Whether a process of the mesh was asked to stop, or says that one ``elsewhere`` was.

        Comm: all-reduce of a number over the mesh.
        """
        is_asked = self.received > 0 or elsewhere
        return is_true_anywhere(is_asked, self._mesh.world, self._mesh.device)
