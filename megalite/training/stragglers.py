"""Which processes are slower than the others, from each one's own time for a step.

A process is compared with what most have. Blocked time - asleep, at a disk - is nobody's duty and
is held against all processes; time for a core that other programs have is taken out of it. Time on
a core depends on the work: it is held against the processes that do the same, and not counted for
one whose core others use, which slows down what it computes. GPUs are held against each other by
how long they take for the same product.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import NamedTuple

from pydantic import Field

from megalite.config.section import Section
from megalite.training.metrics.gpu_health import Health
from megalite.training.watchdog.stopwatch import OWN_PHASES, Pace

LEAST_S = 0.005  # a step; what is less is no straggler, however short a step is
CONTENDED = 0.1  # of its own time without a core: other programs slow down what it computes
FIRST_ALONE = "log"  # a phase with much to do for the first process alone


class StragglerConfig(Section):
    """Processes that are slower than the others, which wait for them in each step."""

    every: int = Field(
        10, ge=0, description="steps between comparisons of all processes' own time; 0: never"
    )
    share: float = Field(
        0.25,
        gt=0,
        description="a process is slow if a step of its own is longer than the others' by more "
        "than this share",
    )
    steps: int = Field(
        20, ge=1, description="steps in a row that a process is slow before a line names it"
    )


class Own(NamedTuple):
    """What a process needs for a step; see :class:`Pace` and :class:`Health`."""

    pace: Pace
    health: Health

    def numbers(self) -> list[float]:
        """As a list, to be sent."""
        return [*self.pace.computing, *self.pace.blocked, self.pace.queued, *self.health]

    @classmethod
    def of(cls, numbers: Sequence[float]) -> "Own":
        """From :meth:`numbers`."""
        n = len(OWN_PHASES)
        pace = Pace(list(numbers[:n]), list(numbers[n : 2 * n]), numbers[2 * n])
        return cls(pace, Health(*numbers[2 * n + 1 :]))

    @property
    def computing_s(self) -> float:
        """On a core, but for what the first process does alone."""
        return sum(self.pace.computing) - self.pace.computing[OWN_PHASES.index(FIRST_ALONE)]

    @property
    def blocked_s(self) -> float:
        """Blocked, but for what may be for want of a core."""
        return max(sum(self.pace.blocked) - max(self.pace.queued, 0.0), 0.0)

    @property
    def own_s(self) -> float:
        """Both."""
        return self.computing_s + self.blocked_s

    @property
    def is_contended(self) -> bool:
        """Whether other programs use its cores."""
        return self.pace.queued > CONTENDED * self.own_s


@dataclass(frozen=True)
class Slow:
    """A process that is slower than the others.

    Attributes:
        place: of the process, among those compared.
        words: by how much, where and how.
    """

    place: int
    words: str


def find_slow(all_own: Sequence[Own], same_work: Sequence[int], share: float) -> list[Slow]:
    """The processes that are slower than the others.

    Args:
        all_own: of all processes.
        same_work: a number for each; those with the same number do the same work.
        share: by which one must be slower.
    """
    middle_s = median_low(own.own_s for own in all_own)
    blocked_s = median_low(own.blocked_s for own in all_own)
    peers: dict[int, list[Own]] = {}
    for own, work in zip(all_own, same_work, strict=True):
        peers.setdefault(work, []).append(own)
    computing_s = {w: median_low(o.computing_s for o in group) for w, group in peers.items()}
    products = [o.health.product_ms for o in all_own if math.isfinite(o.health.product_ms)]
    product_ms = median_low(products) if products else math.nan
    found = []
    for place, own in enumerate(all_own):
        of_work = computing_s[same_work[place]]
        slow_by = own.computing_s - of_work
        if own.blocked_s - blocked_s > max(share * middle_s, LEAST_S):
            said = _blocked(own, all_own, middle_s)
        elif slow_by > max(share * of_work, LEAST_S) and not own.is_contended:
            said = _computing(own, peers[same_work[place]], of_work)
        elif own.health.product_ms > (1 + share) * product_ms:
            said = (
                f"its GPU takes {own.health.product_ms:.3g} ms for products that take the others' "
                f"{product_ms:.3g} ms; {own.health}"
            )
        else:
            continue
        found.append(Slow(place, said))
    return found


def _blocked(own: Own, all_own: Sequence[Own], middle_s: float) -> str:
    """What is said of a process that is blocked for long."""
    middle = _middle([other.pace.blocked for other in all_own])
    lag, phase = _largest_lag(own.pace.blocked, middle)
    return (
        f"a step takes it {own.own_s:.3g} s of its own, the others {middle_s:.3g} s; {lag:.3g} s "
        f"more in {phase}, in which it neither computes nor waits for the others: it sleeps, or "
        "waits for a disk"
    )


def _computing(own: Own, peers: Sequence[Own], middle_s: float) -> str:
    """What is said of a process that computes for long."""
    middle = _middle([other.pace.computing for other in peers])
    lag, phase = _largest_lag(own.pace.computing, middle)
    return (
        f"a step takes it {own.computing_s:.3g} s on a core, those with the same work "
        f"{middle_s:.3g} s; {lag:.3g} s more in {phase}: a slow core, or more to do"
    )


def _middle(by_phase: Sequence[Sequence[float]]) -> list[float]:
    return [median_low(values) for values in zip(*by_phase, strict=True)]


def _largest_lag(own: Sequence[float], middle: Sequence[float]) -> tuple[float, str]:
    """By how much, and in which phase."""
    lags = [(a - b, phase) for a, b, phase in zip(own, middle, OWN_PHASES, strict=True)]
    return max(lags)


def figures(all_own: Sequence[Own]) -> dict[str, float]:
    """Metrics: the middle process's own time for a step, the slowest one's, and its place."""
    times = [own.own_s for own in all_own]
    found = {
        "own_s": median_low(times),
        "slowest_own_s": max(times),
        "slowest_rank": float(times.index(max(times))),
        "queued_s": max(own.pace.queued for own in all_own),
    }
    clocks = [own.health.clock_mhz for own in all_own if math.isfinite(own.health.clock_mhz)]
    products = [o.health.product_ms for o in all_own if math.isfinite(o.health.product_ms)]
    found |= {"lowest_clock_mhz": min(clocks)} if clocks else {}
    return found | ({"slowest_product_ms": max(products)} if products else {})


class SlowInARow:
    """Counts for how many steps in a row each process is slow."""

    def __init__(self, steps: int) -> None:
        """Name a process after so many steps."""
        self._least, self._since = steps, dict[int, int]()
        self._named: set[int] = set()

    def see(
        self, steps: int, slow: Sequence[Slow], names: Mapping[int, str] | Sequence[str]
    ) -> list[str]:
        """What is said after a comparison of some steps: who is slow, and who isn't any more."""
        said = []
        now = {one.place: one.words for one in slow}
        self._since = {place: self._since.get(place, 0) + steps for place in now}
        for place, words in now.items():
            count = self._since[place]
            if count >= self._least and place not in self._named:
                self._named.add(place)
                said.append(f"{names[place]} is slower than the others, {count} steps: {words}")
        for place in sorted(self._named - set(now)):
            self._named.discard(place)
            said.append(f"{names[place]} is as fast as the others again")
        return said

    @property
    def named(self) -> set[int]:
        """Processes that were named and are still slow."""
        return self._named
