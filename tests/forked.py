"""Commands in processes of their own whose imports are done, which are most of a start."""

import multiprocessing
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        *("torch", "torch.distributed.fsdp", "tests.dist.jobs"),
        *("megalite.stages.pretrain", "megalite.stages.sft", "megalite.stages.ppo"),
    ]
)
TIMEOUT_S = 200


class Forked:
    """``python -m megalite``, but for its imports.

    Attributes:
        pid: of the process.
    """

    def __init__(self, words: Sequence[object], folder: Path, file_bytes: int = 0) -> None:
        """Start it.

        Args:
            words: of the command line.
            folder: is made, for what the process says.
            file_bytes: the most that it may write into a file; 0: any number.
        """
        folder.mkdir()
        self._words, self._said = [str(word) for word in words], folder
        arguments = self._words, folder, file_bytes
        self._process = CONTEXT.Process(target=_run, args=arguments)
        self._process.start()
        self.pid: int = self._process.pid

    def has_ended(self) -> bool:
        """Whether the process has."""
        return self._process.exitcode is not None

    def wait(self) -> subprocess.CompletedProcess:
        """Its exit code and what it said, once it has ended."""
        self._process.join(TIMEOUT_S)
        if not self.has_ended():
            self._process.kill()
            raise subprocess.TimeoutExpired(self._words, TIMEOUT_S)
        said = ((self._said / name).read_text() for name in ("stdout", "stderr"))
        return subprocess.CompletedProcess(self._words, self._process.exitcode, *said)


def _run(words: list[str], folder: Path, file_bytes: int) -> None:
    import torch

    from megalite.cli import main

    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
    if file_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    torch.set_num_threads(1)
    sys.exit(main(words))
