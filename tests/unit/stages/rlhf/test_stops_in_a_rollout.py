"""A run that is stopped or killed while it writes answers loses that step at most."""

import signal
import subprocess
import sys

from megalite.cli import main
from tests.unit.stages.rlhf.test_grpo_runs import exact

# The process of rules is a child of the run, which waits for scores in the middle of its rollout.
STOPS = """
import os
import signal
from pathlib import Path

def stops(prompt, answer, row):
    told = Path(__file__).with_name("signal.txt")
    asked = Path(__file__).with_name("asked.txt")
    if answer:
        with asked.open("a") as file:
            file.write("x")
        if told.exists() and asked.stat().st_size == SECOND_STEP:
            os.kill(os.getppid(), getattr(signal, told.read_text()))
    return -len(answer)
"""
ANSWERS = {"ppo": 4, "grpo": 8}  # of a step
ADAPTED = ["--lora.rank", "2", "--critic_shares_base", "true"]


def words_of(work, stage: str) -> tuple:
    """A folder of its own, where ``signal.txt`` names the signal, and a run's words."""
    folder = work.folder / f"stops-{stage}"
    folder.mkdir()
    (folder / "stops.py").write_text(STOPS.replace("SECOND_STEP", str(ANSWERS[stage] + 2)))
    words = ["--reward.function", f"{folder}/stops.py:stops", "--reward.workers", "1"]
    more = ADAPTED if stage == "ppo" else ["--rollout.answers", "2"]
    return folder, [*words, *more, "--checkpoint.every", "1"]


def in_second_rollout(work, folder, name: str, words: list[str], run) -> int:
    """Have a signal in the second step's rollout; gives what ``run`` does of the command line."""
    (folder / "asked.txt").unlink()
    (folder / "signal.txt").write_text(name)
    try:
        return run(work.align_words(folder.name.removeprefix("stops-"), name, *words))
    finally:
        (folder / "signal.txt").unlink()


def test_a_run_that_is_killed_does_that_step_again_bit_for_bit(work):
    folder, words = words_of(work, "ppo")
    whole = work.align("ppo", "unkilled", *words)

    def run(line: list[str]) -> int:
        line = [sys.executable, "-m", "megalite", *line]
        return subprocess.run(line, timeout=200, check=False, capture_output=True).returncode

    assert in_second_rollout(work, folder, "SIGKILL", words, run) == -signal.SIGKILL
    assert len(work.metrics("SIGKILL")) == 1
    assert exact(work.align("ppo", "SIGKILL", *words)) == exact(whole)


def test_a_run_that_is_asked_to_stop_ends_that_step_and_goes_on_bit_for_bit(work):
    folder, words = words_of(work, "grpo")
    whole = work.align("grpo", "unstopped", *words)
    assert in_second_rollout(work, folder, "SIGTERM", words, main) == 3
    assert len(work.metrics("SIGTERM")) == 2
    assert exact(work.align("grpo", "SIGTERM", *words)) == exact(whole)
