"""Files in a run's folder that ask it for something: ``stop`` and ``save``."""

import time
from pathlib import Path

INTERVAL_S = 1.0  # between looks, which a file system over a network may take long for


class Switches:
    """What the first process finds in the run's folder, and on its clock."""

    def __init__(self, folder: Path, most_minutes: float, looks: bool) -> None:
        """Start the clock.

        Args:
            folder: of the run.
            most_minutes: after which the run ends; 0: never.
            looks: whether this process looks; one of the run does.
        """
        self._folder, self._most_s, self._looks = folder, 60.0 * most_minutes, looks
        self._started, self._looked = time.monotonic(), 0.0

    def look(self) -> tuple[bool, bool]:
        """Whether to stop, and to save; a file that says so is removed."""
        now = time.monotonic()
        if not self._looks:
            return False, False
        is_late = bool(self._most_s) and now - self._started >= self._most_s
        if now - self._looked < INTERVAL_S:
            return is_late, False
        self._looked = now
        return self._take("stop") or is_late, self._take("save")

    def _take(self, name: str) -> bool:
        path = self._folder / name
        if not path.exists():
            return False
        try:
            path.unlink()
        except OSError:
            return False  # a folder, or another process was first
        return True
