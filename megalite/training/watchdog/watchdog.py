"""A thread in each process that notices when another is dead, hung or out of step, and says which.

Each process writes a :class:`~megalite.training.watchdog.status.ProcessStatus` into torchrun's
store several times a minute and reads the next rank's: a process that is stopped, swapped out or
gone doesn't change its own. A process whose main thread stands still reads all of them and names
the one that holds it up. Whichever finds a fault writes it into the store; all processes then write
their stacks into the run's folder and end. This works while the main thread waits inside a
collective, whatever its backend.
"""

import time
import traceback
from pathlib import Path
from types import FrameType, TracebackType

import torch.distributed as dist

from megalite.distributed.launch import Launch
from megalite.distributed.rendezvous import connection_of_its_own
from megalite.errors import MegaliteError, RankFailure, Stopped
from megalite.torch_private import default_store
from megalite.training.watchdog.diagnosis import diagnose
from megalite.training.watchdog.heartbeat import Heartbeat
from megalite.training.watchdog.launcher import LauncherWatch
from megalite.training.watchdog.monitor import Monitor
from megalite.training.watchdog.peers import DUMP_S
from megalite.training.watchdog.report import FaultFolder
from megalite.training.watchdog.status import OwnStatus
from megalite.training.watchdog.timeouts import Timeouts

LOST_CONNECTION = ("gloo", "nccl", "connection", "timed out", "socket", "broken pipe")
LEAST_PATIENCE_S = 2.0  # with a process elsewhere, before its silence explains a lost connection


class Watchdog:
    """Watches over the processes while its ``with`` block runs; a process alone needs none."""

    def __init__(
        self, launch: Launch, heartbeat: Heartbeat, timeouts: Timeouts, folder: Path
    ) -> None:
        """Describe this process.

        Args:
            launch: which process this is.
            heartbeat: what it is doing.
            timeouts: how long is too long.
            folder: gets reports and stacks.
        """
        self._launch, self._heartbeat = launch, heartbeat
        self._timeouts, self._folder = timeouts, folder
        self._monitor: Monitor | None = None
        self._launcher: LauncherWatch | None = None

    def __enter__(self) -> "Watchdog":
        """Begin to watch. Comm: none; reads and writes the default store."""
        launch = self._launch
        if launch.world_size > 1:
            own = OwnStatus(launch.rank, self._heartbeat)
            store = connection_of_its_own(default_store(), launch.rank)
            folder = FaultFolder(self._folder, launch.rank)
            self._monitor = Monitor(launch, own, store, folder, self._timeouts)
        elif launch.launcher:
            self._launcher = LauncherWatch(launch.launcher)
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the others know how this process ends; find out whether one of them made it fail.

        Raises:
            RankFailure: another process died, hung or failed.
        """
        monitor = self._monitor
        if self._launcher is not None:
            self._launcher.stop()
        if monitor is None:
            return
        try:
            if error is None or isinstance(error, Stopped):
                monitor.wait_until_all_have_ended()
                monitor.stop()
                monitor.folder.remove_if_empty()
                return
            monitor.stop()
            monitor.folder.write_error(error)
            if isinstance(error, Exception):
                _tell(monitor, error)
        finally:
            monitor.folder.cancel_exit()


def _tell(monitor: Monitor, error: Exception) -> None:
    """Tell the others of an error, or find out which of them it comes from; see ``__exit__``."""
    try:
        if _is_lost_connection(error):
            monitor.own.lost_in = _failed_in(error)
            raise _cause_of_lost_connection(monitor) from error
        _report_error(monitor, error)
    except RuntimeError as lost:  # the store's error
        launcher = monitor.loss_of_launcher()  # which may have held the store
        what = f": {launcher}" if launcher else _lost_store(lost)
        failure = RankFailure(
            f"{monitor.own.now().name()}{what}; stacks are in {monitor.folder.path}"
        )
        failure.speaks = True
        if isinstance(error, MegaliteError):
            return
        raise failure from error


def _lost_store(error: RuntimeError) -> str:
    return (
        " lost the others and torchrun's store: the torchrun that holds it, or its node, is gone "
        f"({str(error).splitlines()[0]})"
    )


def _is_lost_connection(error: BaseException | None) -> bool:
    """Whether an error, or one that PyTorch has wrapped, is that another process is out of reach.

    A pipeline's pass raises an error of its own from what the collectives in it raised.
    """
    if error is None or isinstance(error, MegaliteError):
        return False
    text = f"{type(error).__name__} {error}".lower()
    is_one = isinstance(error, RuntimeError) and any(word in text for word in LOST_CONNECTION)
    is_one |= isinstance(error, dist.DistError)  # of a store, or of a backend
    return is_one or _is_lost_connection(error.__cause__)


def _failed_in(error: BaseException) -> FrameType | None:
    """The innermost frame of an error, or of the first that led to it."""
    while error.__cause__ is not None:
        error = error.__cause__
    frames = [frame for frame, _line in traceback.walk_tb(error.__traceback__)]
    return frames[-1] if frames else None


def _cause_of_lost_connection(monitor: Monitor) -> RankFailure:
    """Which other process ended or hangs, so that this one's connection broke.

    Processes of this machine are dead, or /proc shows them; of others their silence tells. This
    process goes on to report, as one that lives.
    """
    timeouts = monitor.timeouts
    pause_s, patience_s = timeouts.interval_s / 2, max(timeouts.renewal_s, LEAST_PATIENCE_S)
    until = time.monotonic() + patience_s + 2 * timeouts.interval_s
    found: str | None = None
    while found is None and time.monotonic() < until:
        monitor.statuses.publish(monitor.own.now())
        seen = monitor.statuses.all() if monitor.may_look() else monitor.peers.near()
        found = monitor.first_fault.read()
        found = found or monitor.peers.missing(seen, patience_s, timeouts.silence_s)
        time.sleep(pause_s)
    until += DUMP_S
    while found is None and not monitor.may_look() and time.monotonic() < until:
        found = monitor.first_fault.read()  # of the one that looks at all
        time.sleep(pause_s)
    mine = found or diagnose(monitor.statuses.all())
    first = monitor.first_fault.write(mine)
    failure = RankFailure(f"{first or mine}; stacks are in {monitor.folder.path}")
    failure.speaks = first is None
    if first is None:
        monitor.report(mine, on_stderr=False)
    monitor.peers.wait_for_stacks(first is None)
    return failure


def _report_error(monitor: Monitor, error: Exception) -> None:
    """Report an error of this process; on stderr too, unless the command line does that."""
    text = f"{monitor.own.now().name()}: {type(error).__name__}: {str(error).strip()}"
    is_first = monitor.first_fault.write(text) is None
    if isinstance(error, MegaliteError):
        error.speaks = is_first
    if is_first:
        monitor.report(text, on_stderr=not isinstance(error, MegaliteError))
    monitor.peers.wait_for_stacks(is_first)
