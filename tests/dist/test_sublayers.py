"""Attention, cross-attention and feed-forward over tp against one process, each by itself."""

from functools import cache

import pytest
import torch
from torch import Tensor

from megalite.distributed.launch import Launch
from tests.dist import sublayer_jobs as jobs
from tests.dist.exact import even_shards, shards

LAYOUTS = {
    f"tp{tp}{' sequence' * sequence}": {"tp": tp, "sequence_parallel": sequence}
    for tp in (2, 3, 4)  # 5 heads on 4 leave a process without any
    for sequence in (False, True)
}


@cache
def alone() -> dict:
    return jobs.sublayers(Launch(), {})


@pytest.fixture(scope="module")
def run(cluster):
    """What each process of a layout gives; it runs once."""

    @cache
    def job(layout: str):
        sizes = LAYOUTS[layout]
        return cluster.run(sizes["tp"], "tests.dist.sublayer_jobs:sublayers", layout=sizes)

    return job


def same(ours: Tensor | None, theirs: Tensor | None, where: object) -> None:
    assert (ours is None) == (theirs is None), where
    if theirs is not None:
        torch.testing.assert_close(
            ours, theirs, rtol=1e-11, atol=1e-12, msg=lambda text: f"{where}: {text}"
        )


def rows_here(x: Tensor | None, rank: int, layout: str) -> Tensor | None:
    """What a process has of a residual stream; rows past S are 0."""
    if x is None or "sequence" not in layout:
        return x
    return even_shards(x, 1, LAYOUTS[layout]["tp"])[rank]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("kind", "name"), jobs.KEYS)
def test_values_and_gradients_are_those_of_one_process(run, kind: str, name: str, layout: str):
    theirs, count = alone()[kind, name], LAYOUTS[layout]["tp"]
    for rank, results in enumerate(run(layout)):
        ours = results[kind, name]
        rows = shards(theirs["y"], 1, count)[rank].shape[1] if "sequence" in layout else jobs.S
        whole = rows_here(theirs["y"], rank, layout)
        assert ours["y"].shape == whole.shape
        same(ours["y"][:, :rows], whole[:, :rows], rank)
        for stream in ("x", "memory"):
            same(ours[stream], rows_here(theirs[stream], rank, layout), (rank, stream))
        bias = theirs["bias"]
        same(ours["bias"], None if bias is None else shards(bias, 0, count)[rank], (rank, "bias"))
        assert ours["gradients"].keys() == theirs["gradients"].keys()
        for key, gradient in theirs["gradients"].items():
            dim = ours["dims"][key]
            part = gradient if dim is None else shards(gradient, dim, count)[rank]
            same(ours["gradients"][key], part, (rank, key))


def test_every_layer_has_gradients_to_compare():
    for (kind, name), results in alone().items():
        assert results["x"].abs().max() > 0, (kind, name)
        assert (results["memory"] is not None) == (kind == "cross")
        for key, gradient in results["gradients"].items():  # all keys alike turn no probability
            assert gradient.abs().max() > 1e-3 or key.endswith("key.bias"), (kind, name, key)
