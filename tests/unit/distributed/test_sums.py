"""Sums of a process alone are its own numbers."""

import torch

from megalite.distributed.mesh import Axis
from megalite.distributed.sums import all_reduce_sum, are_true_anywhere, sum_count, sum_metrics

ALONE, CPU = Axis("dp"), torch.device("cpu")


def test_a_process_alone_sums_nothing():
    x = torch.randn(2, 3)
    assert all_reduce_sum(x, ALONE) is x
    assert sum_count(2**53, ALONE, CPU) == 2**53
    metrics = {"tokens": torch.tensor(3), "loss": torch.tensor(0.5)}
    assert sum_metrics(metrics, ALONE) == {"loss": 0.5, "tokens": 3.0}
    assert are_true_anywhere([False, True], ALONE, CPU) == [False, True]
