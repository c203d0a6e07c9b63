"""Ranks that raise, leave a collective out, are stopped or killed: named, ended, resumed."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import command_line, environment, losses

pytestmark = pytest.mark.dist

TIMEOUT_S = 10
LAYOUT = ("--parallel.tp", "2", "--parallel.timeout_s", str(TIMEOUT_S), "--model.dropout", "0.1")


def fault(kind: str, step: int, phase: str, rank: int = 1, **more) -> list[str]:
    values = {"kind": kind, "rank": rank, "step": step, "phase": phase, **more}
    return [word for key, value in values.items() for word in (f"--faults.{key}", str(value))]


def restarting(words: list[str], restarts: int) -> list[str]:
    """The command line of two processes that torchrun starts again."""
    line = command_line(words, 2)
    at = line.index("--standalone") + 1
    return [*line[:at], f"--max-restarts={restarts}", *line[at:]]


def run(words: list[str], restarts: int) -> subprocess.CompletedProcess:
    line = restarting(words, restarts)
    options = {"capture_output": True, "text": True, "env": environment(), "check": False}
    return subprocess.run(line, timeout=200, **options)


def named(said: str) -> str:
    """The one line of megalite that names a fault; the line of the fault's doing apart."""
    lines = [line for line in said.splitlines() if line.startswith("megalite: ")]
    found = [line for line in lines if "fault on purpose:" not in line]
    assert len(found) == 1, said[-4000:]
    return found[0]


def stacks(folder: Path, restart: int = 0) -> dict[int, str]:
    files = (folder / "faults" / f"restart-{restart}").glob("rank-*.txt")
    return {int(path.stem.split("-")[1]): path.read_text() for path in files}


@pytest.fixture(scope="module")
def clean(work, pair):
    """An uninterrupted run of two processes with dropout."""
    folder = work.new_run()
    words = work.pretrain_words(folder, *LAYOUT)
    pair.run(2, "tests.dist.stage_jobs:run_stage", words=words)
    assert not (folder / "faults").exists()
    return losses(folder)


def test_a_run_that_meets_one_fault_after_another_has_the_clean_curve(work, clean):
    """Each start goes on from the last; what each says is checked on the way."""
    folder = work.new_run()
    words = work.pretrain_words(folder, *LAYOUT)

    done = run([*words, *fault("raise", 4, "reduce")], restarts=0)
    assert done.returncode != 0
    said = named(done.stderr)
    assert re.search(r"rank 1 \(\S+, process \d+\) in step 4, reduce: RuntimeError", said), said
    assert "clip_grad_norm" in stacks(folder)[0]  # where the other rank waited
    assert "a fault on purpose" in stacks(folder)[1]
    assert "a fault on purpose in step 4" in done.stderr.split("Root Cause")[-1]

    started = time.monotonic()
    done = run([*words, *fault("skip", 7, "reduce")], restarts=0)
    assert time.monotonic() - started < 100
    assert done.returncode != 0
    said = named(done.stderr)
    assert "rank 1" in said, said
    assert "in step 7" in said, said
    assert "left out a collective" in said, said
    assert all("all_reduce" in text for text in stacks(folder).values())
    report = (folder / "faults" / "restart-0" / "report.txt").read_text()
    assert len(re.findall(r"collectives begun: .*default_pg 0 \d+", report)) >= 4

    assert 8 <= stop_on_request(words, folder) < 17

    done = run([*words, *fault("stop", 17, "forward_backward")], restarts=0)
    assert done.returncode != 0
    said = named(done.stderr)
    # A stopped process cannot say where it is: the step is that of its last sign.
    step = re.search(r"rank 1 \(\S+, process \d+\) in step (\d+).* has not answered for", said)
    assert step, said
    assert int(step[1]) <= 17, said
    assert set(stacks(folder)) == {0, 1}
    assert all(text.count("Thread 0x") for text in stacks(folder).values())

    # Rank 0 hosts the store of torchrun's next start, too.
    done = run([*words, *fault("kill", 19, "optimizer", rank=0)], restarts=1)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"rank 0 .* was killed or crashed; rank 1 is in step (19|20)", done.stderr)
    assert done.stdout.count("resuming from") == 2
    assert losses(folder) == clean


def stop_on_request(words: list[str], folder: Path) -> int:
    """SIGTERM to one rank: all end with exit code 3 after the same step; gives that step."""
    slowly = fault("slow", 8, "data", steps=100, delay_s=0.3)
    process = subprocess.Popen(
        restarting([*words, *slowly], 0), stderr=subprocess.PIPE, text=True, env=environment()
    )
    until = time.monotonic() + 150
    while len(losses(folder)) < 8:
        assert process.poll() is None, process.stderr.read()[-3000:]
        assert time.monotonic() < until
        time.sleep(0.05)
    workers = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    )
    pids = [int(pid) for pid in workers.stdout.split()]
    environments = {pid: Path(f"/proc/{pid}/environ").read_bytes() for pid in pids}
    (second,) = [pid for pid, text in environments.items() if b"\0RANK=1\0" in text]
    os.kill(second, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert said.count("exitcode  : 3 ") == 2, said[-3000:]
    step = int(re.search(r"stopped on request; step (\d+) is saved", said)[1])
    assert (folder / "checkpoints" / "latest").read_text() == f"step-{step:08}"
    return step


def test_processes_end_when_their_torchrun_is_killed(work):
    """They would train on, and a run that is started again would find their lines among its own."""
    folder = work.new_run()
    words = work.pretrain_words(folder, *LAYOUT, *fault("slow", 3, "data", steps=999, delay_s=0.2))
    process = subprocess.Popen(
        restarting([*words, "--train.steps", "999"], 0),
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    until = time.monotonic() + 150
    while not (folder / "metrics.jsonl").exists():
        assert process.poll() is None, process.stderr.read()[-3000:]
        assert time.monotonic() < until
        time.sleep(0.05)
    started = time.monotonic()
    process.kill()
    said = process.communicate(timeout=60)[1]  # ends when the last process has closed it
    assert time.monotonic() - started < TIMEOUT_S
    assert "Traceback" not in said
    for rank in range(2):
        assert re.search(
            rf"rank {rank} \(\S+, process \d+\) in step \d+, \w+: its torchrun \(process "
            rf"{process.pid}\) was killed or crashed",
            said,
        ), said


def test_a_process_killed_at_every_point_of_a_save_loses_nothing(work, whole):
    """One folder, killed at each point in turn; every start goes on from what was complete."""
    folder = work.new_run()
    words = work.pretrain_words(folder, "--checkpoint.every", "2")
    saved, last = [], 0
    for number, point in enumerate(
        ("write_data", "write_manifest", "rename", "move_latest", "delete_old")
    ):
        kill_in = 2 * number + 6
        done = work.start([*words, *fault("kill", kill_in, point, rank=0)]).wait()
        assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
        last = newest_whole(folder)
        saved.append(last)
    assert saved == [4, 6, 8, 12, 14]
    done = work.start(words).wait()
    assert "step-00000014" in done.stdout
    assert losses(folder) == losses(whole)


def newest_whole(folder: Path) -> int:
    from megalite.training.checkpoint.manager import CheckpointManager

    path, facts = CheckpointManager(folder / "checkpoints", say=lambda _text: None).latest()
    assert path.name == f"step-{facts['step']:08}"
    return facts["step"]


def test_gradients_that_stay_bad_end_with_advice(work, pair):
    folder = work.new_run()
    words = work.pretrain_words(folder, *LAYOUT, "--train.max_bad_steps", "3")
    words += fault("nan", 2, "reduce", steps=100)
    for said in pair.run(2, "tests.dist.start_jobs:refusal", words=words, last=[]):
        assert "not finite for 3 steps in a row" in said
        assert "--optimizer.learning_rate" in said
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [row["grad_norm"] == "nan" for row in rows] == [False, True, True]
    assert "step 3: its gradients were not finite" in (folder / "log.txt").read_text()
