"""A thread in each process that notices when another is dead, hung or out of step, and says which.

Each process writes a :class:`~megalite.training.diagnosis.Sign` into torchrun's store some times a
minute and reads the next rank's: a process that is stopped, swapped out or gone doesn't change its
own. A process whose main thread stands still reads everybody's and names who holds it up. Whoever
finds a fault writes it into the store; all processes then write their stacks into the run's folder
and end. This works while the main thread waits inside a collective, whatever its backend.
"""

import faulthandler
import json
import math
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from megalite.distributed.launch import Launch
from megalite.distributed.rendezvous import connection_of_its_own
from megalite.errors import MegaliteError, RankFailure, Stopped, write_error_file
from megalite.torch_private import calls_by_group, default_store
from megalite.training.diagnosis import Sign, blame
from megalite.training.heartbeat import WAIT, Heartbeat
from megalite.training.processes import birth, fingerprint, is_stopped, lives, pid_space, where

FAULT, DUMPED = "fault", "dumped"
LONGEST_SILENCE_S = 60.0  # the thread beats whatever the main thread does, unless one holds Python
LONG_PHASES, LONGER = ("start", "save"), 4.0  # reading or writing much, where nothing else moves
DUMP_S = 4.0  # the most that processes wait for each other's stacks
LOST_CONNECTION = ("gloo", "nccl", "connection", "timed out", "socket", "store", "broken pipe")


@dataclass(frozen=True)
class Watch:
    """How long is too long.

    Attributes:
        patience_s: a main thread that stands still for so long is hung.
        folder: gets reports and stacks.
    """

    patience_s: float
    folder: Path

    def patience_in(self, phase: str) -> float:
        """Seconds that a main thread may stand still in a phase."""
        if phase == WAIT:
            return math.inf
        return self.patience_s * (LONGER if phase in LONG_PHASES else 1.0)

    @property
    def silence_s(self) -> float:
        """A process that says nothing for so long is stopped or gone."""
        return min(self.patience_s, LONGEST_SILENCE_S)

    @property
    def interval_s(self) -> float:
        """Between beats."""
        return min(max(self.silence_s / 20, 0.05), 3.0)


class FirstFault:
    """The place in the store for the fault that is found first."""

    def __init__(self, store: Any, rank: int) -> None:
        """Look at it as process ``rank``."""
        self._store, self._rank = store, rank

    def read(self) -> str | None:
        """What was found, if something was."""
        if not self._store.check([FAULT]):
            return None
        return self._store.get(FAULT).decode().partition(" ")[2]

    def write(self, text: str) -> str | None:
        """Write a fault; None if this process's is the first, else the first.

        The rank goes with it: two processes may find the same fault in the same words.
        """
        mine = f"{self._rank} {text}"
        first = self._store.compare_set(FAULT, "", mine).decode()
        return None if first == mine else first.partition(" ")[2]


class Watchdog:
    """Watches over the processes while its ``with`` block runs; a process alone needs none."""

    def __init__(self, launch: Launch, heart: Heartbeat, watch: Watch) -> None:
        """Describe this process.

        Args:
            launch: which process this is.
            heart: what it is doing.
            watch: patience and folder.
        """
        self._launch, self._heart, self._watch = launch, heart, watch
        pid = os.getpid()
        self._sign = Sign(launch.rank, socket.gethostname(), pid, birth(pid), pid_space())
        self._store: Any = None
        self._seen: dict[int, tuple[int, float]] = {}
        self._moved: tuple[Any, float] = (None, time.monotonic())
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._main = threading.main_thread().ident
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._stacks: Any = None

    def __enter__(self) -> "Watchdog":
        """Begin to watch. Comm: none; reads and writes the default store."""
        if self._launch.world_size > 1:
            self._store = connection_of_its_own(default_store(), self._launch.rank)
            self._fault = FirstFault(self._store, self._launch.rank)
            self._watch.folder.mkdir(parents=True, exist_ok=True)
            self._stacks = open(self._watch.folder / f"rank-{self._launch.rank:05}.txt", "a")
            self._beat()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell the others how this process ends; find out who made it fail, if somebody did.

        Raises:
            RankFailure: another process died, hung or failed.
        """
        if self._store is None:
            return
        is_done = error is None or isinstance(error, Stopped)
        if is_done:
            self._wait_until_all_have_ended()
        self._ended.set()
        self._thread.join(self._watch.interval_s + DUMP_S)
        faulthandler.cancel_dump_traceback_later()
        if is_done:
            self._tidy()
            return
        self._stacks.write("".join(traceback.format_exception(error)))
        self._stacks.flush()
        if not isinstance(error, Exception):
            return
        if _is_lost_connection(error):
            raise self._find_culprit() from error
        text = f"{self._current().name()}: {type(error).__name__}: {error}"
        is_first = self._fault.write(text) is None
        if isinstance(error, MegaliteError):
            error.speaks = is_first
        if is_first:
            self._report(text, not isinstance(error, MegaliteError))
        self._wait_for_the_others()

    def _wait_until_all_have_ended(self) -> None:
        """The thread looks on meanwhile: the last process must not hang unseen."""
        self._sign = replace(self._sign, state="ended")
        try:
            self._publish()
            while self._running():
                time.sleep(min(self._watch.interval_s, 0.1))
        except RuntimeError:
            return  # the store ended with rank 0

    def _tidy(self) -> None:
        self._stacks.close()
        if not os.path.getsize(self._stacks.name):
            os.unlink(self._stacks.name)
        try:
            self._watch.folder.rmdir()
            self._watch.folder.parent.rmdir()
        except OSError:
            return  # another process's file is there

    def _find_culprit(self) -> RankFailure:
        """After a connection was lost: who was it?"""
        interval_s = self._watch.interval_s
        until = time.monotonic() + max(3 * interval_s, 3.0)
        found: str | None = None
        while found is None and time.monotonic() < until:
            found = self._fault.read() or self._missing(self._signs(), max(3 * interval_s, 2.0))
            time.sleep(interval_s / 4)
        mine = found or blame(self._signs())
        other = self._fault.write(mine)
        failure = RankFailure(f"{other or mine}; stacks are in {self._watch.folder}")
        failure.speaks = other is None
        if other is None:
            self._report(mine, False)
        self._wait_for_the_others()
        return failure

    def _run(self) -> None:
        reached = time.monotonic()
        while not self._ended.wait(self._watch.interval_s):
            try:
                self._beat()
                self._look()
                reached = time.monotonic()
            except (RuntimeError, OSError) as error:  # the store's errors
                if time.monotonic() - reached > self._watch.silence_s:
                    self._leave(f"the store of rank 0's node does not answer: {error}", True)

    def _beat(self) -> None:
        """Say that this process lives and, unless said again in time, end it with its stacks."""
        faulthandler.dump_traceback_later(self._watch.silence_s, exit=True, file=self._stacks)
        self._sign = self._current()
        self._publish()

    def _publish(self) -> None:
        self._store.set(str(self._launch.rank), json.dumps(self._sign.plain()))

    def _current(self) -> Sign:
        now, heart = time.monotonic(), self._heart
        frame = sys._current_frames().get(self._main or 0)
        calls = calls_by_group()
        moved = heart.step, heart.phase, calls, fingerprint(frame)
        place, waits = where(frame)
        if moved != self._moved[0]:
            self._moved = moved, now
        return replace(
            self._sign,
            step=heart.step,
            phase=heart.phase,
            writing=heart.writing,
            where=place,
            waits=waits,
            still_s=now - self._moved[1],
            calls=calls,
            beat=self._sign.beat + 1,
        )

    def _look(self) -> None:
        posted = self._fault.read()
        if posted is not None:
            self._leave(posted, False)
        missing = self._missing(self._next(), self._watch.silence_s)
        if missing is not None:
            self._accuse(missing)
        if self._sign.state == "ended":
            return
        if self._sign.still_s > self._watch.patience_in(self._sign.phase):
            self._accuse(f"{blame(self._signs())}; no progress for {self._sign.still_s:.0f} s")

    def _next(self) -> list[Sign]:
        """The process that this one watches: the next in rank that has not ended."""
        size, rank = self._launch.world_size, self._launch.rank
        for other in range(rank + 1, rank + size):
            (sign,) = self._read([other % size])
            if sign.state == "running":
                return [sign]
        return []

    def _read(self, ranks: Sequence[int]) -> list[Sign]:
        """What each of these ranks last said."""
        keys = [str(rank) for rank in ranks]
        if self._store.check(keys):
            return [Sign(**json.loads(text)) for text in self._store.multi_get(keys)]
        if len(keys) == 1:
            return [Sign(ranks[0])]
        return [sign for rank in ranks for sign in self._read([rank])]

    def _signs(self) -> list[Sign]:
        return self._read(range(self._launch.world_size))

    def _missing(self, signs: list[Sign], silence_s: float) -> str | None:
        """Say which of some processes is gone or has stopped to answer."""
        now = time.monotonic()
        for sign in signs:
            if sign.state != "running" or sign.rank == self._launch.rank:
                continue
            seen = self._seen.get(sign.rank)
            if seen is None or seen[0] != sign.beat:
                self._seen[sign.rank] = seen = (sign.beat, now)
            if self._is_here(sign) and not lives(sign.pid, sign.born):
                return f"{sign.name()} was killed or crashed; {self._last_seen()}"
            if now - seen[1] > silence_s:
                silent = f"has not answered for {now - seen[1]:.0f} s"
                return f"{sign.name()} {silent}: it is stopped or gone; {self._last_seen()}"
        return None

    def _last_seen(self) -> str:
        """The other's step and phase are its last word; this one's are sure."""
        return f"rank {self._launch.rank} is in step {self._heart.step}, {self._heart.phase}"

    def _running(self) -> list[Sign]:
        return [sign for sign in self._signs() if sign.state == "running"]

    def _is_here(self, sign: Sign) -> bool:
        return bool(sign.born) and (sign.host, sign.space) == (self._sign.host, self._sign.space)

    def _accuse(self, text: str) -> None:
        other = self._fault.write(text)
        self._leave(other or text, other is None)

    def _leave(self, text: str, speaks: bool) -> None:
        """Write the stacks, wait until the others have, and end the process."""
        with self._lock:
            if self._ended.is_set():
                return  # the main thread has an error of its own and tells it
            faulthandler.dump_traceback(self._stacks, all_threads=True)
            self._stacks.flush()
            if speaks:
                self._report(text, True)
            write_error_file(self._launch.error_file, text)
            self._wait_for_the_others()
            self._wake_the_stopped()
            os._exit(1)

    def _report(self, text: str, speaks: bool) -> None:
        """Write a fault with everybody's last sign into the folder, and say it on stderr."""
        lines = [time.strftime("%Y-%m-%d %H:%M:%S ") + text]
        lines += [sign.line() for sign in self._signs()]
        with open(self._watch.folder / "report.txt", "a", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines)
        if speaks:
            sys.stderr.write(f"megalite: {text}; stacks are in {self._watch.folder}\n")
            sys.stderr.flush()

    def _wait_for_the_others(self) -> None:
        until = time.monotonic() + DUMP_S
        count = self._store.add(DUMPED, 1)
        able = sum(
            not self._is_here(s) or (lives(s.pid, s.born) and not is_stopped(s.pid))
            for s in self._running()
        )
        while count < able and time.monotonic() < until:
            time.sleep(0.05)
            count = self._store.add(DUMPED, 0)

    def _wake_the_stopped(self) -> None:
        """Let a stopped process of this machine write its stacks and end; kill what can't."""
        silent = [
            s
            for s in self._running()
            if self._is_here(s) and lives(s.pid, s.born) and is_stopped(s.pid)
        ]
        for sign in silent:
            os.kill(sign.pid, signal.SIGCONT)
        until = time.monotonic() + DUMP_S
        while any(lives(sign.pid, sign.born) for sign in silent) and time.monotonic() < until:
            time.sleep(0.05)
        for sign in silent:
            if lives(sign.pid, sign.born):
                os.kill(sign.pid, signal.SIGKILL)


def _is_lost_connection(error: Exception) -> bool:
    if isinstance(error, MegaliteError):
        return False
    text = f"{type(error).__name__} {error}".lower()
    return isinstance(error, RuntimeError) and any(word in text for word in LOST_CONNECTION)
