"""What each process reports of itself, several times a minute."""

import os
import socket
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from types import FrameType

from megalite.distributed.processes import pid_namespace, start_time
from megalite.torch_private import calls_by_group
from megalite.training.watchdog.frames import locate, position
from megalite.training.watchdog.heartbeat import PHASES, Heartbeat


@dataclass(frozen=True)
class ProcessStatus:
    """What one process reports of itself.

    Attributes:
        rank: of the run.
        host: where it runs.
        pid: its process id there.
        started: when the process started, in the kernel's clock ticks: a reused pid has another.
        pid_namespace: the kernel's start and its namespace of the process id.
        step: under way.
        phase: of the training loop.
        write_point: what the checkpoint's writer is doing, or empty.
        location: the code that its main thread is in.
        in_collective: whether that is a call of torch.distributed.
        stalled_s: seconds since its main thread moved.
        collectives: number begun in each process group of several, by the group's name.
        state: running, or ended.
        beat: counts up; a process whose count stands still is stopped, gone or unreachable.
    """

    rank: int
    host: str = "?"
    pid: int = 0
    started: int = 0
    pid_namespace: str = ""
    step: int = 0
    phase: str = PHASES[0]
    write_point: str = ""
    location: str = ""
    in_collective: bool = False
    stalled_s: float = 0.0
    collectives: dict[str, int] = field(default_factory=dict)
    state: str = "running"
    beat: int = 0

    @property
    def is_running(self) -> bool:
        """Whether it has not said that it ended."""
        return self.state == "running"

    @property
    def place(self) -> str:
        """The code that its main thread is in, for a sentence."""
        return self.location or "unknown"

    def name(self) -> str:
        """Rank, host, process, step and phase in words."""
        writing = f" (writing a checkpoint: {self.write_point})" if self.write_point else ""
        return (
            f"rank {self.rank} ({self.host}, process {self.pid}) in step {self.step}, "
            f"{self.phase}{writing}"
        )

    def line(self) -> str:
        """All of it, as a line of the report."""
        begun = ", ".join(f"{group} {count}" for group, count in sorted(self.collectives.items()))
        return (
            f"{self.name()}: {self.state}, main thread still for {self.stalled_s:.1f} s at "
            f"{self.place}; collectives begun: {begun or 'none'}"
        )


class OwnStatus:
    """The status of this process, as it is now.

    Attributes:
        heartbeat: the step and phase.
        has_ended: whether the training loop is done.
        lost_in: the frame in which a collective failed, where this process is from then on.
    """

    def __init__(self, rank: int, heartbeat: Heartbeat) -> None:
        """Describe this process."""
        pid = os.getpid()
        self.heartbeat, self.has_ended = heartbeat, False
        self.lost_in: FrameType | None = None
        self._identity = ProcessStatus(
            rank, socket.gethostname(), pid, start_time(pid), pid_namespace()
        )
        self._main_thread = threading.main_thread().ident
        self._last_move: tuple[object, float] = (None, time.monotonic())
        self._beats = 0

    @property
    def rank(self) -> int:
        """This process's rank in the run."""
        return self._identity.rank

    def now(self) -> ProcessStatus:
        """The status; its beat is one more than that of the last."""
        now, heartbeat = time.monotonic(), self.heartbeat
        frame = self.lost_in or sys._current_frames().get(self._main_thread or 0)
        location, collectives = locate(frame), calls_by_group()
        seen = heartbeat.step, heartbeat.phase, collectives, position(frame)
        if seen != self._last_move[0]:
            self._last_move = seen, now
        self._beats += 1
        return replace(
            self._identity,
            step=heartbeat.step,
            phase=heartbeat.phase,
            write_point=heartbeat.write_point,
            location=location.text,
            in_collective=location.in_collective or self.lost_in is not None,
            stalled_s=now - self._last_move[1],
            collectives=collectives,
            state="ended" if self.has_ended else "running",
            beat=self._beats,
        )

    def is_beside(self, other: ProcessStatus) -> bool:
        """Whether another process is on this machine, where /proc shows it."""
        own = self._identity
        return bool(other.started) and (other.host, other.pid_namespace) == (
            own.host,
            own.pid_namespace,
        )
