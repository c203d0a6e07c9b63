"""TensorBoard's files of a run."""

import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from megalite.errors import ConfigError, naming
from megalite.torch_private import is_tensorboard_writer


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
                self._writer = self._make_writer(str(self._folder), purge_step=step)
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            with naming(self._folder):
                self._writer.close()


def _keep_silent_for_writer(
    others: Callable[[threading.ExceptHookArgs], object], raised: threading.ExceptHookArgs
) -> None:
    """Say nothing when TensorBoard's thread ends: the next write raises its error."""
    if not is_tensorboard_writer(raised.thread):
        others(raised)
