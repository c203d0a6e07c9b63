"""Adapters learn alike in every layout: as in one process, in every family."""

import pytest

from tests.dist import jobs, lora_jobs
from tests.dist.same_training import check_same_training

STEPS = 3
LAYOUTS = {
    "tp3 sequence, uneven heads": (3, {"tp": 3, "sequence_parallel": True, "recompute": "full"}),
    "fsdp2": (2, {"shard": 2, "reshard_after_forward": True, "recompute": "selective"}),
    "dp2": (2, {"replicate": 2}),
    "tp2 fsdp2 pp2": (8, {"tp": 2, "shard": 2, "pp": 2}),
}


@pytest.fixture(scope="module")
def alone():
    return lora_jobs.train(jobs.ALONE, {}, STEPS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_norms_and_gradients_are_those_of_one_process(cluster, alone, layout: str):
    processes, sizes = LAYOUTS[layout]
    results = cluster.run(processes, "tests.dist.lora_jobs:train", layout=sizes, steps=STEPS)
    for family, wanted in alone.items():
        found = [result[family] for result in results]
        check_same_training(found, wanted, of_norms=1e-5, floor=1e-9)


def test_only_adapters_have_gradients(alone):
    for _, _, gradients in alone.values():
        assert all(".adapter." in name for name in gradients)


@pytest.mark.parametrize("layout", [{"replicate": 2}, {"shard": 2}], ids=["dp2", "fsdp2"])
def test_a_frozen_base_in_half_precision_gives_the_bits_of_one_in_fp32(cluster, layout):
    """As it is rounded for compute either way; where nothing is cut it is not gathered."""
    job = "tests.dist.lora_jobs:first_losses"
    for (base, adapted), held, cut in cluster.run(2, job, layout=layout, precision="bf16"):
        assert adapted == base
        assert held == {("torch.float32", True), ("torch.bfloat16", False)}
        assert cut == ("shard" in layout)


@pytest.fixture(scope="module")
def quantised_alone():
    return lora_jobs.train_quantised(jobs.ALONE, {}, 2)


@pytest.mark.parametrize("layout", ["tp2 sequence", "fsdp2", "tp2 fsdp2 pp2"])
def test_a_quantised_base_gives_the_losses_and_gradients_of_one_process(
    cluster, quantised_alone, layout: str
):
    """Also where processes have part of a key head's outputs, or of a matrix's inputs."""
    processes, sizes = {"tp2 sequence": (2, {"tp": 2, "sequence_parallel": True}), **LAYOUTS}[
        layout
    ]
    job = "tests.dist.lora_jobs:train_quantised"
    results = cluster.run(processes, job, layout=sizes, steps=2)
    for family, wanted in quantised_alone.items():
        found = [result[family] for result in results]
        check_same_training(found, wanted, of_norms=1e-5, floor=1e-9)
