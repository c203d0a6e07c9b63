"""Processes of this machine, and where a thread of this one is."""

import os
from pathlib import Path
from types import FrameType

PACKAGE = Path(__file__).parents[1]


def fingerprint(frame: FrameType | None) -> tuple:
    """Where a thread is, exactly; two of a thread that runs differ."""
    places = []
    while frame is not None:
        places.append((id(frame.f_code), frame.f_lasti))
        frame = frame.f_back
    return tuple(places)


def where(frame: FrameType | None) -> tuple[str, bool]:
    """The function and line of this package that a thread is in, and what it called there.

    Returns:
        The text, and whether that was a call of torch.distributed.
    """
    if frame is None:
        return "", False
    inner, waits = frame.f_code.co_name, False
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            return f"{inner} ({'/'.join(path.parts[-2:])}:{frame.f_lineno})", waits
        if path.name == "distributed_c10d.py":
            inner, waits = frame.f_code.co_name, True
        frame = frame.f_back
    return inner, waits


def status(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return []


def birth(pid: int) -> int:
    """When a process started, in the kernel's clock ticks; 0 where that is not told."""
    fields = status(pid)
    return int(fields[19]) if fields else 0


def pid_space() -> str:
    """What process ids are numbers in: two containers may have the same."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def lives(pid: int, born: int) -> bool:
    """Whether a process of this machine is there still, and is the same."""
    fields = status(pid)
    return bool(fields) and fields[0] not in "ZX" and int(fields[19]) == born


def is_stopped(pid: int) -> bool:
    """Whether a process has been sent SIGSTOP, or is held by a debugger."""
    fields = status(pid)
    return bool(fields) and fields[0] in "tT"
