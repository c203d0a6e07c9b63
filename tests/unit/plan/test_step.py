"""The planner's seconds: against published runs, and what must make a step longer or shorter."""

import statistics

import pytest

from benchmarks.planner.__main__ import error, rank_correlation
from benchmarks.planner.memory import planned_gb, published_gb
from benchmarks.planner.on_cpu import NEAR, predictions
from benchmarks.planner.rows import families, predicted, rows
from megalite.distributed.mesh import ParallelConfig
from megalite.models.config import ModelConfig
from megalite.plan.constants import constants_of
from megalite.plan.devices import DEVICES, NETWORKS, Cluster
from megalite.plan.job import Engine, Job
from megalite.plan.kernels import Kernels
from megalite.plan.memory import Work
from megalite.plan.outlook import Terms, outlook
from megalite.plan.search import to_take
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


@pytest.fixture(scope="module")
def layouts():
    """Published layouts of one model and batch, predicted and published seconds."""
    timed = [row for row in rows() if row.kind == "a100" and row.seconds]
    return [
        ([predicted(row, CONSTANTS).total for row in group], [row.seconds for row in group], group)
        for group in families(timed).values()
    ]


def test_the_layout_taken_is_as_fast_as_the_fastest_published(layouts):
    for times, published, group in layouts:
        taken = to_take(times, [planned_gb(row) for row in group])
        assert published[taken] <= 1.05 * min(published), group[taken].name


def test_bloom_s_sweep_is_in_order(layouts):
    times, published, _ = max((one for one in layouts if one[2][0].group == "bloom"), key=len_of)
    assert len(times) == 16
    assert rank_correlation(times, published) >= 0.8


def len_of(layout):
    return len(layout[0])


@pytest.mark.parametrize("batch", [32, 128, 512])
@pytest.mark.parametrize("axis", ["pp", "tp"])
def test_more_model_parallelism_is_slower_where_a_replica_fits_a_device(axis, batch):
    """A model of 5.9B on 64 devices: Narayanan et al. 2021, arXiv:2104.04473, figures 14 and 15."""
    model = ModelConfig(
        vocab_size=51200, hidden_size=3840, num_layers=32, num_heads=32, ffn_size=15360, gated=False
    )
    work = Work(model, TrainConfig(global_batch_size=batch, precision="bf16"), 2048)
    engine = Engine(fused_attention=False, sharded="nothing", cuts_sends=True, hides_tp=False)
    times = []
    for size in (2, 4, 8, 16, 32):
        layout = ParallelConfig(**{axis: size}, replicate=64 // size, recompute="full")
        times.append(step_seconds(Job(work, layout, engine), A100, CONSTANTS).total)
    assert times == sorted(times)


@pytest.mark.parametrize("batch", [32, 128])
def test_tp_within_a_node_and_pp_beyond_is_fastest(batch):
    """A model of 162B on 64 devices: Narayanan et al. 2021, figure 13 and what is said of it."""
    model = ModelConfig(
        vocab_size=51200,
        hidden_size=20480,
        num_layers=32,
        num_heads=128,
        ffn_size=81920,
        gated=False,
    )
    work = Work(model, TrainConfig(global_batch_size=batch, precision="bf16"), 2048)
    engine = Engine(fused_attention=False, sharded="nothing", cuts_sends=True, hides_tp=False)
    times = {}
    for tp in (2, 4, 8, 16, 32):
        layout = ParallelConfig(tp=tp, pp=64 // tp, recompute="full")
        times[tp] = step_seconds(Job(work, layout, engine), A100, CONSTANTS).total
    assert min(times, key=lambda tp: times[tp]) == 8


def test_bloom_s_memory_is_that_of_its_engine():
    for row in rows():
        if row.group.startswith("bloom"):
            if row.memory_gb:
                assert published_gb(row) == pytest.approx(row.memory_gb, abs=4.1), row.name
            elif not row.fits:
                assert published_gb(row) > 80


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


def test_small_work_waits_for_its_host():
    small = {"hidden_size": 256, "num_heads": 4, "ffn_size": 688}
    found = seconds(model=small)
    assert found.host > found.compute
    assert seconds().host == 0.0


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
    run = outlook(job, found, job.operations, Kernels(A100.device, CONSTANTS), terms)
    wanted = job.operations.model / (8 * found.total * 312e12)
    assert run.mfu == pytest.approx(wanted)
    assert run.mfu < run.hfu < 1.0
    assert run.days == pytest.approx(1000 * found.total / 86400)
    assert run.gpu_hours == pytest.approx(run.days * 24 * 8)
    mean_s = 1000 / 6.5 * 86400  # between failures of one node
    assert run.interval_s == pytest.approx((2 * 60 * mean_s) ** 0.5)
    assert 0.9 < run.goodput < 1.0


def test_one_measured_layout_of_cpus_predicts_the_others():
    """Seconds of benchmarks.planner.on_cpu on two cores, 2026-11-28."""
    found = {"1": 4.855, "tp2": 3.242, "pp2": 2.775, "fsdp2": 2.962}
    told = predictions(found, "1")
    for name, seconds in found.items():
        assert told[name].total == pytest.approx(seconds, rel=NEAR), name
