"""Worker processes that call reward functions, each call with a time limit."""

import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

from megalite.errors import ConfigError, DataError, tell
from megalite.stages.rules.worker import Orders

ROOT = str(Path(__file__).parents[3])  # where megalite is
LOAD_LIMIT_S = 300.0  # of a user's file, which may import what it likes
SHOWN = 60  # characters of an answer that an error shows
PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[2]); "
    "from megalite.stages.rules.worker import main; main(int(sys.argv[1]))"
)


@dataclass(frozen=True)
class Call:
    """An answer to be scored.

    Attributes:
        where: the place of its row, such as ``file:line``.
        prompt: the last turn of the prompt, as a user wrote it.
        answer: the model's text.
        row: the record, as the file has it.
    """

    where: str
    prompt: str
    answer: str
    row: dict[str, Any]


class _Worker:
    """A process and the connection to it."""

    def __init__(self, orders: Orders) -> None:
        own, theirs = Pipe()
        self.connection: Connection[Any, Any] = own
        command = [sys.executable, "-c", PROGRAM, str(theirs.fileno()), ROOT]
        # A session of its own: what a terminal sends goes to the parent alone.
        self.process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        self.connection.send(orders)

    def check_loaded(self) -> None:
        """Wait until the functions are loaded.

        Raises:
            ConfigError: one can't be.
        """
        if not self.connection.poll(LOAD_LIMIT_S):
            raise ConfigError(f"--reward.function: was not loaded within {LOAD_LIMIT_S:.0f} s")
        try:
            fault = self.connection.recv()
        except (EOFError, ConnectionResetError):
            code = self.process.wait()
            fault = f"its process ended with exit code {code} when the functions were loaded"
        if fault is not None:
            raise ConfigError(f"--reward.function {fault}")

    def end(self) -> None:
        """End the process, whatever it is doing."""
        self.connection.close()
        self.process.kill()
        self.process.wait()


class Workers:
    """Processes that share the calls.

    They start with the first call, and end with :meth:`close` or with this process. One that was
    killed while it had no call is started anew: no score depends on it.
    """

    def __init__(self, orders: Orders, count: int) -> None:
        """Hold ``count`` processes of ``orders``."""
        self._orders, self._count = orders, count
        self._workers: list[_Worker] = []

    def start(self) -> None:
        """Start the processes that don't run, and wait for the functions.

        Raises:
            ConfigError: a function can't be loaded.
        """
        self._let_go_of_ended()
        started = [_Worker(self._orders) for _ in range(self._count - len(self._workers))]
        self._workers += started
        try:
            for worker in started:
                worker.check_loaded()
        except BaseException:
            self.close()
            raise

    def _let_go_of_ended(self) -> None:
        """Forget processes that ended by themselves, and say so."""
        for worker in list(self._workers):
            code = worker.process.poll()
            if code is not None:
                worker.end()
                self._workers.remove(worker)
                tell(
                    f"a process of reward.function ended with exit code {code} while it had no "
                    "call, perhaps killed for its memory: it is started anew"
                )

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.end()
        self._workers = []

    def score(self, calls: Sequence[Call]) -> list[list[float]]:
        """Every function's score of every call: a list a function.

        Raises:
            DataError: a function raised, hung or gave no number; it names function and row. The
                processes are ended.
        """
        self.start()
        functions = range(len(self._orders.functions))
        todo = deque((number, place) for place in range(len(calls)) for number in functions)
        try:
            replies = self._serve(todo, calls)
        except BaseException:
            self.close()
            raise
        return [[replies[number, place] for place in range(len(calls))] for number in functions]

    def _serve(
        self, todo: deque[tuple[int, int]], calls: Sequence[Call]
    ) -> dict[tuple[int, int], float]:
        """The score of each (function, call); the first fault in their order is raised."""
        replies: dict[tuple[int, int], float] = {}
        faults: dict[tuple[int, int], str] = {}
        free = list(self._workers)
        busy: dict[Any, tuple[_Worker, tuple[int, int], float]] = {}  # by connection
        while busy or (todo and not faults):
            while free and todo and not faults:
                worker, task = free.pop(), todo.popleft()
                if fault := self._ask(worker, task[0], calls[task[1]]):
                    faults[task] = fault
                    break
                busy[worker.connection] = worker, task, time.monotonic() + self._orders.limit_s
            left = min((end for _, _, end in busy.values()), default=0.0) - time.monotonic()
            for connection in wait(list(busy), max(left, 0.0)):
                worker, task, _ = busy.pop(connection)
                reply = self._reply(worker)
                if isinstance(reply, str):
                    faults[task] = reply
                else:
                    replies[task] = reply
                    free.append(worker)
            now = time.monotonic()
            for connection, (_, task, deadline) in list(busy.items()):
                if now >= deadline and not connection.poll():
                    del busy[connection]
                    faults[task] = f"gave nothing within {self._orders.limit_s:g} s"
        if faults:
            number, place = min(faults, key=lambda task: (task[1], task[0]))
            raise DataError(self._said(number, calls[place], faults[number, place]))
        return replies

    @staticmethod
    def _ask(worker: _Worker, number: int, call: Call) -> str:
        """Hand a call to a process; says why it can't take one, or nothing."""
        try:
            worker.connection.send((number, call.prompt, call.answer, call.row))
        except (BrokenPipeError, ConnectionResetError):
            return f"its process had ended with exit code {worker.process.wait()}"
        return ""

    @staticmethod
    def _reply(worker: _Worker) -> float | str:
        try:
            reply: float | str = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            return f"ended its process with exit code {worker.process.wait()}"
        return reply

    def _said(self, number: int, call: Call, fault: str) -> str:
        shown = call.answer if len(call.answer) <= SHOWN else f"{call.answer[:SHOWN]}..."
        return (
            f"{self._orders.functions[number]}: {fault}, for the answer {shown!r} to {call.where}: "
            "a reward function must give a finite number for any answer"
            + (
                ", or reward.time_limit_s must be longer"
                if fault.startswith("gave nothing")
                else ""
            )
        )
