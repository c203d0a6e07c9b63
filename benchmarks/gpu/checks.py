"""The list of checks, in two parts, the most informative first."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.gpu.here import Here


@dataclass(frozen=True)
class Check:
    """Something that is asked of a GPU.

    Attributes:
        name: of it.
        part: of the run, 1 (is it right) or 2 (how fast).
        seconds: its share of the default time.
        target: ``module:function`` below benchmarks.gpu.
    """

    name: str
    part: int
    seconds: float
    target: str

    def run(self, here: Here) -> None:
        """Run it in this process."""
        module, _, function = self.target.partition(":")
        work: Callable[[Here], None] = getattr(
            importlib.import_module(f"benchmarks.gpu.{module}"), function
        )
        work(here)


FIRST = Check("import", 0, 25, "machine:run")  # of each part; a build follows where it fails
BUILD = Check("build", 0, 200, "machine:build")
CHECKS = (
    Check("operators", 1, 60, "operators:run"),
    Check("stages", 1, 60, "stages:run"),
    Check("rows", 1, 15, "rows:run"),
    Check("extremes", 1, 25, "extremes:run"),
    Check("curve", 1, 30, "stages:curve"),
    Check("unaligned", 1, 8, "operators:run_apart"),
    Check("racecheck", 1, 27, "external:racecheck"),
    Check("memcheck", 1, 27, "external:memcheck"),
    Check("tests", 1, 22, "external:tests"),
    Check("step", 2, 40, "step:ours"),
    Check("attention speed", 2, 44, "speed:run"),
    Check("step of transformers", 2, 25, "step:peer"),
    Check("rows speed", 2, 18, "speed_rows:run"),
    Check("decode", 2, 20, "decode:run"),
    Check("step of transformers compiled", 2, 35, "step:peer_compiled"),
    Check("ppo", 2, 40, "stages:ppo"),
    Check("counters", 2, 15, "external:counters"),
)
INNER = (Check("attention_once", 0, 20, "external:attention_once"),)  # of other checks


def named(name: str) -> Check:
    """The check of this name.

    Raises:
        SystemExit: there is none.
    """
    for check in (FIRST, BUILD, *CHECKS, *INNER):
        if check.name == name:
            return check
    known = ", ".join(check.name for check in CHECKS)
    raise SystemExit(f"benchmarks.gpu: no check is called {name!r}; there are {known}")
