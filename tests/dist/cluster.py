"""Processes that are started once for all distributed tests and run one job after another."""

import gc
import importlib
import pickle
import tempfile
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.forked import CONTEXT

PROCESSES = 8  # the most that a test needs
TIMEOUT_S = 200
JOBS_OF_A_LIFE = 60  # then others take over: gloo's threads of some groups outlive these


class JobFailed(AssertionError):
    """A job raised on some rank; the text is its traceback."""


def _work(rank: int, pipe: Connection) -> None:
    """One process: run jobs until the pipe closes."""
    import torch

    torch.set_num_threads(1)
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        try:
            answer = True, _run(rank, *job)
        except BaseException:
            answer = False, traceback.format_exc()
        pipe.send_bytes(pickle.dumps(answer))  # tensors by value: ``send`` opens a file for each


def _run(rank: int, world_size: int, store: str, name: str, arguments: dict[str, Any]) -> Any:
    import torch.distributed as dist

    from megalite.distributed.launch import Launch
    from megalite.distributed.mesh import leave_process_group

    module, _, function = name.partition(":")
    job = getattr(importlib.import_module(module), function)
    gc.freeze()  # as a run does: leaving the group then looks through what is the job's alone
    launch = Launch(rank, world_size, rank, world_size)
    dist.init_process_group(
        "gloo", store=dist.FileStore(store, world_size), rank=rank, world_size=world_size
    )
    try:
        answer = job(launch, **arguments)
        dist.barrier()  # one that is done must not close what another still opens
        return answer
    finally:
        leave_process_group()


class Cluster:
    """Some processes on this machine; a job runs on the first few of them."""

    def __init__(self, count: int = PROCESSES) -> None:
        """Start the processes."""
        self._stores = tempfile.TemporaryDirectory()
        self._jobs = 0
        self._start(count)

    def _start(self, count: int) -> None:
        self._pipes, self._processes = list[Connection](), list[Any]()
        for rank in range(count):
            mine, theirs = CONTEXT.Pipe()
            process = CONTEXT.Process(target=_work, args=(rank, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(mine)
            self._processes.append(process)

    def run(self, world_size: int, name: str, **arguments: Any) -> list[Any]:
        """Run ``module:function(launch, **arguments)`` on the first ``world_size`` processes.

        Where there are fewer, the test is skipped.

        Returns:
            What it returned, by rank.

        Raises:
            JobFailed: it raised on some rank, or took too long.
        """
        if world_size > len(self._pipes):
            import pytest

            pytest.skip(f"needs {world_size} processes: --processes {world_size}")
        self._jobs += 1
        if self._jobs % JOBS_OF_A_LIFE == 0:
            self._end()
            self._start(len(self._pipes))
        store = str(Path(self._stores.name) / str(self._jobs))
        for pipe in self._pipes[:world_size]:
            pipe.send((world_size, store, name, arguments))
        replies = []
        for rank, pipe in enumerate(self._pipes[:world_size]):
            if not pipe.poll(TIMEOUT_S):
                raise JobFailed(f"rank {rank} gave no answer within {TIMEOUT_S} s")
            replies.append(pickle.loads(pipe.recv_bytes()))
        failures = [f"rank {r}:\n{text}" for r, (done, text) in enumerate(replies) if not done]
        if failures:
            raise JobFailed("\n".join(failures))
        return [value for _, value in replies]

    def close(self) -> None:
        """End the processes."""
        self._end()
        self._stores.cleanup()

    def _end(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(10)
            process.kill()
