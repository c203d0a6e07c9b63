"""The signals that ask a run to stop."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from megalite.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT)
BEFORE_FIRST_STEP = "stopped on request before a step was done; there is nothing to save"
WAIT = b"\nmegalite: stopping after this step; a second signal stops at once\n"


class StopRequest:
    """SIGTERM and SIGINT ask for a stop at the end of a step; a second one kills. SIGUSR1 saves.

    Attributes:
        received: the number of the signal that asks to stop, 0 for none.
        wants_save: whether a signal asks to save and go on.
    """

    def __init__(self) -> None:
        """Catch nothing yet."""
        self.received, self.wants_save = 0, False
        self._kept: dict[int, Any] = {}
        self._speaks, self._ends_at_once, self._is_ignoring = True, False, False

    @contextmanager
    def caught(self, rank: int = 0, world_size: int = 1) -> Iterator[None]:
        """Catch the signals in a block, and put back what was there before.

        Python hands signals to the main thread alone: a run in another catches none. Within a block
        of the same request a second one changes nothing.

        Args:
            rank: of this process; the first says that it is stopping.
            world_size: processes of the run; one alone may stop anywhere before its first step.

        Raises:
            Stopped: a signal came before the first step.
        """
        if self._kept or threading.current_thread() is not threading.main_thread():
            yield
            return
        self.received = 0
        self._speaks, self._ends_at_once = rank == 0, world_size == 1
        self._kept = {number: signal.signal(number, self._note) for number in SIGNALS}
        self._kept[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._note_save)
        try:
            yield
        finally:
            for number, handler in self._kept.items():
                if number != signal.SIGTERM or not self._is_ignoring:
                    signal.signal(number, signal.SIG_DFL if handler is None else handler)
            self._kept = {}

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.received = number
        signal.signal(number, signal.SIG_DFL)
        if self._ends_at_once:
            raise Stopped(BEFORE_FIRST_STEP)
        if number == signal.SIGINT and self._speaks:
            os.write(2, WAIT)

    def _note_save(self, _number: int, _frame: FrameType | None) -> None:
        self.wants_save = True

    def begin(self) -> None:
        """The first step begins: from here on a stop waits for the end of a step."""
        self._ends_at_once = False

    def ignore(self) -> None:
        """Ignore SIGTERM for good: torchrun sends it to all as soon as the first has ended."""
        if self._kept:
            self._is_ignoring = True
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
