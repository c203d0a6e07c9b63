"""Who is to blame when a run stands still, from what each process last said of itself."""

from collections import defaultdict
from dataclasses import asdict, dataclass, field
from typing import Any

from megalite.training.heartbeat import PHASES, WAIT


@dataclass(frozen=True)
class Sign:
    """What one process says of itself, some times a minute.

    Attributes:
        rank: of the run.
        host: where it runs.
        pid: its process id there.
        born: when the process started, in the kernel's clock ticks; tells a pid's reuse.
        space: what process ids are counted in on that host.
        step: under way.
        phase: of the training loop.
        writing: what the checkpoint's writer is at, or empty.
        where: the code that its main thread is in.
        waits: whether that is a call of torch.distributed.
        still_s: seconds since its main thread moved.
        calls: collectives begun in each process group of several, by the group's name.
        state: running, or ended.
        beat: counts up; a process whose count stands still is stopped, gone or unreachable.
    """

    rank: int
    host: str = "?"
    pid: int = 0
    born: int = 0
    space: str = ""
    step: int = 0
    phase: str = PHASES[0]
    writing: str = ""
    where: str = ""
    waits: bool = False
    still_s: float = 0.0
    calls: dict[str, int] = field(default_factory=dict)
    state: str = "running"
    beat: int = 0

    def name(self) -> str:
        """Rank, host, process, step and phase in words."""
        writing = f" (writing a checkpoint: {self.writing})" if self.writing else ""
        return (
            f"rank {self.rank} ({self.host}, process {self.pid}) in step {self.step}, "
            f"{self.phase}{writing}"
        )

    def line(self) -> str:
        """All of it, for the report."""
        calls = ", ".join(f"{group} {count}" for group, count in sorted(self.calls.items()))
        return (
            f"{self.name()}: {self.state}, main thread still for {self.still_s:.1f} s at "
            f"{self.where or 'unknown'}; collectives begun: {calls or 'none'}"
        )

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def blame(signs: list[Sign]) -> str:
    """Say which processes hold the run up, when all of them answer but none moves.

    A process that has begun fewer collectives of a group than the group's others holds them up. If
    each of several is behind in some group, they disagree on what comes next, and the one furthest
    on in the step left a collective out; so it did if counts are equal and places differ. One that
    waits for work holds nobody up.
    """
    running = [sign for sign in signs if sign.state == "running"]
    running = [sign for sign in running if sign.phase != WAIT] or running
    behind = _behind(running)
    if not behind:
        return _apart(running)
    ranks = sorted(behind, key=lambda rank: _place(behind[rank][0]))
    if len(ranks) == 1 or _place(behind[ranks[0]][0]) == _place(behind[ranks[-1]][0]):
        return "; ".join(f"{behind[rank][0].name()} is stuck: {behind[rank][1]}" for rank in ranks)
    sign, lag = behind[ranks[-1]]
    others = ", ".join(f"rank {rank}" for rank in ranks[:-1])
    return f"{sign.name()} left out a collective that {others} made: {lag}"


def _place(sign: Sign) -> tuple[int, int]:
    return sign.step, PHASES.index(sign.phase)


def _behind(signs: list[Sign]) -> dict[int, tuple[Sign, str]]:
    """Each process that is behind in a group, with where it is and by how much."""
    most: dict[str, int] = defaultdict(int)
    for sign in signs:
        for group, count in sign.calls.items():
            most[group] = max(most[group], count)
    found = {}
    for sign in signs:
        lags = [
            f"it has begun {count} of {most[group]} collectives of {group}"
            for group, count in sign.calls.items()
            if count < most[group]
        ]
        if lags:
            found[sign.rank] = (sign, f"{'; '.join(lags)}; it is at {sign.where or 'unknown'}")
    return found


def _apart(signs: list[Sign]) -> str:
    """Without a count to go by: who doesn't wait for others, or waits at another place."""
    idle = [sign for sign in signs if not sign.waits]
    if idle and len(idle) < len(signs):
        return "; ".join(f"{sign.name()} is stuck at {sign.where or 'unknown'}" for sign in idle)
    first, last = min(signs, key=_place), max(signs, key=_place)
    if _place(first) == _place(last):
        return f"all processes stand still in step {last.step}, {last.phase}, at {last.where}"
    return (
        f"{last.name()} is out of step: it waits at {last.where or 'unknown'}, and rank "
        f"{first.rank} in step {first.step}, {first.phase}, at {first.where or 'unknown'}: one of "
        "them left out a collective or made one too many"
    )
