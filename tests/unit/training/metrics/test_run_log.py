"""What a run tells: metrics that survive a kill, TensorBoard's files, a line that fits."""

import json
import os
import resource
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megalite.errors import DataError
from megalite.training.metrics.console import OMITTED, SHOWN, fitted
from megalite.training.metrics.lines import Lines
from megalite.training.metrics.run_log import RunLog

PARTS = {
    "step": "step 100/2000",
    "loss": "loss 4.1234",
    "heldout_loss": "held-out 4.2345",
    "learning_rate": "lr 1.00e-03",
    "tokens_per_s": "12,345 tokens/s",
    "mfu": "MFU 45.6%",
    "left_s": "0:01:30 left",
}


def rows(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@given(st.integers(1, 200))
def test_a_line_fits_and_keeps_what_tells_most(width):
    line = fitted(PARTS, width)
    assert len(line) <= width
    shown = line.split(" | ") if line else []
    assert set(shown) <= set(PARTS.values())  # no number is cut
    if width >= 60:
        for key in ("step", "loss", "heldout_loss", "left_s"):
            assert PARTS[key] in shown
    if width >= 90:
        assert PARTS["tokens_per_s"] in shown
        assert PARTS["mfu"] in shown
    assert set(OMITTED) == set(SHOWN) | {"step"}


def test_a_line_has_speed_mfu_and_time_left(tmp_path, capsys):
    log = RunLog(tmp_path, True, 100)
    for step in (1, 2):
        values = {"loss": 2.0, "tokens_per_s": 1234.5, "mfu": 0.25, "learning_rate": 1e-3}
        log.metrics(step, values, show=True)
    log.close()
    first, second = capsys.readouterr().out.splitlines()
    assert first == "step 1/100 | loss 2.0000 | lr 1.00e-03 | 1,234 tokens/s | MFU 25.0%"
    assert second.startswith(
        "step 2/100 | loss 2.0000 | lr 1.00e-03 | 1,234 tokens/s | MFU 25.0% | 0:0"
    )
    assert second.endswith(" left")
    assert (tmp_path / "log.txt").read_text().splitlines() == [first, second]


def test_parts_of_a_reward_and_sets_are_shown_by_name(tmp_path, capsys):
    log = RunLog(tmp_path, True, 100)
    log.metrics(1, {"reward": 3.0, "reward/safety": 2.0, "heldout_loss/code": 1.0}, show=True)
    log.close()
    wanted = "step 1/100 | reward 3.000 | reward/safety 2.000 | held-out code 1.0000\n"
    assert capsys.readouterr().out == wanted


def test_a_torn_line_and_later_steps_go_when_a_run_goes_on(tmp_path):
    log = RunLog(tmp_path, True, 10)
    for step in range(6):
        log.metrics(step, {"loss": float(step)}, show=False)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')
    log.rewind(3)
    log.metrics(4, {"loss": 40.0}, show=False)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'\xff\x00\n3\n[1]\n{"step"\n' + path.read_bytes())  # a disk's damage
    log.rewind(4)
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [
        (0, 0), (1, 1), (2, 2), (3, 3), (4, 40),
    ]  # fmt: skip


def test_a_number_that_is_not_finite_is_still_json(tmp_path):
    RunLog(tmp_path, True, 1).metrics(1, {"loss": float("nan")}, show=False)
    assert rows(tmp_path) == [{"step": 1, "loss": "nan"}]


def test_only_the_first_process_writes(tmp_path):
    log = RunLog(tmp_path / "run", False, 1, lambda _: pytest.fail("opened a tracker"))
    log.metrics(1, {"loss": 1.0}, show=True)
    log.write("config.toml", "x")
    log.say("x")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_lines_wait_for_a_full_disk_to_have_room(tmp_path, capsys):
    log, metrics = RunLog(tmp_path, True, 1), tmp_path / "metrics.jsonl"
    metrics.symlink_to("/dev/full")
    for step in (1, 2):
        log.metrics(step, {"loss": 1.0}, show=False)
    said = f"{metrics}: can't be written: No space left on device: training goes on"
    assert capsys.readouterr().out.count(said) == 1
    with pytest.raises(DataError, match="No space left.* these lines are lost"):
        log.close()
    metrics.unlink()
    log.metrics(3, {"loss": 1.0}, show=False)
    log.close()
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == [1, 2, 3]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("kind", ["full disk", "nobody reads"])
def test_a_console_that_is_gone_ends_no_run(tmp_path, monkeypatch, kind):
    if kind == "full disk":
        writer = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, writer = os.pipe()
        os.close(reader)
    console = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stdout", console)
    log = RunLog(tmp_path, True, 2)
    for step in (1, 2):
        log.metrics(step, {"loss": 1.0}, show=True)
        log.say("x" * 9999)
    log.close()
    console.close()  # nothing is left that could not be written
    assert len(rows(tmp_path)) == 2
    assert (tmp_path / "log.txt").read_text().count("x" * 9999) == 2


def test_a_line_that_was_cut_by_a_full_disk_is_written_once_and_whole(tmp_path):
    lines, limits = Lines(tmp_path / "a"), resource.getrlimit(resource.RLIMIT_FSIZE)
    assert lines.add("x" * 99) == ""
    resource.setrlimit(resource.RLIMIT_FSIZE, (150, limits[1]))
    try:
        assert "File too large" in lines.add("y" * 99)
        assert (tmp_path / "a").read_text() == "x" * 99 + "\n"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not lines.is_written
    assert lines.add("z") == ""
    assert (tmp_path / "a").read_text().split() == ["x" * 99, "y" * 99, "z"]
