"""What a run tells: metrics.jsonl, TensorBoard, a console line, log.txt."""

import json
import math
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from megalite.errors import DataError

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
}


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
        if not is_writer:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "log.txt").touch()
        except OSError as error:
            raise DataError(f"--run.folder {folder}: can't be written: {error.strerror}") from None
        if board:
            self._board = _summary_writer(self.folder / "tensorboard")

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
        partial.write_text("".join(kept), encoding="utf-8")
        partial.rename(path)

    def metrics(self, step: int, values: dict[str, float], show: bool) -> None:
        """Write one step's metrics, and show them on the console if ``show``."""
        if not self.is_writer:
            return
        row = {"step": step, **{k: v if math.isfinite(v) else str(v) for k, v in values.items()}}
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        if show:
            self._show(step, values)

    def _show(self, step: int, values: dict[str, float]) -> None:
        parts = [f"step {step}/{self._total}"]
        parts += [form.format(values[key]) for key, form in SHOWN.items() if key in values]
        if "step_s" in values:
            parts.append(f"{_duration((self._total - step) * values['step_s'])} left")
        line = " | ".join(parts)
        self._write_log(line)
        if sys.stdout.isatty():
            width = shutil.get_terminal_size().columns - 1
            sys.stdout.write("\r\x1b[K" + line[:width])
            self._line_open = True
        else:
            sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def say(self, text: str) -> None:
        """Say one thing on the console and in log.txt."""
        if not self.is_writer:
            return
        self._write_log(text)
        sys.stdout.write(("\n" if self._line_open else "") + text + "\n")
        sys.stdout.flush()
        self._line_open = False

    def _write_log(self, text: str) -> None:
        with open(self.folder / "log.txt", "a", encoding="utf-8") as file:
            file.write(text + "\n")

    def write(self, name: str, text: str) -> None:
        """Write a file of the folder, such as config.toml."""
        if self.is_writer:
            (self.folder / name).write_text(text, encoding="utf-8")

    def samples(self, rows: list[dict[str, Any]]) -> None:
        """Append samples."""
        if self.is_writer:
            with open(self.folder / "samples.jsonl", "a", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    def close(self) -> None:
        """End the console line and TensorBoard's files."""
        if self._line_open:
            sys.stdout.write("\n")
            self._line_open = False
        if self._board is not None:
            self._board.close()


def _summary_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise DataError(
            "--run.tensorboard true: needs the package tensorboard: install it or say false"
        ) from None
    return SummaryWriter(str(folder))


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def memory_gib(device: torch.device) -> float:
    """Peak memory of this process: the device's, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
