"""Groups of answers that a pipeline writes in turns are those of one process."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from megalite.generation.generate import LOOK_EVERY
from tests.dist import answer_jobs, jobs
from tests.unit.tools.conftest import SIZE, save

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


SPEAKING = "tests.dist.answer_jobs:speak"
SHORT = {"max_new_tokens": 11}
ONE = {"prompt": ("the red cat",), "sampling": SHORT}
SEVERAL = {
    "drawn": {"prompt": ("the", "a red cat", "t", "cats", "d"), "batch_size": 3, "sampling": SHORT},
    "searched": ONE | {"beam": {"num_beams": 3}},
}


@pytest.fixture(scope="module")
def spoken(cluster, tmp_path_factory):
    """A GPT-2 of two blocks, and what ``megalite generate`` prints with it in one process."""
    ids = {"bos_token_id": 0, "eos_token_id": 0, "n_positions": 64}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=SIZE, n_embd=16, n_layer=2, n_head=2, **ids))
    folder = str(save(model, tmp_path_factory.mktemp("gpt2")))
    ((whole,),) = cluster.run(1, SPEAKING, layout={}, folder=folder, asked=[ONE])
    firsts = [whole.index(letter) for letter in whole.strip()]
    at = next(first for first in firsts if (first + 1) % LOOK_EVERY)
    asked = [ONE, ONE | {"stop": (whole[at],)}, *SEVERAL.values()]
    (printed,) = cluster.run(1, SPEAKING, layout={}, folder=folder, asked=asked)
    assert printed[1] == whole[:at] + "\n"
    return folder, asked, printed


@pytest.mark.parametrize(("processes", "layout"), [(2, {"pp": 2}), (4, {"tp": 2, "pp": 2})])
def test_processes_say_what_one_says_and_end_an_answer_together(cluster, spoken, processes, layout):
    """A single prompt is streamed by the first process; its stop text comes between two looks."""
    folder, asked, wanted = spoken
    first, *others = cluster.run(processes, SPEAKING, layout=layout, folder=folder, asked=asked)
    assert first == wanted
    assert others == [[""] * len(asked)] * len(others)
