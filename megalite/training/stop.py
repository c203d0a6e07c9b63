"""What a run is asked while it lasts: to stop after the step that is under way, to save."""

from collections.abc import Callable
from typing import NamedTuple

import torch.distributed as dist

from megalite.distributed.mesh import Mesh
from megalite.distributed.stop import StopRequest
from megalite.distributed.sums import ask_anywhere


class Asked(NamedTuple):
    """What any process of a mesh was asked, or found out.

    Attributes:
        stop: by a signal.
        end: by the run's folder or its time, for good.
        save: and to go on.
        back: a spike wants the run to go back.
        failed: a save could not be written.
        busy: a checkpoint is being written.
    """

    stop: bool = False
    end: bool = False
    save: bool = False
    back: bool = False
    failed: bool = False
    busy: bool = False

    def __or__(self, other: tuple[bool, ...]) -> "Asked":
        """What is asked by one or the other."""
        return Asked(*(mine or theirs for mine, theirs in zip(self, other, strict=True)))


class StopSignal:
    """What one process is asked, told to all processes of a mesh."""

    def __init__(self, mesh: Mesh, request: StopRequest) -> None:
        """Ask the processes of ``mesh``; ``request`` is this one's."""
        self._mesh, self._request = mesh, request

    @property
    def received(self) -> int:
        """The number of the signal that this process got, 0 for none."""
        return self._request.received

    def ignore(self) -> None:
        """Ignore SIGTERM from now on, where there are other processes that end too."""
        if dist.is_initialized() and dist.get_world_size() > 1:
            self._request.ignore()

    def ask(self, own: Asked) -> Callable[[], Asked]:
        """Begin to ask all processes; the answer is waited for when called.

        Comm: as :func:`ask_anywhere` over the mesh.

        Args:
            own: what this process knows besides its signals.
        """
        request = self._request
        own |= Asked(stop=self.received > 0, save=request.wants_save)
        request.wants_save = False
        answer = ask_anywhere(own, self._mesh.world, self._mesh.device)
        return lambda: Asked(*answer())

    def is_asked(self) -> bool:
        """Whether any process was asked to stop by a signal. Comm: as :meth:`ask`."""
        return self.ask(Asked())().stop
