"""Trackers get each step's metrics under the names of metrics.jsonl, also of a run that goes on."""

import json
import struct
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from megalite.errors import ConfigError
from megalite.training.metrics.run_log import RunLog
from megalite.training.metrics.trackers import open_trackers
from megalite.training.metrics.trackers.kept import flat

ABOUT = {"train": {"steps": 4, "spikes": {"policy": "warn"}}, "stage": "sft"}


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")


def play(folder, name, starts):
    """A run that goes on: metrics of steps from each start on."""
    for first, values in starts:
        log = RunLog(folder, True, 4, partial(open_trackers, [name], about=ABOUT))
        for step, value in enumerate(values, first):
            log.metrics(step, {"loss": value, "heldout_loss/code": 2 * value}, show=False)
        log.close()


WENT_BACK = ((1, [5.0, 4.0, 3.0, 2.0]), (3, [30.0, 20.0]))


@pytest.mark.parametrize("writers_before", range(8, 11))
def test_tensorboard_reads_the_curve_of_a_run_that_went_on(tmp_path, monkeypatch, writers_before):
    """TensorBoard reads files in the order of their names, whose end is a number: 10 before 9."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.summary.writer import event_file_writer

    monkeypatch.setattr(event_file_writer._global_uid, "_value", writers_before)
    play(tmp_path, "tensorboard", WENT_BACK)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    curve = {event.step: event.value for event in board.Scalars("loss")}
    assert curve == {1: 5.0, 2: 4.0, 3: 30.0, 4: 20.0}
    assert [event.value for event in board.Scalars("heldout_loss/code")][:2] == [10.0, 8.0]


@pytest.mark.slow
def test_mlflow_has_one_run_with_both_halves(tmp_path):
    import mlflow

    folder = tmp_path / "runs" / "sft"
    folder.mkdir(parents=True)
    play(folder, "mlflow", WENT_BACK)
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("megalite").experiment_id])
    assert run.info.run_name == "sft"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"train.steps": "4", "train.spikes.policy": "warn", "stage": "sft"}
    points = client.get_metric_history(run.info.run_id, "loss")
    assert [(p.step, p.value) for p in points] == [
        (1, 5.0), (2, 4.0), (3, 3.0), (4, 2.0), (3, 30.0), (4, 20.0),
    ]  # fmt: skip
    assert run.data.metrics["heldout_loss/code"] == 40.0


def records_of(file: bytes) -> Iterator[bytes]:
    """The records of W&B's file of a run: LevelDB's log format behind 7 bytes."""
    place, parts = 7, b""
    while place + 7 <= len(file):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", file, place)
        if place + 7 + length > len(file):
            return  # it is being written
        parts += file[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


@pytest.mark.slow
def test_wandb_keeps_the_number_of_the_run_that_goes_on(tmp_path):
    play(tmp_path, "wandb", WENT_BACK)
    number = json.loads((tmp_path / "trackers.json").read_text())["wandb"]
    expected = sorted(
        (step, value, 2 * value)
        for first, values in WENT_BACK
        for step, value in enumerate(values, first)
    )
    until = time.monotonic() + 60  # a process of W&B's own writes the files
    while (seen := curve_of(tmp_path / "wandb", number)) != expected and time.monotonic() < until:
        time.sleep(0.2)
    assert seen == expected


def curve_of(folder: Path, number: str) -> list[tuple[int, float, float]]:
    """Steps and metrics in the files of a run of two starts."""
    from wandb.proto.wandb_internal_pb2 import Record

    files = sorted(folder.glob(f"offline-run-*/run-{number}.wandb"))
    assert len(files) == 2
    seen = []
    for data in (data for file in files for data in records_of(file.read_bytes())):
        items = {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json)
            for item in Record.FromString(data).history.item
        }
        seen += [(items["step"], items["loss"], items["heldout_loss/code"])] if items else []
    return sorted(seen)


class Failing:
    def add(self, step, values):
        if step == 2:
            raise ConnectionError("no route to host\nsecond line")

    def close(self):
        raise RuntimeError("closed after it failed")


def test_a_tracker_that_fails_is_said_and_left_out(tmp_path, capsys):
    log = RunLog(tmp_path, True, 3, lambda _: {"mlflow": Failing()})
    for step in (1, 2, 3):
        log.metrics(step, {"loss": 1.0}, show=False)
    log.close()
    said = capsys.readouterr().out
    assert said == "mlflow: no route to host: training goes on without this tracker\n"
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"--run.trackers wandb: needs .* 'megalite\[trackers\]'"):
        open_trackers(["wandb"], tmp_path, ABOUT)


def test_keys_of_a_config_are_whole_names():
    assert flat(ABOUT) == {"train.steps": 4, "train.spikes.policy": "warn", "stage": "sft"}
