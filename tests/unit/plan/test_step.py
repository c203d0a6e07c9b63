"""The planner's seconds: against published runs, and what must make a step longer or shorter."""

import statistics

import pytest

from benchmarks.planner.__main__ import error
from benchmarks.planner.rows import rows
from megalite.distributed.mesh import ParallelConfig
from megalite.models.config import ModelConfig
from megalite.plan.constants import constants_of
from megalite.plan.devices import DEVICES, NETWORKS, Cluster
from megalite.plan.job import Job
from megalite.plan.kernels import Kernels
from megalite.plan.memory import Work
from megalite.plan.outlook import Terms, operations, outlook
from megalite.plan.step import step_seconds
from megalite.training.config import TrainConfig

A100 = Cluster(DEVICES["a100-80gb"], NETWORKS["ib-200"])
CONSTANTS = constants_of("a100")


@pytest.mark.parametrize("kind", ["a100", "h100"])
def test_held_out_runs_are_predicted(kind):
    held = [row for row in rows() if row.kind == kind and row.split == "held"]
    errors = [abs(error(row, constants_of(kind))) for row in held]
    assert statistics.median(errors) <= 0.08
    assert sum(size <= 0.15 for size in errors) >= 0.9 * len(errors)


def seconds(model: dict | None = None, cluster: Cluster = A100, **layout):
    train = TrainConfig(global_batch_size=64, micro_batch_size=2, precision="bf16")
    shape = {"hidden_size": 2048, "num_layers": 16, "num_heads": 16, "ffn_size": 5504}
    work = Work(ModelConfig(**(shape | (model or {}))), train, 2048)
    return step_seconds(Job(work, ParallelConfig(**layout)), cluster, CONSTANTS)


@pytest.mark.parametrize(
    ("shorter", "longer"),
    [
        ({"shard": 8}, {"shard": 8, "recompute": "selective"}),
        ({"shard": 8, "recompute": "selective"}, {"shard": 8, "recompute": "full"}),
        ({"shard": 8}, {"shard": 8, "reshard_after_forward": True}),
        (
            {"pp": 4, "schedule": "interleaved", "chunks_per_rank": 4},
            {"pp": 4},
        ),
        ({"shard": 8}, {"shard": 4}),
        ({"shard": 8}, {"tp": 8}),
        ({"model": {"windows": (256,)}}, {}),
        ({"model": {"vocab_size": 32000}}, {"model": {"vocab_size": 32001}}),
        ({"model": {"head_size": 128}}, {"model": {"head_size": 136}}),
    ],
)
def test_a_step_takes_longer(shorter, longer):
    assert seconds(**shorter).total < seconds(**longer).total


def test_only_a_pipeline_has_a_bubble_and_only_tp_its_collectives():
    assert seconds(shard=8).bubble == seconds(shard=8).sends == seconds(shard=8).tp == 0.0
    found = seconds(pp=2, tp=2, shard=2)
    assert min(found.bubble, found.sends, found.tp, found.dp) > 0.0


def test_a_slower_network_makes_nodes_wait():
    slow = Cluster(A100.device, NETWORKS["ib-100"], adapters=1)
    assert seconds(shard=16, tp=1).total < seconds(cluster=slow, shard=16, tp=1).total


def test_an_encoder_decoder_has_both_streams():
    model = ModelConfig(preset="t5-11b")
    train = TrainConfig(global_batch_size=8, precision="bf16")
    times = [
        step_seconds(Job(Work(model, train, 512, length), ParallelConfig()), A100, CONSTANTS)
        for length in (256, 512, 1024)
    ]
    assert times[0].total < times[1].total < times[2].total


def test_mfu_and_days_are_the_step_s():
    train = TrainConfig(steps=1000, global_batch_size=64, precision="bf16")
    work = Work(ModelConfig(preset="llama-7b"), train, 2048)
    job = Job(work, ParallelConfig(shard=8, recompute="full"))
    found = step_seconds(job, A100, CONSTANTS)
    terms = Terms(2.0, 1000.0, 6.5, 60.0, 8)
    run = outlook(job, found, Kernels(A100.device, CONSTANTS), terms)
    wanted = operations(job).model / (8 * found.total * 312e12)
    assert run.mfu == pytest.approx(wanted)
    assert run.mfu < run.hfu < 1.0
    assert run.days == pytest.approx(1000 * found.total / 86400)
    assert run.gpu_hours == pytest.approx(run.days * 24 * 8)
    mean_s = 1000 / 6.5 * 86400  # between failures of one node
    assert run.interval_s == pytest.approx((2 * 60 * mean_s) ** 0.5)
    assert 0.9 < run.goodput < 1.0
