"""TensorBoard's files of a run."""

import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from megalite.errors import ConfigError, naming
from megalite.torch_private import is_tensorboard_writer

_NAME = "events.out.tfevents."


class TensorBoard:
    """TensorBoard's files; those of a run that resumes replace the steps after its start."""

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        """Write into ``folder``/tensorboard from the first metrics on; ``about`` is not shown.

        Raises:
            ConfigError: TensorBoard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError(
                "--run.trackers tensorboard: needs the package tensorboard: pip install tensorboard"
            ) from None
        self._folder = folder / "tensorboard"
        self._make_writer: type[SummaryWriter] = SummaryWriter
        self._writer: SummaryWriter | None = None
        threading.excepthook = partial(_keep_silent_for_writer, threading.excepthook)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Write the metrics of a step."""
        with naming(self._folder):
            if self._writer is None:
                _wait_for_a_later_name(self._folder)
                self._writer = self._make_writer(str(self._folder), purge_step=step)
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            with naming(self._folder):
                self._writer.close()


def _wait_for_a_later_name(folder: Path) -> None:
    """Return when a new file of ``folder`` comes after those that are there, or after two seconds.

    TensorBoard reads a folder in the order of its names, which begin with the second in which a
    file was made; of two files of one second the later could come first, and its steps would be
    taken for old ones.
    """
    numbers = [file.name.removeprefix(_NAME).split(".")[0] for file in folder.glob(f"{_NAME}*")]
    newest = max((int(number) for number in numbers if number.isdecimal()), default=0)
    deadline = time.monotonic() + 2
    while time.time() < newest + 1 and time.monotonic() < deadline:
        time.sleep(0.05)


def _keep_silent_for_writer(
    others: Callable[[threading.ExceptHookArgs], object], raised: threading.ExceptHookArgs
) -> None:
    """Say nothing when TensorBoard's thread ends: the next write raises its error."""
    if not is_tensorboard_writer(raised.thread):
        others(raised)
