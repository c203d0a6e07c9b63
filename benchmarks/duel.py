"""Two programs that take turns: each runs in its own process and does a round when told.

Turns make both meet the same noise of the machine; separate processes give each its own memory.
"""

import ctypes
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

# Of malloc.h: larger blocks are mapped, and unmapped when they are freed; more free memory at the
# end of the heap is given back.
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, MOST_THRESHOLD = -3, -1, 32 * 1024 * 1024


def peak_bytes() -> int:
    """The most memory this process has had."""
    return _status("VmHWM")


def reset_peak() -> None:
    """Let :func:`peak_bytes` count anew from what this process has now."""
    Path("/proc/self/clear_refs").write_text("5")


def held_bytes() -> int:
    """Memory this process has now; what the allocator keeps for later is given back first."""
    ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS")


def extra_bytes(work: Callable[[], object]) -> tuple[int, int]:
    """What work takes beyond what this process holds before it.

    Meanwhile the C library gives freed memory back at once: what it keeps of it is nobody's.

    Returns:
        The most that it takes at a time, and what stays of its first call: buffers and code of
        libraries, for a second call takes them no more.
    """
    library = ctypes.CDLL(None)
    library.mallopt(M_MMAP_THRESHOLD, 64 * 1024)
    before = held_bytes()
    work()
    held = held_bytes()
    reset_peak()
    work()
    taken = peak_bytes() - held
    library.mallopt(M_MMAP_THRESHOLD, MOST_THRESHOLD)  # what it comes to by itself
    library.mallopt(M_TRIM_THRESHOLD, 2 * MOST_THRESHOLD)
    return taken, held - before


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    return 0


def serve(make: Callable[[], tuple[Callable[[], None], dict]]) -> None:
    """Be one side: make the work, do a round for each line on standard input, then weigh it.

    It is weighed last, as that takes the memory from which the next round would be served. What the
    work prints goes to standard error.
    """
    out, sys.stdout = sys.stdout, sys.stderr
    before = held_bytes()
    work, facts = make()
    work()
    print(json.dumps(facts), file=out, flush=True)
    for _ in sys.stdin:
        started, computed = time.perf_counter(), time.process_time()
        work()
        seconds, cpu_s = time.perf_counter() - started, time.process_time() - computed
        print(json.dumps({"seconds": seconds, "cpu_s": cpu_s}), file=out, flush=True)
    weighed = {"peak_bytes": peak_bytes() - before, "held_bytes": held_bytes() - before}
    print(json.dumps(weighed), file=out, flush=True)


class Side:
    """One side's process."""

    def __init__(self, module: str, arguments: list[str], python: str = sys.executable) -> None:
        """Start it with a Python interpreter and wait for its first round."""
        self._process = subprocess.Popen(
            [python, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.facts = self._read()
        self.rounds: list[dict] = []

    def _read(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a side ended early, exit code {self._process.wait()}")
        return json.loads(line)

    def play(self) -> None:
        """Do one round."""
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        self.rounds.append(self._read())

    def best(self, key: str) -> float:
        """The least of a figure over all rounds."""
        return min(played[key] for played in self.rounds)

    def end(self) -> None:
        """Let it finish, and take its last facts if it has some."""
        self._process.stdin.close()
        self.facts |= json.loads(self._process.stdout.read() or "{}")
        self._process.wait()


def play(ours: Side, peer: Side, rounds: int) -> None:
    """Let both sides do ``rounds`` rounds in turns, then end them."""
    for _ in range(rounds):
        ours.play()
        peer.play()
    ours.end()
    peer.end()
