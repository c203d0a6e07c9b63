"""Jobs of steps that are computed again, while a rank computes wrongly."""

import json
from pathlib import Path

from megalite.distributed.launch import Launch
from megalite.errors import MegaliteError
from megalite.training.faults import Fault, FaultConfig
from megalite.training.learner import Learner
from megalite.training.watchdog.heartbeat import Heartbeat
from tests.unit.training.runs import Run


def rechecked(
    launch: Launch, folder: str, layout: dict[str, int], recheck: dict, fault: dict
) -> tuple[str, list, list, str, int]:
    """A run with a fault in the third of five steps.

    Returns:
        What it said, its curve, the metric ``recheck`` of each step, why it ended and with which
        exit code.
    """
    config = FaultConfig(kind="flip", step=3, **fault) if fault else FaultConfig()

    def arm(step: int, learner: Learner) -> None:
        if step == 1:
            learner.heartbeat = Heartbeat(Fault(config, launch))
        learner.heartbeat.step = step
        if step == 3 and recheck.get("suspicious"):
            learner.recheck.bounds = {"loss": 1.0}

    run, why, code = Run(Path(folder), launch=launch, **layout), "", 0
    try:
        run.go(5, arm, recheck=recheck)
    except MegaliteError as error:
        why, code = str(error), error.exit_code
    path = Path(folder) / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return run.log, run.rows, [row.get("recheck") for row in rows], why, code
