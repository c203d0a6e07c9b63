"""Windows, norms and caps of families of today in two layouts: loss, norm and every gradient."""

import pytest

from tests.dist import jobs
from tests.dist.same_training import check_same_training

FAMILIES = ("mistral", "qwen3", "gemma2", "gemma3", "gpt-neox", "glm4", "t5gemma", "pegasus")
CASES = {family: {"model": f"{family}-tiny", "steps": 1} for family in FAMILIES}
LAYOUTS = {
    "tp3 sequence": (3, {"tp": 3, "sequence_parallel": True}),
    "pp2 fsdp2": (4, {"pp": 2, "shard": 2}),
}


@pytest.fixture(scope="module")
def alone():
    return jobs.of_each(jobs.ALONE, "train", {}, CASES)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_of_each_family_is_that_of_one_process(cluster, alone, layout: str):
    processes, sizes = LAYOUTS[layout]
    job = "tests.dist.jobs:of_each"
    found = cluster.run(processes, job, job="train", layout=sizes, cases=CASES)
    for family, wanted in alone.items():
        results = [one[family] for one in found]
        check_same_training(results, wanted, of_norms=1e-4, floor=1e-8, model=family)
