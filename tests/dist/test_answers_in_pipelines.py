"""Groups of answers that a pipeline writes in turns are those of one process."""

import pytest
import torch

from tests.dist import answer_jobs, jobs

JOB = "tests.dist.answer_jobs:write"
PIPELINES = {
    "pp2": (2, {"pp": 2}, 0, 2),
    "one group": (2, {"pp": 2}, 1, 1),
    "more groups than stages": (2, {"pp": 2}, 3, 3),
    "several parts a process": (
        2,
        {"pp": 2, "schedule": "interleaved", "chunks_per_rank": 2},
        0,
        1,
    ),
}


@pytest.fixture(scope="module")
def alone():
    return answer_jobs.write(jobs.ALONE, {}, 0)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_answers_are_those_of_one_process(cluster, alone, pipeline):
    processes, layout, groups, under_way = PIPELINES[pipeline]
    for found in cluster.run(processes, JOB, layout=layout, groups=groups):
        for family, wanted in alone.items():
            own = found[family]
            assert own["tokens"] == wanted["tokens"], family
            assert own["ended"] == wanted["ended"], family
            assert torch.allclose(own["log_probs"], wanted["log_probs"], atol=1e-5), family
            assert own["most"] == under_way, family
            assert 0 < own["bubble"] < 1


def test_what_is_compared_happens(alone):
    """Answers end by a token and by their limits."""
    for found in alone.values():
        assert set(found["ended"]) == {True, False}
        assert len({len(tokens) for tokens in found["tokens"]}) > 3
