"""Starts that fail at one place again and again: the next is refused, with what they share."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from megalite.cli import main
from megalite.data.corpus.store import StoreWriter
from megalite.tools.report.page import ReportConfig, page
from megalite.training.watchdog.report import FaultFolder

CONFIG = """
[model]
vocab_size = 64
hidden_size = 16
num_layers = 1
num_heads = 2
ffn_size = 16
[train]
steps = 6
global_batch_size = 4
[checkpoint]
every = 2
asynchronous = false
[run]
trackers = []
device = "cpu"
threads = 1
[data]
sequence_length = 16
"""
BROKEN = ("--faults.kind", "raise", "--faults.restart", "-1", "--faults.step")


@pytest.fixture
def start(tmp_path, monkeypatch, capsys):
    """Starts a run as torchrun does, or by hand; gives its exit code and what it says on stderr."""
    (tmp_path / "config.toml").write_text(CONFIG)
    writer = StoreWriter(tmp_path / "data", np.dtype(np.uint16))
    for number in range(20):
        writer.add((np.arange(30) * (number + 3)) % 64)
    writer.close()
    monkeypatch.chdir(tmp_path)

    def go(restart: int, *more: str, requeued: int = 0) -> tuple[int, str]:
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restart))
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(requeued))
        words = ["pretrain", "config.toml", "--data.train", '["data"]', "--run.folder", "run"]
        try:
            code = main([*words, *more])
        except RuntimeError:
            code = 1
        return code, capsys.readouterr().err

    return go


def test_the_fourth_start_that_would_fail_alike_is_refused_with_a_diagnosis(tmp_path, start):
    assert [start(restart, *BROKEN, "3")[0] for restart in range(4)] == [1] * 4  # from 0, 2, 2, 2
    code, said = start(4, *BROKEN, "3")
    assert code == 4
    (line,) = said.splitlines()
    assert "run: 3 starts in a row went on from step 2 and failed before another checkpoint" in line
    assert ") in step 3, forward_backward: RuntimeError: a fault on purpose in step 3" in line
    assert "in step 3 3 times; on " in line
    assert "that step has samples 8-11 of the run's order" in line
    assert "mend the cause" in line
    assert start(0, *BROKEN, "3")[0] == 1  # by hand it may always try
    assert start(1)[0] == 0
    assert not (tmp_path / "run" / "starts.json").exists()
    text = page(ReportConfig(runs=("run",)))
    six = '<td>run</td><td class="number">6</td><td class="number">5</td><td class="number">0</td>'
    assert six in text
    assert text.count("RuntimeError: a fault on purpose") + text.count(">a fault on purpose") == 5
    assert text.count("<td>done</td>") == 1


def test_progress_begins_anew_and_a_requeued_job_does_not(start):
    for step in ("1", "1", "3", "3", "5", "5", "5", "5"):
        assert start(1, *BROKEN, step)[0] == 1
    assert start(0, *BROKEN, "5", requeued=2)[0] == 4
    assert start(1, *BROKEN, "5", "--run.most_failures", "4")[0] == 1
    assert start(1, *BROKEN, "5", "--run.most_failures", "0")[0] == 1


def test_what_a_watchdog_reported_is_told_and_a_kill_without_a_word_too(tmp_path, start):
    assert start(0, *BROKEN, "1")[0] == 1
    starts = tmp_path / "run" / "starts.json"
    (entry,) = json.loads(starts.read_text())
    later = {"fault": "", "time": "9999-01-01 00:00:00"}  # the clock was set back since
    starts.write_text(json.dumps([{**entry, **later, "restart": n} for n in range(3)]))
    code, said = start(3)
    assert code == 4
    assert "3 starts in a row went on from its beginning and failed" in said
    assert "killed without a word" in said
    for number in range(3):
        report = FaultFolder(tmp_path / "run" / "faults" / f"restart-{number}", 0)
        report.report("rank 7 (node3, process 5) in step 1, data: was killed or crashed", [], False)
    said = start(3)[1]
    assert "the last by: rank 7 (node3, process 5) in step 1, data: was killed" in said
    assert "on node3 3 times; that step has samples 0-3 of" in said


def test_a_process_ends_its_launcher_and_outlives_its_signal():
    """The launcher hands SIGTERM on, as torchrun does, and notes how the process ended."""
    child = (
        "import os, time; from megalite.distributed.launch import Launch\n"
        "launch = Launch(launcher=os.getppid())\n"
        "with launch.stop.caught(): launch.end_launcher(); time.sleep(0.3)\n"
        "os._exit(4)"
    )
    parent = (
        "import signal, subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "def hand_on(number, _frame): got.append(number), child.send_signal(number)\n"
        "signal.signal(signal.SIGTERM, hand_on)\n"
        "got = []\n"
        "print(child.wait(), got)"
    )
    done = subprocess.run(
        [sys.executable, "-c", parent], capture_output=True, text=True, check=True, timeout=100
    )
    assert done.stdout == f"4 [{signal.SIGTERM:d}]\n", done.stderr
