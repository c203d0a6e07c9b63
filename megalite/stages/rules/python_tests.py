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
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

FENCE = re.compile(r"((?:(?!```|~~~).)*)(`{3,}|~{3,})([^`]*)")  # text before it, fence, language
PYTHON = ("", "python", "python3", "py", "py3")  # languages of blocks that are an answer's code
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
    """The code of an answer: its blocks of Python, else those of no language, else all of it.

    A block that isn't closed goes to the answer's end. Backticks behind text, in one line, open a
    block where nothing but its language follows, and close one behind its code; what stands behind
    a closing fence is not read.

    Source: of fences CommonMark 0.31, section 4.5.
    """
    marked: list[str] = []
    others: list[str] = []
    lines = iter(answer.replace("\r\n", "\n").split("\n"))
    for line in lines:
        found = FENCE.fullmatch(line)
        if found is None:
            continue
        before, fence, info = found.groups()
        language = next(iter(info.lower().strip("{} \t").split()), "")
        if before.strip() and (fence[0] == "~" or info.strip().lower() not in PYTHON):
            continue
        indent = 0 if before.strip() else len(before)
        block = list(_block(lines, fence, indent))
        if language in PYTHON:
            (marked if language else others).append("\n".join(block))
    return "\n".join(marked or others or [answer])


def _block(lines: Iterator[str], fence: str, indent: int) -> Iterator[str]:
    """The lines of a block up to its closing fence, without its indentation."""
    for line in lines:
        text = line.strip()
        if text.startswith(fence) and line.index(fence) <= indent + 3:
            return
        code = line.rstrip().rstrip("`")
        if fence[0] == "`" and text.endswith(fence) and code.strip():
            yield _dedented(code, indent)
            return
        yield _dedented(line, indent)


def _dedented(line: str, indent: int) -> str:
    return line[min(indent, len(line) - len(line.lstrip())) :]


def passes_tests(answer: str, tests: str, limits: TestLimits) -> bool:
    """Whether the tests, statements behind the answer's code, all run without an error.

    A line that the code can't know is written behind the tests, so ending early doesn't pass;
    whatever the code did with its output, it is a line of its own.
    """
    word = f"\n{secrets.token_hex(16)}\n".encode()
    program = f"{code_of(answer)}\n{tests}\n__import__('os').write(1, {word!r})\n"
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
        return process.returncode == 0 and word in output.read()


def _limit(limits: TestLimits) -> None:
    seconds, memory = max(1, round(limits.seconds)), limits.memory_mib << 20
    for kind, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, OUTPUT_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        allowed = resource.getrlimit(kind)[1]
        own = most if allowed == resource.RLIM_INFINITY else min(most, allowed)
        resource.setrlimit(kind, (own, own))


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the code's process and those that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
