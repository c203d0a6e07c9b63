"""Whole runs of the stages as jobs: what the command does, with first gradients kept."""

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from megalite.cli import find_command, load_config
from megalite.distributed.launch import Launch
from megalite.errors import Stopped
from megalite.stages import setup
from megalite.training.learner import Learner
from tests.dist.jobs import GradientsOfFirstStep


def run_stage(launch: Launch, words: list[str]) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Run a command's stage; its metrics a step, and its learners' first gradients by name."""
    kept: dict[str, GradientsOfFirstStep] = {}

    class Recorded(Learner):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            kept[self.name] = GradientsOfFirstStep(self)

    command, rest = find_command(words)
    config, module = load_config(command, rest)
    setup.Learner = Recorded
    try:
        assert module.run(config, launch) == 0
    finally:
        setup.Learner = Learner
    lines = (Path(config.run.folder) / "metrics.jsonl").read_text().splitlines()
    gradients = {f"{n}.{k}": g for n, held in kept.items() for k, g in held.kept.items()}
    return [json.loads(line) for line in lines], gradients


def run_until_stopped(launch: Launch, words: list[str], rank: int) -> str:
    """Run a command's stage; ``rank`` gets SIGTERM after the first step. What the stop says."""
    command, rest = find_command(words)
    config, module = load_config(command, rest)
    metrics = Path(config.run.folder) / "metrics.jsonl"

    def stop() -> None:
        while not (metrics.exists() and metrics.read_text()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    if launch.rank == rank:
        threading.Thread(target=stop, daemon=True).start()
    try:
        module.run(config, launch)
    except Stopped as stopped:
        return str(stopped)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return "it was not stopped"
