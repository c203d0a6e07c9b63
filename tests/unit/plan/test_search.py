"""The search of layouts: as good as trying all, written as a config, refused with what would do."""

import dataclasses
import itertools
import json
from pathlib import Path

import pytest

from megalite.cli import find_command, load_config, main
from megalite.distributed.mesh import ParallelConfig
from megalite.engine.layout import Demand, faults
from megalite.models.config import ModelConfig
from megalite.plan.constants import constants_of
from megalite.plan.devices import DEVICES, NETWORKS, Cluster
from megalite.plan.job import Job
from megalite.plan.memory import HEADROOM, Work, estimate, most
from megalite.plan.search import Search
from megalite.plan.step import step_seconds
from megalite.training.config import TrainConfig

CLUSTER = Cluster(DEVICES["v100-16gb"], NETWORKS["ib-100"])
SMALL = ["--model.num_layers", "4", "--train.global_batch_size", "16"]


def test_the_best_is_that_of_all_layouts():
    constants = constants_of("a100")
    train = TrainConfig(global_batch_size=16, precision="fp16")
    work = Work(ModelConfig(hidden_size=2048, num_heads=16, ffn_size=5504), train, 1024)
    (best,) = Search(work, ParallelConfig(), CLUSTER, constants).best(4, 1)
    least = float("inf")
    sizes = [s for s in itertools.product((1, 2, 4), repeat=4) if s[0] * s[1] * s[2] * s[3] == 4]
    options = itertools.product(
        sizes,
        (1, 2, 4, 8, 16),
        ("none", "selective", "full"),
        (False, True),
        (False, True),
        (1, 2, 3),
    )
    for (tp, pp, shard, replicate), micro, recompute, rows, drops, chunks in options:
        parallel = ParallelConfig(
            tp=tp,
            pp=pp,
            shard=shard,
            replicate=replicate,
            recompute=recompute,
            sequence_parallel=rows,
            reshard_after_forward=drops,
            chunks_per_rank=chunks,
            schedule="interleaved" if chunks > 1 else "1f1b",
        )
        sized = train.model_copy(update={"micro_batch_size": micro})
        one = dataclasses.replace(work, train=sized)
        if next(faults(Demand(work.model, 4, sized.batch_sizes()), parallel), None) is None:
            total = most(estimate(one, parallel)).total
            if total <= HEADROOM * CLUSTER.device.memory_gib:
                least = min(least, step_seconds(Job(one, parallel), CLUSTER, constants).total)
    assert best.seconds.total <= 1.03 * least


def test_the_best_layout_is_a_config_that_pretrain_takes(tmp_path: Path, capsys):
    path = tmp_path / "best.toml"
    assert main(["plan", *SMALL, "--search", "--gpus", "4", "--output", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "tokens/s" in shown
    command, rest = find_command(["pretrain", str(path)])
    config, _ = load_config(command, rest)
    parallel = config.parallel
    assert parallel.tp * parallel.pp * parallel.shard * parallel.replicate == 4


def test_devices_for_so_many_days_are_found(capsys):
    assert main(["plan", *SMALL, "--days", "1"]) == 0
    shown = capsys.readouterr().out
    assert "devices:" in shown
    assert "Hoffmann" in shown


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--gpu", "b300"], "a100-80gb"),
        (["--price_per_gpu_hour=-1"], "price_per_gpu_hour"),
        (["--gpu", "cpu", "--search"], "--calibrate RUN"),
        (["--calibration", "absent.json"], "absent.json"),
        (["--search", "--gpus", "7"], "no layout of 7 devices fits 8 heads"),
        (
            [
                "--model.preset",
                "llama-7b",
                "--search",
                "--gpus",
                "1",
                "--gpu",
                "v100-16gb",
                "--calibration",
                "CALIBRATION",
            ],
            "would do",
        ),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line(words, told, tmp_path: Path, capsys):
    stored = dataclasses.asdict(constants_of("a100"))
    (tmp_path / "v100.json").write_text(json.dumps({"kind": "v100", **stored}))
    words = [str(tmp_path / "v100.json") if word == "CALIBRATION" else word for word in words]
    assert main(["plan", *words]) == 2
    shown = capsys.readouterr().err
    assert told in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "metrics.jsonl:1 is no JSON"),
        ('{"step_s": "a", "tflops_per_rank": 1}', "numbers above 0, not 'a' and 1"),
        ('{"step_s": 0, "tflops_per_rank": 1}', "numbers above 0, not 0 and 1"),
        ('{"loss": 1}', "train a few more steps"),
    ],
)
def test_a_run_without_what_calibrating_needs_is_refused(line, told, tmp_path: Path, capsys):
    (tmp_path / "config.toml").write_text("[model]\nnum_layers = 4\n")
    (tmp_path / "metrics.jsonl").write_text(f"{line}\n" * 4)
    assert main(["plan", "--gpu", "cpu", "--calibrate", str(tmp_path)]) == 2
    shown = capsys.readouterr().err
    assert told in shown
    assert shown.count("\n") == 1


def test_a_device_without_constants_has_its_memory_planned(capsys):
    assert main(["plan", *SMALL, "--gpu", "v100-32gb"]) == 0
    assert "no time is told: --gpu v100-32gb" in capsys.readouterr().out


def test_a_run_s_steps_set_the_constants(tmp_path: Path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    words = ["--model.num_layers", "4", "--train.global_batch_size", "16", "--gpu", "cpu"]
    (run / "config.toml").write_text("[train]\nglobal_batch_size = 16\n[model]\nnum_layers = 4\n")
    row = {"step_s": 2.5, "tflops_per_rank": 0.1}
    (run / "metrics.jsonl").write_text(f"{json.dumps(row)}\n" * 2)
    output = ["--output", str(tmp_path / "mine")]
    assert main(["plan", *words, "--calibrate", str(run), *output]) == 2
    assert "train a few more steps" in capsys.readouterr().err
    (run / "metrics.jsonl").write_text(f"{json.dumps(row)}\n" * 5)
    assert main(["plan", *words, "--calibrate", str(run), *output]) == 0
    capsys.readouterr()
    assert main(["plan", *words, "--calibration", str(tmp_path / "mine.json")]) == 0
    assert "s a step" in capsys.readouterr().out
