"""Sums of a process alone are its own numbers."""

import torch

from megalite.distributed.mesh import Axis, ParallelConfig
from megalite.distributed.sums import (
    Counts,
    all_reduce_sum,
    are_true_anywhere,
    sum_count,
    sum_metrics,
)

ALONE, CPU = Axis("dp"), torch.device("cpu")


def test_a_process_alone_sums_nothing():
    x = torch.randn(2, 3)
    assert all_reduce_sum(x, ALONE) is x
    assert sum_count(2**53, ALONE, CPU) == 2**53
    metrics = {"tokens": torch.tensor(3), "loss": torch.tensor(0.5)}
    assert sum_metrics(metrics, ALONE) == {"loss": 0.5, "tokens": 3.0}
    assert are_true_anywhere([False, True], ALONE, CPU) == [False, True]
    flags = [True, False, True, True, False, False, True]
    assert are_true_anywhere(flags, ALONE, CPU) == flags


def test_counts_of_a_process_alone_are_exact_shares():
    counts = Counts({"targets": 3.0, "tokens": 0.0}, ALONE, CPU)
    assert counts.share("targets") == 1.0 / 3.0
    assert counts.share("tokens", 0.5) == 0.5
    assert counts.numbers() == {"targets": 3.0, "tokens": 0.0}


def test_one_queue_is_asked_for_only_where_fsdp_does_not_share_it():
    names = [
        ParallelConfig(tp=2).environment,
        ParallelConfig(tp=2, shard=2).environment,
        ParallelConfig(shard=2).environment,
    ]
    assert ["CUDA_DEVICE_MAX_CONNECTIONS" in found for found in names] == [True, False, False]
    assert all(found["TORCH_NCCL_HIGH_PRIORITY"] == "1" for found in names)
