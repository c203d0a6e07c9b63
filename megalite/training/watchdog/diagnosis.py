"""Which process holds a run up, from what each of them last reported of itself."""

from collections import defaultdict
from collections.abc import Sequence

from megalite.training.watchdog.heartbeat import PHASES, SAVE, SAVING_GROUPS, WAIT
from megalite.training.watchdog.status import ProcessStatus


def diagnose(statuses: Sequence[ProcessStatus]) -> str:
    """Say which processes hold the run up, when all of them answer but none moves.

    A process that has begun fewer collectives of a group than the group's others holds them up. If
    each of several is behind in some group, they disagree on what comes next, and the one furthest
    on in the step left a collective out; so it did if counts are equal and places differ, or if the
    one behind waits in a collective that all others have begun. Of those behind, who waits in a
    collective is itself held up by one that is in none, and who waits for its save by one that is
    behind in that. One that waits for work holds nobody up.
    """
    running = [status for status in statuses if status.is_running]
    running = [status for status in running if status.phase != WAIT] or running
    behind = _behind(running)
    if not behind:
        return _without_counts(running)
    late = _late_in_save(running)
    in_none = {rank: lag for rank, lag in behind.items() if not _waits(lag[0], late)}
    behind = in_none or behind
    if len(behind) == 1 and all(status.in_collective for status in running):
        (last, _), furthest = next(iter(behind.values())), max(running, key=_progress)
        if _progress(last) < _progress(furthest):
            return _out_of_step(last, furthest)
    ranks = sorted(behind, key=lambda rank: _progress(behind[rank][0]))
    if len(ranks) == 1 or _progress(behind[ranks[0]][0]) == _progress(behind[ranks[-1]][0]):
        return "; ".join(f"{behind[rank][0].name()} is stuck: {behind[rank][1]}" for rank in ranks)
    furthest, lag = behind[ranks[-1]]
    others = ", ".join(f"rank {rank}" for rank in ranks[:-1])
    return f"{furthest.name()} left out a collective that {others} made: {lag}"


def _waits(status: ProcessStatus, late: set[int]) -> bool:
    """Whether a process waits for others; ``late`` are those behind in a save."""
    waits_for_save = status.phase == SAVE and bool(late) and status.rank not in late
    return status.in_collective or waits_for_save


def _late_in_save(statuses: Sequence[ProcessStatus]) -> set[int]:
    """The processes that are behind in a save."""
    most = _most(statuses)
    return {
        status.rank
        for status in statuses
        for group, count in status.collectives.items()
        if _is_of_saves(group) and count < most[group]
    }


def _is_of_saves(group: str) -> bool:
    return group.rpartition(" ")[0] in SAVING_GROUPS


def _most(statuses: Sequence[ProcessStatus]) -> dict[str, int]:
    """Collectives begun in each group by the process that has begun most."""
    most: dict[str, int] = defaultdict(int)
    for status in statuses:
        for group, count in status.collectives.items():
            most[group] = max(most[group], count)
    return most


def _progress(status: ProcessStatus) -> tuple[int, int]:
    """How far a process is, in an order."""
    return status.step, PHASES.index(status.phase)


def _behind(statuses: Sequence[ProcessStatus]) -> dict[int, tuple[ProcessStatus, str]]:
    """Each process that is behind in a group, by rank, with its lag and location in words.

    Saves that are written beside the steps hold nobody up who doesn't wait for one.
    """
    most, waits_for_save = _most(statuses), any(status.phase == SAVE for status in statuses)
    found = {}
    for status in statuses:
        lags = [
            f"it has begun {count} of {most[group]} collectives of {group}"
            for group, count in status.collectives.items()
            if count < most[group] and (waits_for_save or not _is_of_saves(group))
        ]
        if lags:
            found[status.rank] = (status, f"{'; '.join(lags)}; it is at {status.place}")
    return found


def _without_counts(statuses: Sequence[ProcessStatus]) -> str:
    """Where no group's counts differ: who is in no collective, or in another than the others."""
    elsewhere = [status for status in statuses if not status.in_collective]
    if elsewhere and len(elsewhere) < len(statuses):
        return "; ".join(f"{status.name()} is stuck at {status.place}" for status in elsewhere)
    first, last = min(statuses, key=_progress), max(statuses, key=_progress)
    if _progress(first) == _progress(last):
        return f"all processes stand still in step {last.step}, {last.phase}, at {last.location}"
    return _out_of_step(first, last)


def _out_of_step(first: ProcessStatus, last: ProcessStatus) -> str:
    """Two processes wait in collectives that are not the same; ``last`` is further on."""
    return (
        f"{last.name()} is out of step: it waits at {last.place}, and rank "
        f"{first.rank} in step {first.step}, {first.phase}, at {first.place}: one of "
        "them left out a collective or made one too many"
    )
