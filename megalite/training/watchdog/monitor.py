"""The watchdog's thread: reports this process's status, looks at the others', ends on a fault."""

import os
import threading
import time
from contextlib import suppress

import torch.distributed as dist

from megalite.distributed.launch import Launch
from megalite.errors import write_error_file
from megalite.training.watchdog.diagnosis import diagnose
from megalite.training.watchdog.launcher import loss_of_launcher
from megalite.training.watchdog.peers import DUMP_S, Peers
from megalite.training.watchdog.report import FaultFolder
from megalite.training.watchdog.status import OwnStatus, ProcessStatus
from megalite.training.watchdog.store import FirstFault, StatusStore
from megalite.training.watchdog.timeouts import Timeouts

PAUSE_S_PER_PROCESS = 1e-3  # so the store answers a thousand times a second at the most
STORE_LOOKS = 18  # of the 20 in the time after which silence is a fault, and this process ends


class Monitor:
    """Watches the processes of a run in a thread; the main thread may ask it too.

    Attributes:
        own: status of this process.
        statuses: of all processes.
        first_fault: that any process found.
        peers: the other processes.
        folder: gets reports and stacks.
        timeouts: how long is too long.
    """

    def __init__(
        self,
        launch: Launch,
        own: OwnStatus,
        store: dist.Store,
        folder: FaultFolder,
        timeouts: Timeouts,
    ) -> None:
        """Begin to watch.

        Args:
            launch: which process this is.
            own: its status.
            store: of all processes, over a connection that nothing else uses.
            folder: gets reports and stacks.
            timeouts: how long is too long.
        """
        self.own, self.folder, self.timeouts = own, folder, timeouts
        self.statuses = StatusStore(store, launch.rank, launch.world_size)
        self.first_fault = FirstFault(store, launch.rank)
        first = launch.rank - launch.local_rank
        self.peers = Peers(own, self.statuses, range(first, first + launch.local_world_size))
        self._looks_from = 0.0
        self._error_file, self._launcher = launch.error_file, launch.launcher
        self._is_over, self._lock = threading.Event(), threading.Lock()
        self._turns, self._lost = 0, ""  # looks that the store has answered; its last error
        self._status = self._report_status()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()
        threading.Thread(target=self._watch_store, name="store's watch", daemon=True).start()

    def stop(self) -> None:
        """Stop watching: the main thread reports how this process ends, or it ends without that."""
        with self._lock:  # or the thread, which has a fault, ends this process
            self._is_over.set()
        self._thread.join(self.timeouts.interval_s + DUMP_S)
        self.folder.exit_unless_renewed(2 * self.timeouts.silence_s + 4 * DUMP_S)

    def wait_until_all_have_ended(self) -> None:
        """Say that this process has ended, and wait for the others; the thread keeps watching."""
        try:
            count = self.statuses.count_end()  # first: nobody looks at one that has ended any more
            self.own.has_ended = True
            self.statuses.publish(self.own.now())
            pause_s = min(self.timeouts.interval_s, max(0.1, PAUSE_S_PER_PROCESS * count))
            while count:
                time.sleep(pause_s)
                count = self.statuses.num_running()
        except RuntimeError:
            return  # the store ended with rank 0

    def report(self, text: str, on_stderr: bool) -> None:
        """Write a fault and all last statuses into the folder, and the fault perhaps on stderr."""
        try:
            statuses = self.statuses.all()
        except RuntimeError:  # the store is gone
            statuses = [self._status]
        self.folder.report(text, statuses, on_stderr)

    def _run(self) -> None:
        while not self._is_over.wait(self.timeouts.interval_s):
            try:
                self._look_for_launcher()
                self._status = self._report_status()
                self._look()
                self._turns += 1
            except (RuntimeError, OSError) as error:  # the store's errors
                self._lost = f" ({str(error).strip().splitlines()[0]})"

    def _watch_store(self) -> None:
        """End without the store: where its machine is gone, a call to it doesn't come back.

        Counted in looks, as those of :class:`Peers`: a process that was stopped has had none.
        """
        looks, turns, since = 0, 0, time.monotonic()
        while not self._is_over.wait(self.timeouts.interval_s):
            looks += 1
            if self._turns != turns:
                looks, turns, since = 0, self._turns, time.monotonic()
            if looks >= STORE_LOOKS:
                self._leave_without_store(
                    f"{self.own.now().name()}: torchrun's store has not answered for "
                    f"{time.monotonic() - since:.0f} s: the torchrun that holds it, or its node, "
                    f"is gone or stopped{self._lost}"
                )

    def _leave_without_store(self, text: str) -> None:
        with self._lock:
            if self._is_over.is_set():
                return
            try:
                self.folder.write_stacks()
                self.folder.report(text, [self._status], on_stderr=True)
                write_error_file(self._error_file, text)
            finally:
                os._exit(1)

    def _report_status(self) -> ProcessStatus:
        """Publish that this process lives; unless this is done again in time, it ends itself."""
        self.folder.exit_unless_renewed(self.timeouts.silence_s)
        status = self.own.now()
        self.statuses.publish(status)
        return status

    def loss_of_launcher(self) -> str | None:
        """Say that the torchrun that started this process is gone; None while it is there."""
        return loss_of_launcher(self._launcher)

    def _look_for_launcher(self) -> None:
        """End without the torchrun that started this process: nobody would end it or start it."""
        lost = self.loss_of_launcher()
        if lost is not None:
            self._leave(f"{self.own.now().name()}: {lost}")

    def _look(self) -> None:
        posted = self.first_fault.read()
        if posted is not None:
            self._leave(posted, is_posted=True)
        watched = self.statuses.next_running()
        missing = self.peers.missing([watched] if watched else [], self.timeouts.silence_s)
        if missing is not None:
            self._leave(missing, tells_others=True)
        stalled_s = self._status.stalled_s
        hangs = stalled_s > self.timeouts.stall_in(self._status.phase)
        if self._status.is_running and hangs and self.may_look():
            cause = diagnose(self.statuses.all_anew(self.timeouts.renewal_s))
            if self.own.now().stalled_s >= stalled_s:  # it has not moved meanwhile
                self._leave(f"{cause}; no progress for {stalled_s:.0f} s", tells_others=True)

    def may_look(self) -> bool:
        """Whether this process is to look at all others: the first that asks, alone if it can.

        The rest may when it has said nothing for the time after which silence is a fault.
        """
        now = time.monotonic()
        if not self._looks_from:
            claims = self.statuses.claims_look()
            self._looks_from = now if claims else now + self.timeouts.silence_s
        return now >= self._looks_from

    def _leave(self, text: str, tells_others: bool = False, is_posted: bool = False) -> None:
        """Write the stacks, wait until the others have, and end the process.

        Args:
            text: the fault.
            tells_others: whether they are to end by it, unless one has found another before.
            is_posted: whether another process has found it, and reports it.
        """
        with self._lock:
            if self._is_over.is_set():
                return  # the main thread has an error of its own and reports it
            first = self.first_fault.write(text) if tells_others else None
            text, is_reporter = first or text, first is None and not is_posted
            try:
                self.folder.write_stacks()
                if is_reporter:
                    self.report(text, on_stderr=True)
                with suppress(OSError):  # a full disk
                    write_error_file(self._error_file, text)
                self.peers.wait_for_stacks(is_reporter)
                self.peers.wake_stopped()
            finally:  # also where the store or the folder is gone
                os._exit(1)
