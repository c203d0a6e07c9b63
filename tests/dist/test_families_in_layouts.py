"""Windows, norms and caps of families of today in two layouts: loss, norm and every gradient."""

import pytest

from tests.dist import jobs
from tests.dist.same_training import check_same_training

STEPS = 1
FAMILIES = ("mistral", "qwen3", "gemma2", "gemma3", "gpt-neox", "glm4", "t5gemma", "pegasus")
LAYOUTS = {
    "tp3 sequence": (3, {"tp": 3, "sequence_parallel": True}),
    "pp2 fsdp2": (4, {"pp": 2, "shard": 2}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_of_a_family_is_that_of_one_process(cluster, family: str):
    model = f"{family}-tiny"
    alone = jobs.train(jobs.ALONE, model, {}, STEPS)
    for processes, layout in LAYOUTS.values():
        results = cluster.run(
            processes, "tests.dist.jobs:train", model=model, layout=layout, steps=STEPS
        )
        check_same_training(results, alone, of_norms=1e-4, floor=1e-8)
