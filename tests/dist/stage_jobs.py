"""Whole runs of the stages as jobs: what the command does, with first gradients kept."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from megalite.cli import find_command, load_config
from megalite.parallel.launch import Launch
from megalite.stages import setup
from megalite.training.trainer import Learner
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
