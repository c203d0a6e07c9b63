"""What a run tells: metrics.jsonl, TensorBoard, a console line, log.txt."""

import json
import math
import resource
import shutil
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from megalite.errors import DataError, naming
from megalite.torch_private import is_tensorboard_writer

SHOWN = {
    "loss": "loss {:.4f}",
    "heldout_loss": "held-out {:.4f}",
    "heldout_accuracy": "held-out accuracy {:.1%}",
    "reward": "reward {:.3f}",
    "kl": "kl {:.3f}",
    "heldout_reward": "held-out reward {:.3f}",
    "heldout_kl": "held-out kl {:.3f}",
    "learning_rate": "lr {:.2e}",
    "tokens_per_s": "{:,.0f} tokens/s",
    "mfu": "MFU {:.1%}",
    "hfu": "HFU {:.1%}",
    "bubble": "bubble {:.1%}",
    "bubble_theory": "in theory {:.1%}",
    "left_s": "{} left",
}
# What a narrow terminal does without, first to last.
OMITTED = (
    "learning_rate",
    "heldout_kl",
    "kl",
    "heldout_loss",
    "hfu",
    "mfu",
    "bubble_theory",
    "bubble",
    "tokens_per_s",
    "heldout_reward",
    "reward",
)
SEPARATOR = " | "


class RunLog:
    """The files of a run's folder; only the first process writes."""

    def __init__(self, folder: Path | str, is_writer: bool, total_steps: int, board: bool) -> None:
        """Open the folder.

        Args:
            folder: of the run.
            is_writer: whether this process writes.
            total_steps: of the run, for the time left.
            board: whether TensorBoard's files are written.

        Raises:
            DataError: the folder can't be written.
        """
        self.folder, self.is_writer = Path(folder), is_writer
        self._total = total_steps
        self._board: Any = None
        self._line_open = False
        self._begun: tuple[int, float] | None = None  # the first step that was shown, and when
        if not is_writer:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "log.txt").touch()
        except OSError as error:
            raise DataError(f"--run.folder {folder}: can't be written: {error.strerror}") from None
        if board:
            self._board = _Board(self.folder / "tensorboard")

    def rewind(self, step: int) -> None:
        """Drop metrics of later steps, before a run goes on from a checkpoint of ``step``."""
        path = self.folder / "metrics.jsonl"
        if not self.is_writer or not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                break  # the last line of a run that was killed
            if row["step"] <= step:
                kept.append(line + "\n")
        partial = path.with_suffix(".partial")
        _write(partial, "".join(kept))
        partial.rename(path)

    def metrics(self, step: int, values: dict[str, float], show: bool) -> None:
        """Write one step's metrics, and show them on the console if ``show``."""
        if not self.is_writer:
            return
        row = {"step": step, **{k: v if math.isfinite(v) else str(v) for k, v in values.items()}}
        _write(self.folder / "metrics.jsonl", json.dumps(row) + "\n", "a")
        if self._board is not None:
            self._board.add(step, values)
        if show:
            self._show(step, values)

    def _show(self, step: int, values: dict[str, float]) -> None:
        parts = {"step": f"step {step}/{self._total}"}
        parts |= {key: form.format(values[key]) for key, form in SHOWN.items() if key in values}
        if (left := self._left_s(step)) is not None:
            parts["left_s"] = SHOWN["left_s"].format(_duration(left))
        line = SEPARATOR.join(parts.values())
        self._write_log(line)
        if sys.stdout.isatty():
            width = shutil.get_terminal_size().columns - 1
            sys.stdout.write("\r\x1b[K" + fitted(parts, width))
            self._line_open = True
        else:
            sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def _left_s(self, step: int) -> float | None:
        """Seconds to the end, from the mean of the steps so far, evaluations and saves included."""
        now = time.monotonic()
        if self._begun is None:
            self._begun = step, now
        steps = step - self._begun[0]
        return (self._total - step) * (now - self._begun[1]) / steps if steps > 0 else None

    def say(self, text: str) -> None:
        """Say one thing on the console and in log.txt."""
        if not self.is_writer:
            return
        self._write_log(text)
        sys.stdout.write(("\n" if self._line_open else "") + text + "\n")
        sys.stdout.flush()
        self._line_open = False

    def _write_log(self, text: str) -> None:
        _write(self.folder / "log.txt", text + "\n", "a")

    def write(self, name: str, text: str) -> None:
        """Write a file of the folder, such as config.toml."""
        if self.is_writer:
            _write(self.folder / name, text)

    def samples(self, rows: list[dict[str, Any]]) -> None:
        """Append samples."""
        if self.is_writer:
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
            _write(self.folder / "samples.jsonl", "".join(lines), "a")

    def close(self) -> None:
        """End the console line and TensorBoard's files."""
        if self._line_open:
            sys.stdout.write("\n")
            self._line_open = False
        if self._board is not None:
            self._board.close()


def fitted(parts: dict[str, str], width: int) -> str:
    """The parts of a line in ``width`` columns, the less telling ones left out as need be."""
    kept = dict(parts)
    for key in OMITTED:
        if len(SEPARATOR.join(kept.values())) <= width:
            break
        kept.pop(key, None)
    return SEPARATOR.join(kept.values())[:width]


def _write(path: Path, text: str, mode: str = "w") -> None:
    with naming(path), open(path, mode, encoding="utf-8") as file:
        file.write(text)


def _except(others: Callable[[Any], object], raised: Any) -> None:
    """A thread's end: TensorBoard's says nothing, as its error is raised by the next write."""
    if not is_tensorboard_writer(raised.thread):
        others(raised)


class _Board:
    """TensorBoard's files; those of a run that goes on replace the steps after its start."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise DataError(
                "--run.tensorboard true: needs the package tensorboard: install it or say false"
            ) from None
        self._folder, self._make = folder, SummaryWriter
        self._writer: Any = None
        threading.excepthook = partial(_except, threading.excepthook)

    def add(self, step: int, values: dict[str, float]) -> None:
        with naming(self._folder):
            if self._writer is None:
                self._writer = self._make(str(self._folder), purge_step=step)
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            with naming(self._folder):
                self._writer.close()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def memory_gib(device: torch.device) -> float:
    """Peak memory of this process: the device's, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
