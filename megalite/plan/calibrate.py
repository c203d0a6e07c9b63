"""Constants from a user's own run: the steps in its metrics, its config beside them."""

import dataclasses
import json
import math
import statistics
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from megalite.errors import ConfigError, naming
from megalite.plan.constants import NAMES, Constants
from megalite.plan.devices import Cluster
from megalite.plan.job import Job
from megalite.plan.step import step_seconds

COMPUTING = ("product", "batched", "fused", "memory")
FIRST_STEPS = 2  # of a run, which also compile and warm up
FACTORS = (1e-4, 1e4)


@dataclass(frozen=True)
class Calibration:
    """What a run's steps say.

    Attributes:
        constants: that predict them.
        steps: how many were measured.
        measured: seconds of a step, the median.
        predicted: seconds by the constants before.
        after: seconds by the constants now.
    """

    constants: Constants
    steps: int
    measured: float
    predicted: float
    after: float


def calibrated(run: Path, job: Job, cluster: Cluster, start: Constants) -> Calibration:
    """Scale the constants of computing so that a run's median step is predicted.

    Args:
        run: a run's folder, with metrics.jsonl.
        job: what it trained, in its layout.
        cluster: where it ran.
        start: constants to scale.

    Raises:
        ConfigError: the folder lacks what is needed.
    """
    seconds, rates = _measured(run)
    measured = statistics.median(seconds)
    job = _with_copies(job, measured, statistics.median(rates))
    low, high = FACTORS
    for _ in range(60):
        factor = (low * high) ** 0.5
        found = step_seconds(job, cluster, _scaled(start, factor)).total
        low, high = (factor, high) if found > measured else (low, factor)
    constants = _scaled(start, high)
    before, after = (step_seconds(job, cluster, c).total for c in (start, constants))
    if abs(after / measured - 1) > 0.01:
        raise ConfigError(
            f"--calibrate {run}: {measured:.4g} s a step can't be met: collectives alone take "
            f"{after:.4g} s by this network; name the one that it ran on, or a run on fewer devices"
        )
    return Calibration(constants, len(seconds), measured, before, after)


def _scaled(constants: Constants, factor: float) -> Constants:
    values = {name: getattr(constants, name) * factor for name in COMPUTING}
    spent = {name: getattr(constants, name) / factor for name in ("block_s", "launch_s")}
    return dataclasses.replace(constants, **values, **spent)


def _measured(run: Path) -> tuple[list[float], list[float]]:
    """Seconds and TFLOP/s a device of a run's steps."""
    path = run / "metrics.jsonl"
    with naming(path):
        lines = path.read_text(encoding="utf-8").splitlines()
    steps = []
    for number, line in enumerate(lines, 1):
        try:
            one = json.loads(line)
        except ValueError:
            raise ConfigError(f"--calibrate {run}: metrics.jsonl:{number} is no JSON") from None
        if isinstance(one, dict) and "step_s" in one and "tflops_per_rank" in one:
            figures = one["step_s"], one["tflops_per_rank"]
            if not all(isinstance(x, int | float) and 0 < x < math.inf for x in figures):
                raise ConfigError(
                    f"--calibrate {run}: metrics.jsonl:{number}: step_s and tflops_per_rank must "
                    f"be numbers above 0, not {figures[0]!r} and {figures[1]!r}"
                )
            steps.append(figures)
    steps = steps[FIRST_STEPS:]
    if not steps:
        raise ConfigError(
            f"--calibrate {run}: metrics.jsonl needs steps with step_s and tflops_per_rank after "
            f"the first {FIRST_STEPS}: train a few more steps"
        )
    return [one[0] for one in steps], [one[1] for one in steps]


def _with_copies(job: Job, seconds: float, tflops: float) -> Job:
    """A run as a job; how many processes it had is told by what each of them did."""
    parallel = job.parallel
    processes = job.operations.model / (seconds * tflops * 1e12)
    copies = parallel.replicate or max(
        round(processes / (job.devices / max(parallel.replicate, 1))), 1
    )
    return replace(job, parallel=parallel.model_copy(update={"replicate": copies}))


def write_calibration(path: Path, kind: str, constants: Constants, steps: int) -> None:
    """Write constants for ``--calibration``."""
    date = datetime.now(timezone.utc).date().isoformat()
    values = {"kind": kind, "date": date, "steps": steps, **dataclasses.asdict(constants)}
    with naming(path):
        path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def read_calibration(path: Path, kind: str) -> Constants:
    """Read constants that :func:`write_calibration` wrote.

    Raises:
        ConfigError: the file is of another kind of device, or lacks a constant.
    """
    with naming(path):
        text = path.read_text(encoding="utf-8")
    needs = f"--calibration {path}: needs the constants that --calibrate writes"
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ConfigError(f"{needs}: it is no table of them")
        found = str(values["kind"])
        constants = Constants(**{name: float(values[name]) for name in NAMES})
    except KeyError as error:
        raise ConfigError(f"{needs}: it has no {error}") from None
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{needs}: {error}") from None
    if not all(0 < value < math.inf for value in dataclasses.asdict(constants).values()):
        raise ConfigError(f"{needs}: numbers above 0")
    if found != kind:
        raise ConfigError(f"--calibration {path}: is of a {found}, --gpu needs one of a {kind}")
    return constants
