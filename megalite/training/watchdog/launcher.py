"""The torchrun that started this process: without it nobody would end this process or start it."""

import os
import threading

from megalite.errors import tell

INTERVAL_S = 1.0


def loss_of_launcher(launcher: int) -> str | None:
    """Say that the torchrun that started this process is gone; None while it is there, or was none.

    Args:
        launcher: its process id; 0 without torchrun.
    """
    if not launcher or os.getppid() == launcher:
        return None
    return f"its torchrun (process {launcher}) was killed or crashed"


class LauncherWatch:
    """Ends a process alone when its torchrun is gone; several processes have the monitor."""

    def __init__(self, launcher: int) -> None:
        """Begin to watch."""
        self._launcher, self._is_over = launcher, threading.Event()
        self._thread = threading.Thread(target=self._run, name="launcher's watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(INTERVAL_S):
            lost = loss_of_launcher(self._launcher)
            if lost is not None:
                try:
                    tell(f"rank 0 ends: {lost}")
                finally:
                    os._exit(1)
