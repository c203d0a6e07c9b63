"""What a run writes into its folder and shows: metrics, samples, log.txt and the console."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megalite.errors import DataError, naming
from megalite.training.metrics.console import Console, whole
from megalite.training.metrics.lines import Lines
from megalite.training.metrics.trackers import Tracker


class RunLog:
    """The files of a run's folder; only the first process writes."""

    def __init__(
        self,
        folder: Path | str,
        is_writer: bool,
        total_steps: int,
        trackers: Callable[[Path], dict[str, Tracker]] = lambda _: {},
        done: Callable[[int], int] = int,
    ) -> None:
        """Open the folder.

        Args:
            folder: of the run.
            is_writer: whether this process writes.
            total_steps: of the run, for the time left.
            trackers: opens those of the run, by name, given the folder.
            done: what was done after so many steps, for the time left.

        Raises:
            DataError: the folder can't be written.
            ConfigError: a tracker can't begin.
        """
        self.folder, self.is_writer = Path(folder), is_writer
        self._console = Console(total_steps, done)
        self._lines = {name: Lines(self.folder / name) for name in ("metrics.jsonl", "log.txt")}
        self._trackers: dict[str, Tracker] = {}
        if not is_writer:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "log.txt").touch()
        except OSError as error:
            raise DataError(f"--run.folder {folder}: can't be written: {error.strerror}") from None
        self._trackers = trackers(self.folder)

    def rewind(self, step: int) -> int:
        """Drop metrics of later steps, before a run resumes from a checkpoint of ``step``.

        Returns:
            How many steps were dropped.
        """
        path = self.folder / "metrics.jsonl"
        if not self.is_writer or not path.exists():
            return 0
        self._lines[path.name].write()
        kept, dropped = [], 0
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                is_kept = json.loads(line)["step"] <= step
            except (ValueError, TypeError, KeyError):
                continue  # cut off by a kill, or damaged by a disk
            if is_kept:
                kept.append(line + "\n")
            else:
                dropped += 1
        partial = path.with_suffix(".partial")
        _write(partial, "".join(kept))
        partial.rename(path)
        return dropped

    def metrics(self, step: int, values: Mapping[str, float], show: bool) -> None:
        """Write one step's metrics, and show them on the console if ``show``."""
        if not self.is_writer:
            return
        row = {"step": step, **{k: v if math.isfinite(v) else str(v) for k, v in values.items()}}
        self._append("metrics.jsonl", json.dumps(row))
        self._track(step, values)
        if show:
            parts = self._console.parts(step, values)
            self._append("log.txt", whole(parts))
            self._console.show(parts)

    def _track(self, step: int, values: Mapping[str, float]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                tracker.add(step, values)
            except Exception as error:  # of somebody else's package, at a disk or in a network
                del self._trackers[name]  # what it lost can't be had again
                self.say(f"{name}: {_in_words(error)}: training goes on without this tracker")

    def say(self, text: str) -> None:
        """Say one thing on the console and in log.txt."""
        if self.is_writer:
            self._append("log.txt", text)
            self._console.say(text)

    def _append(self, name: str, text: str) -> None:
        """Append a line; where the system can't write it, it waits for the next one."""
        lines = self._lines[name]
        was_written, failure = lines.is_written, lines.add(text)
        if failure and was_written:
            self._console.say(f"{failure}: training goes on, and the lines wait until it can")

    def write_lines(self) -> None:
        """Write the lines that wait: those of a checkpoint's steps are there before it is.

        Raises:
            OSError: they can't be written.
        """
        failures = [failure for lines in self._lines.values() if (failure := lines.write())]
        if failures:
            raise OSError("; ".join(failures))

    def write(self, name: str, text: str) -> None:
        """Write a file of the folder, such as config.toml."""
        if self.is_writer:
            _write(self.folder / name, text)

    def samples(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append samples, unless they are the last ones there: a run that is done was run again."""
        path = self.folder / "samples.jsonl"
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if self.is_writer and not (path.exists() and path.read_text("utf-8").endswith(text)):
            _write(path, text, "a")

    def close(self) -> None:
        """End the console's line, and the trackers' runs.

        Raises:
            DataError: lines could not be written all the time.
        """
        self._console.close()
        try:
            self.write_lines()
        except OSError as error:
            raise DataError(f"{error}: the run is saved, these lines are lost") from None
        for name, tracker in self._trackers.items():
            try:
                tracker.close()
            except Exception as error:
                self._console.say(f"{name}: {_in_words(error)}: its last lines are lost")


def _write(path: Path, text: str, mode: str = "w") -> None:
    with naming(path), open(path, mode, encoding="utf-8") as file:
        file.write(text)


def _in_words(error: Exception) -> str:
    """An error of a tracker in a line."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: can't be written: {error.strerror}"
    return str(error).partition("\n")[0] or type(error).__name__
