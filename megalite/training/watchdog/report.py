"""The files of a fault: a report of all processes, and each process's stacks."""

import faulthandler
import os
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from megalite.errors import tell
from megalite.training.watchdog.status import ProcessStatus


class FaultFolder:
    """A folder with ``report.txt`` and each rank's stacks; it is removed if nothing is written.

    Attributes:
        path: of the folder.
    """

    def __init__(self, path: Path, rank: int) -> None:
        """Make the folder, and this rank's file in it."""
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        name = path / f"rank-{rank:05}.txt"
        self._stacks = open(name, "a", encoding="utf-8")  # noqa: SIM115  # open until the run ends

    def exit_unless_renewed(self, seconds: float) -> None:
        """Write the stacks and end the process, unless this is called again in time."""
        faulthandler.dump_traceback_later(seconds, exit=True, file=self._stacks)

    def cancel_exit(self) -> None:
        """Take back :meth:`exit_unless_renewed`."""
        faulthandler.cancel_dump_traceback_later()

    def write_stacks(self) -> None:
        """Write the stacks of all threads of this process."""
        faulthandler.dump_traceback(self._stacks, all_threads=True)
        self._stacks.flush()

    def write_error(self, error: BaseException) -> None:
        """Write an error's traceback among the stacks, if there is room."""
        try:
            self._stacks.write("".join(traceback.format_exception(error)))
            self._stacks.flush()
        except OSError as failure:
            tell(f"{self._stacks.name}: can't be written: {failure.strerror}")

    def report(self, text: str, statuses: Sequence[ProcessStatus], on_stderr: bool) -> None:
        """Say a fault on stderr perhaps, and write it and all statuses to the report."""
        if on_stderr:
            tell(f"{text}; stacks are in {self.path}")
        lines = [time.strftime("%Y-%m-%d %H:%M:%S ") + text]
        lines += [status.line() for status in statuses]
        try:
            with open(self.path / "report.txt", "a", encoding="utf-8") as file:
                file.writelines(line + "\n" for line in lines)
        except OSError as failure:  # a full disk, of which the fault itself may be
            tell(f"{self.path / 'report.txt'}: can't be written: {failure.strerror}")

    def remove_if_empty(self) -> None:
        """Remove what has nothing in it: this rank's file, and the folder."""
        self._stacks.close()
        if not os.path.getsize(self._stacks.name):
            os.unlink(self._stacks.name)
        try:
            self.path.rmdir()
            self.path.parent.rmdir()
        except OSError:
            return  # another process's file is there
