"""Loss, accuracy and log-likelihoods of examples are those of one process in every layout."""

import math

import pytest

from tests.dist import eval_jobs, jobs

LAYOUTS = {
    "tp2": (2, {"tp": 2}),
    "fsdp2": (2, {"shard": 2}),
    "tp2 pp2 dp2": (8, {"tp": 2, "pp": 2}),
}


@pytest.fixture(scope="module")
def alone():
    return eval_jobs.measure(jobs.ALONE, {})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_numbers_are_those_of_one_process(cluster, alone, layout):
    processes, sizes = LAYOUTS[layout]
    for found in cluster.run(processes, "tests.dist.eval_jobs:measure", layout=sizes):
        for family, (whole, each) in alone.items():
            assert found[family][0] == pytest.approx(whole, rel=1e-5)
            for one, wanted in zip(found[family][1], each, strict=True):
                assert one == pytest.approx(wanted, rel=1e-5)


def test_the_parts_are_those_of_the_whole(alone):
    for whole, each in alone.values():
        total = -sum(log_prob for log_prob, _ in each)
        assert total == pytest.approx(whole["loss"] * whole["targets"], rel=1e-6)
        assert whole["perplexity"] == pytest.approx(math.exp(whole["loss"]))
        assert 0 <= whole["accuracy"] < 1
