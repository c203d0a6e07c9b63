"""When a run's starts began and ended, and how: a line of JSON each in ``history.jsonl``."""

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from megalite.training.metrics.lines import Lines

NAME = "history.jsonl"
DONE, STOPPED = "done", "stopped on request"


@dataclass
class StartNote:
    """A start of a run.

    Attributes:
        began_s: when, in seconds since 1970.
        step: of the checkpoint that it went on from.
        restart: torchrun's count.
        ended_s: when it ended; 0 where it couldn't say so, or hasn't yet.
        reached: step that was under way then, or the last one; 0: not known.
        how: it ended: ``DONE``, ``STOPPED`` or the fault; empty: not known.
        first_step: seconds until the end of its first step, by part; empty: it had none.
    """

    began_s: float
    step: int
    restart: int
    ended_s: float = 0.0
    reached: int = 0
    how: str = ""
    first_step: dict[str, float] = field(default_factory=dict)

    @property
    def is_fault(self) -> bool:
        """Whether it ended by one."""
        return self.how not in (DONE, STOPPED)


class History:
    """Adds to a run's history; the first process does."""

    def __init__(self, folder: Path) -> None:
        """Describe the file."""
        self._lines = Lines(folder / NAME)

    def begin(self, step: int, restart: int) -> None:
        """Note that a start goes on from a step."""
        self._add({"began_s": time.time(), "step": step, "restart": restart})

    def go_on_from(self, step: int) -> None:
        """Note that it is a later step, of a local checkpoint."""
        self._add({"step": step})

    def first_step(self, seconds: Mapping[str, float]) -> None:
        """Note how long it took to the end of the first step, by part."""
        self._add({"first_step": {part: round(value, 3) for part, value in seconds.items()}})

    def end(self, reached: int, how: str) -> None:
        """Note how the start ended, in which step."""
        self._add({"ended_s": time.time(), "reached": reached, "how": how})

    def _add(self, note: Mapping[str, float | int | str | dict[str, float]]) -> None:
        self._lines.add(json.dumps(note))  # what can't be written waits for the next one


def read_history(folder: Path) -> list[StartNote]:
    """The starts of a run, the first one first; without its file none."""
    starts: list[StartNote] = []
    with suppress(FileNotFoundError):
        for line in (folder / NAME).read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, TypeError):  # a line that was cut off tells nothing
                note = json.loads(line)
                if "began_s" in note:
                    starts.append(StartNote(**note))
                elif starts:
                    starts[-1] = StartNote(**{**vars(starts[-1]), **note})
    return starts
