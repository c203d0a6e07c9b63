"""What ``megalite plan`` says of a step's memory, against what the step holds."""

import pytest

from megalite.distributed.mesh import ParallelConfig
from megalite.models.config import ModelConfig
from megalite.models.part import Part
from megalite.plan.memory import GIB, Work, block_bytes, estimate, sharding_bytes, size_of
from megalite.training.config import TrainConfig
from tests.dist import models


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("reshard", [False, True])
@pytest.mark.parametrize(("processes", "sizes"), [(2, {"shard": 2}), (8, {"shard": 8})])
def test_the_estimate_is_what_a_step_holds(cluster, processes, sizes, reshard, precision):
    """With two processes each has micro-batches whose gradients wait, with eight it has one."""
    layout = {**sizes, "reshard_after_forward": reshard}
    job = "tests.dist.memory_jobs:gathered"
    found = cluster.run(processes, job, model="llama", layout=layout, precision=precision)
    micro = 2 if processes == 2 else 1
    train = TrainConfig(
        global_batch_size=models.SAMPLES, micro_batch_size=micro, precision=precision
    )
    work = Work(models.config("llama"), train, models.LENGTH)
    size = size_of(work.model, Part.whole(work.model))
    gradients, gathered, moving = sharding_bytes(work, ParallelConfig(**layout), size)
    whole = gathered + moving + (gradients if processes == 2 else 0.0)
    ratio = max(found) / whole
    assert (0.5 if reshard else 0.8) < ratio <= 1.01


@pytest.mark.parametrize(
    "layout",
    [{"tp": 2}, {"shard": 2}, {"pp": 2}],
    ids=lambda layout: next(iter(layout)),
)
def test_the_estimate_is_the_peak_that_pytorch_counts(cluster, layout):
    """Everything but the context: states, gradients, what is gathered, activations, the head.

    In fp32, a CPU's format: what the estimate has of a head in half precision is a GPU's.
    """
    model = {
        "vocab_size": 500,
        "hidden_size": 128,
        "num_layers": 6,
        "num_heads": 4,
        "ffn_size": 344,
        "tie_embeddings": False,
    }
    train = {"global_batch_size": 8, "micro_batch_size": 2}
    sizes = {"model": model, "precision": "fp32", "train": train, "length": 128}
    found = cluster.run(2, "tests.dist.memory_jobs:peak", layout=layout, sizes=sizes)
    work = Work(ModelConfig(**model), TrainConfig(precision="fp32", **train), 128)
    stages = estimate(work, ParallelConfig(**layout))
    wanted = max(stage.tensors for stage in stages) * GIB
    assert max(found) == pytest.approx(wanted, rel=0.1)


@pytest.mark.parametrize(
    "layout",
    [{"pp": 2}, {"pp": 2, "schedule": "interleaved", "chunks_per_rank": 2}],
    ids=["1f1b", "interleaved"],
)
def test_a_pipeline_s_peak_does_not_grow_with_its_micro_batches(cluster, layout):
    """Nor is it another one than the estimate."""
    model = {"vocab_size": 500, "hidden_size": 64, "num_layers": 4, "num_heads": 4, "ffn_size": 172}
    peaks = []
    for samples in (4, 16):
        train = {"global_batch_size": samples, "micro_batch_size": 1}
        sizes = {"model": model, "precision": "fp32", "train": train, "length": 128}
        peaks.append(max(cluster.run(2, "tests.dist.memory_jobs:peak", layout=layout, sizes=sizes)))
    assert peaks[1] == pytest.approx(peaks[0], rel=0.1)
    work = Work(ModelConfig(**model), TrainConfig(precision="fp32", **train), 128)
    stages = estimate(work, ParallelConfig(**layout))
    assert peaks[1] == pytest.approx(max(stage.tensors for stage in stages) * GIB, rel=0.1)


SHAPE = {"vocab_size": 100, "hidden_size": 64, "num_heads": 4, "ffn_size": 172}


@pytest.mark.parametrize(
    "model",
    [{}, {"norm_position": "both"}, {"norm_position": "post"}, {"parallel_block": "one_norm"}],
    ids=lambda model: next(iter(model.values()), "pre"),
)
def test_blocks_keep_what_the_estimate_says(cluster, model):
    """With selective recompute and sequence parallelism all but a parallel block's is split."""
    length, depths = 256, (1, 4)
    layouts = [
        {"tp": 2, "recompute": kind, "sequence_parallel": is_cut}
        for kind in ("none", "selective", "full")
        for is_cut in (False, True)
    ]
    shapes = [{**SHAPE, **model, "num_layers": depth} for depth in depths]
    asked = [(layout, shape) for layout in layouts for shape in shapes]
    (found, _) = cluster.run(
        2,
        "tests.dist.memory_jobs:activations",
        layouts=[layout for layout, _ in asked],
        shapes=[shape for _, shape in asked],
        length=length,
    )
    train = TrainConfig(global_batch_size=2, micro_batch_size=2, precision="fp32")
    for number, layout in enumerate(layouts):
        (shallow, _), (deep, most) = found[2 * number : 2 * number + 2]
        config, parallel = ModelConfig(**shapes[1]), ParallelConfig(**layout)
        block = block_bytes(config, parallel, 4, True).kept(parallel, depths[1])
        a_row = (deep - shallow) / (depths[1] - depths[0]) / (2 * length)
        assert a_row == pytest.approx(block, rel=0.02), layout
        (whole,) = estimate(Work(config, train, length), parallel)
        planned = (whole.activations + whole.working + whole.gradients) * GIB
        assert most == pytest.approx(planned, rel=0.15), layout
