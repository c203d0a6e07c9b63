"""Runs an answer's Python code and its tests in a process with limits.

The limits keep a loop, a large list or an endless file from harm; they are no wall. The code may
read what its user may read: for answers that are not to be trusted the whole run belongs into a
container without a network.
"""

import os
import re
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass

FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)
OUTPUT_BYTES = 1 << 20  # of each file that the code writes, its output included


@dataclass(frozen=True)
class TestLimits:
    """Limits of the process that runs an answer's code.

    Attributes:
        seconds: on the clock and of the processor.
        memory_mib: of address space.
    """

    __test__ = False  # to pytest the name looks like a test's

    seconds: float
    memory_mib: int


def code_of(answer: str) -> str:
    """The code of an answer: its fenced blocks, or all of it without any."""
    blocks = FENCED.findall(answer)
    return "\n".join(blocks) if blocks else answer


def passes_tests(answer: str, tests: str, limits: TestLimits) -> bool:
    """Whether the tests, statements behind the answer's code, all run without an error.

    A word that the code can't know is printed behind the tests, so ending early doesn't pass.
    """
    word = secrets.token_hex(16)
    program = f"{code_of(answer)}\n{tests}\nprint({word!r})\n"
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-I", "-"],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            start_new_session=True,
            preexec_fn=lambda: _limit(limits),
        )
        try:
            process.communicate(program.encode(errors="replace"), timeout=limits.seconds)
        except subprocess.TimeoutExpired:
            return False
        finally:
            _end(process)
        output.seek(0)
        return process.returncode == 0 and output.read().split()[-1:] == [word.encode()]


def _limit(limits: TestLimits) -> None:
    seconds, memory = max(1, round(limits.seconds)), limits.memory_mib << 20
    for kind, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, OUTPUT_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the code's process and those that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
