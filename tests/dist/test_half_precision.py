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


def train(cluster, model: str, processes: int, sizes: dict):
    job = "tests.dist.jobs:train_in_fp16"
    results = cluster.run(processes, job, model=model, layout=sizes, steps=STEPS)
    assert all(result[:2] == results[0][:2] for result in results)
    return results[0]


@pytest.fixture(scope="module")
def alone(cluster):
    return {model: train(cluster, model, 1, {}) for model in ("llama", "t5")}


@pytest.mark.parametrize("model", ["llama", "t5"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_and_overflows_are_those_of_one_process(cluster, alone, model, layout):
    losses, scales, _ = alone[model]
    their_losses, their_scales, bubbles = train(cluster, model, *LAYOUTS[layout])
    assert their_scales == scales
    assert scales[0] > scales[-1] == scales[-2]  # it overflowed, and then no more
    assert all(math.isfinite(loss) for loss in their_losses)
    assert their_losses == pytest.approx(losses, rel=2e-3)
    assert bool(bubbles) == ("pp" in LAYOUTS[layout][1])
    for measured, theory in bubbles:
        assert theory == pytest.approx(1 / 9)  # 2 processes, 8 micro-batches
        assert theory / 3 < measured < 1
