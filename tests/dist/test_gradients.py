"""The norm of gradients that lie in parts and copies over processes, against PyTorch's on all."""

import math
from functools import cache

import pytest
import torch
from torch import nn

from megalite.distributed.launch import Launch
from tests.dist import shard_jobs as jobs

LAYOUTS = {
    "tp2": (2, {"tp": 2}),
    "tp3": (3, {"tp": 3}),
    "replicate2": (2, {"replicate": 2}),
    "shard2": (2, {"shard": 2}),
    "replicate2 shard2": (4, {"replicate": 2, "shard": 2}),
    "tp2 shard2": (4, {"tp": 2, "shard": 2}),
    "pp2": (2, {"pp": 2}),
    "pp2 tp2": (4, {"pp": 2, "tp": 2}),
    "pp2 shard2 tp2": (8, {"pp": 2, "shard": 2, "tp": 2}),
    "pp2 interleaved": (2, {"pp": 2, "schedule": "interleaved", "chunks_per_rank": 2}),
}
CASES = [  # model, what is frozen, largest norm, loss scale
    ("biases", "", 0.5, 1.0),
    ("biases", "", 1e9, 1.0),
    ("one key head", "", 0.25, 8.0),
    ("one key head", "ffn", 0.0, 2.0),
    ("two stacks", "", 0.0, 1.0),
    ("two stacks", "embedding", 0.5, 1.0),
]


@cache
def shapes(model: str) -> dict[str, nn.Parameter]:
    """The whole parameters by name; one that two of the model's parts hold is one."""
    return dict(jobs.model_of(Launch(), model, {}).named_parameters())


def clipped(model: str, frozen: str, max_norm: float, scale: float) -> tuple[float, dict]:
    """The norm and the gradients that PyTorch leaves in one process."""
    whole = {
        name: nn.Parameter(torch.zeros_like(parameter))
        for name, parameter in shapes(model).items()
        if not (frozen and frozen in name)
    }
    for name, parameter in whole.items():
        parameter.grad = jobs.gradient(name, parameter) / scale
    norm = nn.utils.clip_grad_norm_(whole.values(), max_norm or math.inf)
    return float(norm), {name: parameter.grad for name, parameter in whole.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_norm_and_clipped_gradients_are_those_of_the_whole_model(cluster, layout):
    """Of parts, copies, a tied embedding and a bias table that two pipeline stages hold."""
    processes, sizes = LAYOUTS[layout]
    found = cluster.run(processes, "tests.dist.shard_jobs:clipped", layout=sizes, cases=CASES)
    for number, case in enumerate(CASES):
        norm, gradients = clipped(*case)
        seen = set()
        for results in found:
            ours = results[number]
            assert float(ours["norm"]) == pytest.approx(norm, rel=1e-6), case
            assert int(ours["bad"]) == 0
            for name, part, shape, offset in ours["left"]:
                theirs = jobs.box(gradients[name], shape, offset)
                torch.testing.assert_close(part, theirs, rtol=1e-5, atol=1e-9)
                seen.add(name)
        assert seen == set(gradients)


@pytest.mark.parametrize("layout", ["tp2 shard2", "pp2", "pp2 tp2"])
def test_processes_with_a_gradient_that_is_not_finite_are_counted_everywhere(cluster, layout):
    """Also in a copy that another process counts in the norm."""
    processes, sizes = LAYOUTS[layout]
    names = ["embedding.weight", "decoder.layers.1.ffn_norm.weight", "encoder.relative.weight"]
    last = processes - 1
    values = [math.nan, math.inf, -math.inf]
    cases = [(last, name, value) for name, value in zip(names, values, strict=True)]
    cases += [(0, "embedding.weight", math.inf), (0, "embedding.weight", 1.0)]
    job = "tests.dist.shard_jobs:spoilt"
    found = cluster.run(processes, job, layout=sizes, cases=cases)
    for number, (rank, _, value) in enumerate(cases):
        hits = sum(results[number][2] for results in found)
        assert hits == found[rank][number][2]
        for norm, bad, _ in (results[number] for results in found):
            assert int(bad) == (0 if math.isfinite(value) else hits)
            assert math.isfinite(norm)
    assert [found[case[0]][n][2] for n, case in enumerate(cases)].count(True) >= 4
