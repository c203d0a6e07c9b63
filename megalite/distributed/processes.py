"""Processes of this machine, as Linux's /proc shows them."""

import os
import socket
from pathlib import Path


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return []


def start_time(pid: int) -> int:
    """When a process started, in the kernel's clock ticks; 0 where /proc doesn't tell."""
    fields = _stat(pid)
    return int(fields[19]) if fields else 0


def boot() -> str:
    """The start of this machine's kernel; where that isn't told, the machine's name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return socket.gethostname()


def pid_namespace() -> str:
    """Where this process's id counts: two containers, and two machines, may use the same numbers.

    The first namespace of every kernel has the same number, and machines that are copies of one
    have the same name.
    """
    try:
        return f"{boot()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def is_alive(pid: int, started: int) -> bool:
    """Whether a process of this machine still runs, and is the one that started then."""
    fields = _stat(pid)
    return bool(fields) and fields[0] not in "ZX" and int(fields[19]) == started


def is_stopped(pid: int) -> bool:
    """Whether a process was stopped by SIGSTOP, or is held by a debugger."""
    fields = _stat(pid)
    return bool(fields) and fields[0] in "tT"
