"""A run that is asked to stop ends after the step that is under way."""

from collections.abc import Callable

import torch.distributed as dist

from megalite.distributed.mesh import Mesh
from megalite.distributed.stop import StopRequest
from megalite.distributed.sums import ask_anywhere


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

    def ask(self, elsewhere: bool = False, *flags: bool) -> Callable[[], list[bool]]:
        """Begin to ask what :meth:`anywhere` tells; the answer is waited for when called.

        Comm: all-reduce of a number for each over the mesh.
        """
        asked = (self.received > 0 or elsewhere, *flags)
        return ask_anywhere(asked, self._mesh.world, self._mesh.device)

    def anywhere(self, elsewhere: bool = False, *flags: bool) -> list[bool]:
        """Whether a process of the mesh was asked to stop, or says that one ``elsewhere`` was.

        Of further ``flags``, whether any process has them set.

        Comm: all-reduce of a number for each over the mesh.
        """
        return self.ask(elsewhere, *flags)()
