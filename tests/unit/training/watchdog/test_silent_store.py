"""A store whose machine is gone answers no call and breaks no connection."""

import os
import signal
import subprocess
import sys

STORE = """
import sys
from torch.distributed import TCPStore
store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
print(store.port, flush=True)
sys.stdin.read()
"""
PROCESS = """
import sys
import time
from pathlib import Path
from torch.distributed import TCPStore
from megalite.distributed.launch import Launch
from megalite.training.watchdog.heartbeat import Heartbeat
from megalite.training.watchdog.monitor import Monitor
from megalite.training.watchdog.report import FaultFolder
from megalite.training.watchdog.status import OwnStatus
from megalite.training.watchdog.timeouts import Timeouts

store = TCPStore("127.0.0.1", int(sys.argv[1]), is_master=False, wait_for_workers=False)
folder = FaultFolder(Path(sys.argv[2]), 0)
Monitor(Launch(0, 1), OwnStatus(0, Heartbeat()), store, folder, Timeouts(4.0))
print("watches", flush=True)
time.sleep(100)
"""
PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


def test_a_process_says_that_the_store_is_silent_and_ends(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", STORE], text=True, **PIPES)
    try:
        port = holder.stdout.readline().strip()
        command = [sys.executable, "-c", PROCESS, port, str(tmp_path)]
        process = subprocess.Popen(command, text=True, **PIPES)
        assert process.stdout.readline() == "watches\n", process.stderr.read()
        os.kill(holder.pid, signal.SIGSTOP)
        _, said = process.communicate(timeout=60)
    finally:
        holder.kill()
        holder.communicate()
    assert process.returncode == 1
    assert said.startswith("megalite: rank 0 (")
    assert "torchrun's store has not answered for" in said
    assert "main thread still for" in (tmp_path / "report.txt").read_text()
    assert "Thread 0x" in (tmp_path / "rank-00000.txt").read_text()
