"""What ``megalite plan`` says that FSDP2 gathers, against what it holds in a step."""

import pytest

from megalite.distributed.mesh import ParallelConfig
from megalite.training.config import TrainConfig
from megalite.training.memory import GIB, Work, estimate
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
    (stage,) = estimate(work, ParallelConfig(**layout))
    ratio = max(found) / (stage.gathered * GIB)
    assert (0.5 if reshard else 0.8) < ratio <= 1.01
