"""fp16 with loss scaling overflows and recovers alike in every layout."""

import math

import pytest

STEPS = 12
LAYOUTS = {
    "tp2 sequence": (2, {"tp": 2, "sequence_parallel": True}),
    "pp2": (2, {"pp": 2}),
    "fsdp2, full recompute": (2, {"shard": 2, "recompute": "full"}),
    "tp2 pp2": (4, {"tp": 2, "pp": 2}),
}


def train(cluster, processes: int, sizes: dict) -> dict:
    cases = {model: {"model": model, "steps": STEPS} for model in ("llama", "t5")}
    options = {"job": "train_in_fp16", "layout": sizes, "cases": cases}
    first, *others = cluster.run(processes, "tests.dist.jobs:of_each", **options)
    for model, result in first.items():
        assert all(other[model][:2] == result[:2] for other in others), model
    return first


@pytest.fixture(scope="module")
def alone(cluster):
    return train(cluster, 1, {})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_and_overflows_are_those_of_one_process(cluster, alone, layout):
    found = train(cluster, *LAYOUTS[layout])
    for model, (losses, scales, _) in alone.items():
        their_losses, their_scales, bubbles = found[model]
        assert their_scales == scales
        assert scales[0] > scales[-1] == scales[-2]  # it overflowed, and then no more
        assert all(math.isfinite(loss) for loss in their_losses)
        assert their_losses == pytest.approx(losses, rel=2e-3), model
        assert bool(bubbles) == ("pp" in LAYOUTS[layout][1])
        for measured, theory in bubbles:
            assert theory == pytest.approx(1 / 9)  # 2 processes, 8 micro-batches
            assert theory / 3 < measured < 1
