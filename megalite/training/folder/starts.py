"""Starts of a run that failed one after another without a checkpoint between them.

A run whose every start fails at the same place would otherwise use up its restarts, and the hours
of many nodes with them. The list is in the run's folder while a start is under way, and goes when
one ends well.
"""

import json
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from megalite.data.ramp import Ramp
from megalite.data.skipping import in_words, place_of
from megalite.distributed.launch import Launch
from megalite.errors import RankFailure, Stopped, UserError
from megalite.training.checkpoint.files import write_synced
from megalite.training.checkpoint.manifest import Facts
from megalite.training.checkpoint.search import newest_facts
from megalite.training.folder.history import DONE, STOPPED, History
from megalite.training.folder.skips import skipped_of
from megalite.training.watchdog.heartbeat import Heartbeat

NAME, BAD_HOSTS = "starts.json", "bad-hosts"
TIME = "%Y-%m-%d %H:%M:%S"  # begins a line of a fault's report
IN_STEP, OF_RANK = re.compile(r"\bin step (\d+)"), re.compile(r"\brank (\d+) \(([^,)]+)")


@dataclass
class Start:
    """A start of a run.

    Attributes:
        step: of the newest checkpoint that it found; 0 without any.
        restart: torchrun's count.
        time: when it began.
        fault: how it failed, if it could say so.
        reported: bytes of earlier faults in the report of its restart count.
        went_on: step that it went on from, of a local checkpoint perhaps; -1: not known.
    """

    step: int
    restart: int
    time: str
    fault: str = ""
    went_on: int = -1
    reported: int = 0


class Starts:
    """The starts of a run that have not ended well; the first process keeps them."""

    def __init__(self, folder: Path, most: int, ramp: Ramp) -> None:
        """Describe a run.

        Args:
            folder: of the run.
            most: failures in a row after which a restart is refused; 0: never.
            ramp: samples of each step.
        """
        self._folder, self._most, self._ramp = folder, most, ramp
        self._starts: list[Start] = []
        self._history: History | None = None  # of the first process

    def begin(self, launch: Launch) -> str:
        """Note a start; says why it should not be made, or nothing.

        A start by hand is always made: it begins a list of its own.
        """
        found = newest_facts(self._folder / "checkpoints")
        facts = found[1] if found else {"step": 0, "consumed_samples": 0}
        said = self._count(launch, facts) if self._most else ""
        if not said:
            self._history = History(self._folder)
            self._history.begin(facts["step"], launch.restart)
        return said

    def _count(self, launch: Launch, facts: Facts) -> str:
        """Add this start to the list of those that failed, unless it has too many."""
        past = [one for one in self._read() if one.step == facts["step"]]
        past = [one for one in past if one.went_on == past[-1].went_on]
        past = past if launch.restart or launch.is_requeued else []
        for start in past:
            start.fault = self._reported(start) or start.fault
        if len(past) >= self._most:
            return self._diagnosis(past, facts)
        start = Start(facts["step"], launch.restart, time.strftime(TIME))
        start.reported = len(self._report_of(start))
        self._starts = [*past, start]
        self._write()
        return ""

    def went_on_from(self, step: int) -> None:
        """Note the step of the checkpoint that this start goes on from: a later one is progress."""
        if self._history is not None:
            self._history.go_on_from(step)
        if self._starts:
            self._starts[-1].went_on = step
            self._keep()

    def note_first_step(self, seconds: Mapping[str, float]) -> None:
        """Note how long this start took to the end of its first step, by part."""
        if self._history is not None:
            self._history.first_step(seconds)

    def end(self, fault: str = "") -> None:
        """Note how this start ended; with a fault it stays in the list."""
        if not self._starts:
            return
        self._starts[-1].fault = fault
        self._starts = self._starts if fault else []
        self._keep()

    def _withdraw(self) -> None:
        """Take this start back, which was refused before a step and changes nothing."""
        if self._starts:
            self._starts = self._starts[:-1]
            self._keep()

    def _keep(self) -> None:
        """Write the list, or remove its file if it is empty."""
        with suppress(OSError):  # a full disk, say, which the fault tells then
            if self._starts:
                self._write()
            else:
                (self._folder / NAME).unlink(missing_ok=True)

    @contextmanager
    def noted(self, heartbeat: Heartbeat) -> Iterator[None]:
        """Note how a block ends, with the step and phase that ``heartbeat`` is in."""
        how = DONE
        try:
            with self._counted(heartbeat):
                yield
        except Stopped:
            how = STOPPED
            raise
        except BaseException as error:
            how = str(error) or type(error).__name__
            raise
        finally:
            if self._history is not None:
                self._history.end(heartbeat.step, how)

    @contextmanager
    def _counted(self, heartbeat: Heartbeat) -> Iterator[None]:
        """Note a block's failure in the list; see :meth:`noted`."""
        try:
            yield
        except Stopped:
            self.end()
            raise
        except RankFailure as error:
            self.end(str(error))
            raise
        except UserError as error:
            if heartbeat.step:
                self.end(str(error))
            else:
                self._withdraw()
            raise
        except Exception as error:
            where = f"rank 0 ({socket.gethostname()}) in step {heartbeat.step}, {heartbeat.phase}"
            self.end(f"{where}: {type(error).__name__}: {error}")
            raise
        self.end()

    def _read(self) -> list[Start]:
        try:
            text = (self._folder / NAME).read_text(encoding="utf-8")
            return [Start(**entry) for entry in json.loads(text)]
        except (OSError, ValueError, TypeError):
            return []  # a file that was cut off tells nothing

    def _write(self) -> None:
        entries = [asdict(start) for start in self._starts]
        write_synced(self._folder / NAME, json.dumps(entries, indent=1) + "\n")

    def _reported(self, start: Start) -> str:
        """What a start's watchdog reported, or nothing: a process alone may be killed unseen."""
        new = self._report_of(start)[start.reported :].decode("utf-8", "replace")
        return new.partition("\n")[0][len(start.time) + 1 :]

    def _report_of(self, start: Start) -> bytes:
        """What watchdogs have reported at a restart count, by the order of which its starts are.

        Not by the times in it: a clock may be set back.
        """
        path = self._folder / "faults" / f"restart-{start.restart}" / "report.txt"
        try:
            return path.read_bytes()
        except OSError:
            return b""

    def _diagnosis(self, past: Sequence[Start], facts: Facts) -> str:
        """What failed starts have in common, and what to do."""
        faults = [start.fault for start in past if start.fault]
        where = "its beginning" if not facts["step"] else f"step {facts['step']}"
        text = (
            f"--run.folder {self._folder}: {len(past)} starts in a row went on from {where} and "
            "failed before another checkpoint"
        )
        if not faults:
            killer = "killed without a word, perhaps by the kernel for their memory"
            return f"{text}, {killer}: {self._advice()}"
        text += f", the last by: {faults[-1]}"
        steps = Counter(match[1] for fault in faults if (match := IN_STEP.search(fault)))
        hosts = Counter(match[2] for fault in faults if (match := OF_RANK.search(fault)))
        for what, found in (("in step", steps), ("on", hosts)):
            if found:
                counts = (f"{one} {count} times" for one, count in found.most_common())
                text += f"; {what} {', '.join(counts)}"
        if len(steps) == 1:
            (step,) = steps
            text += f"; that step has samples {self._samples(int(step), facts)} of the run's order"
        return f"{text}: {self._advice()}"

    def _samples(self, step: int, facts: Facts) -> str:
        """Places in the run's order of a step's samples."""
        skipped = skipped_of(facts)
        first = self._ramp.after(max(step - facts["step"] - 1, 0), facts["consumed_samples"])
        last = place_of(first + self._ramp.at(first) - 1, skipped)
        return in_words(((place_of(first, skipped), last + 1),))

    def _advice(self) -> str:
        return (
            f"stacks are in {self._folder / 'faults'}; mend the cause (a bad host goes into "
            f"{self._folder / BAD_HOSTS}, bad samples into --train.skip) and start again by hand"
        )
