"""Who this process is among the processes of a run."""

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from megalite.distributed.beginning import Beginning
from megalite.distributed.stop import StopRequest
from megalite.errors import ConfigError


@dataclass(frozen=True)
class Launch:
    """torchrun's variables, read once by the command line and passed on.

    Attributes:
        rank: this process, from 0.
        world_size: processes of the run.
        local_rank: this process on its node, which is also its GPU.
        local_world_size: processes of the run on this node.
        restart: how often torchrun has restarted the processes.
        error_file: where torchrun looks for the reason of a failure; empty without torchrun.
        launcher: process id of the torchrun that started this process; 0 without torchrun.
        is_requeued: whether SLURM has queued the job again.
        stop: what asks this process to stop.
        beginning: how the time until the first step is spent.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    restart: int = 0
    error_file: str = ""
    launcher: int = 0
    is_requeued: bool = False
    stop: StopRequest = field(default_factory=StopRequest, compare=False, repr=False)
    beginning: Beginning = field(default_factory=Beginning, compare=False, repr=False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Launch":
        """Read torchrun's variables; without them the process is alone.

        Raises:
            ConfigError: a variable is not a number, or they contradict each other.
        """
        names = {
            "rank": "RANK",
            "world_size": "WORLD_SIZE",
            "local_rank": "LOCAL_RANK",
            "local_world_size": "LOCAL_WORLD_SIZE",
            "restart": "TORCHELASTIC_RESTART_COUNT",
        }
        values: dict[str, Any] = {}
        for key, name in names.items():
            text = environment.get(name)
            if text is None:
                continue
            if not text.isdigit():
                error = ConfigError(
                    f"environment {name}={text!r}: must be a number, as torchrun sets"
                )
                error.speaks = True  # nobody knows which process is the first
                raise error
            values[key] = int(text)
        launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in environment else 0
        error_file = environment.get("TORCHELASTIC_ERROR_FILE", "")
        is_requeued = environment.get("SLURM_RESTART_COUNT", "0") != "0"
        launch = cls(**values, error_file=error_file, launcher=launcher, is_requeued=is_requeued)
        if launch.rank >= launch.world_size or launch.local_rank >= launch.local_world_size:
            raise ConfigError(
                f"environment: rank {launch.rank} of {launch.world_size}, local rank "
                f"{launch.local_rank} of {launch.local_world_size}: start with torchrun, which "
                "sets RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE together"
            )
        return launch

    def end_launcher(self) -> None:
        """Ask the torchrun that started this process to end, so that it doesn't start it again.

        One process of a node asks. torchrun passes SIGTERM on, which this process ignores from here
        on: it ends by itself.
        """
        if self.launcher:
            self.stop.ignore()
            if self.local_rank == 0:
                os.kill(self.launcher, signal.SIGTERM)
