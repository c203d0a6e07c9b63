"""Each collective against the same sum, cut or concatenation of all processes' tensors in one."""

from functools import cache

import pytest
import torch
from torch import Tensor

from tests.dist.collective_jobs import WITH_GRADIENT, WITHOUT_GRADIENT, Case, results
from tests.dist.exact import even_shards, numbers

LAYOUTS = {  # processes, layout, processes of the axis
    "2": (2, {"tp": 2}, 2),
    "3": (3, {"tp": 3}, 3),
    "4": (4, {"tp": 4}, 4),
    "two groups of 2": (4, {"tp": 2, "replicate": 2}, 2),
}
REPEATED = (
    "reduce_from",
    "gather_copies",
    "gather_even_copies",
)  # what follows is everywhere alike


@pytest.fixture(scope="module")
def run(cluster):
    """What a job gives on each process of a layout; it runs once."""

    @cache
    def job(name: str, layout: str):
        processes, sizes, _ = LAYOUTS[layout]
        return cluster.run(processes, f"tests.dist.collective_jobs:{name}", layout=sizes)

    return job


def plain(case: Case, xs: list[Tensor]) -> list[Tensor]:
    """What each process gets, from what all put in."""
    count, size, dim = len(xs), case.shape[case.dim], case.dim
    if case.name == "copy_to":
        return xs
    if case.name in ("gather_sequence", "start_gather", "gather_copies", "gather_even_copies"):
        return [torch.cat(xs, dim).narrow(dim, 0, size)] * count
    if case.name == "gather_stacked":
        return [torch.stack(xs, 1)] * count
    total = torch.stack(xs).sum(0)
    if case.name in ("scatter_sum_sequence", "start_reduce_scatter"):
        return even_shards(total, dim, count)
    return [total] * count


def same(ours: Tensor, theirs: Tensor, where: object) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, msg=lambda text: f"{where}: {text}")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", WITH_GRADIENT)
def test_values_and_gradients_are_those_of_one_process(run, name: str, layout: str):
    """Of sizes that don't divide or are less than the processes, and any strides."""
    size, found = LAYOUTS[layout][2], run("collective", layout)
    for number, case in enumerate(WITH_GRADIENT[name]):
        for group in range(len(found) // size):
            leaves = [x.detach().requires_grad_() for x in case.inputs(group, size)]
            if name == "copy_to":
                leaves = leaves[:1] * size
            ys = plain(case, leaves)
            pairs = list(zip(ys, case.upstreams(group, size), strict=True))
            pairs = pairs[:1] if name in REPEATED else pairs
            sum((y * upstream).sum() for y, upstream in pairs).backward()
            for rank in range(size):
                y, gradient = found[group * size + rank][name, number]
                same(y, ys[rank].detach(), (case, rank))
                same(gradient, leaves[rank].grad, (case, rank, "gradient"))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", WITHOUT_GRADIENT)
def test_values_are_those_of_one_process_and_what_went_in_is_left(run, name: str, layout: str):
    size, found = LAYOUTS[layout][2], run("collective", layout)
    for number, case in enumerate(WITHOUT_GRADIENT[name]):
        for group in range(len(found) // size):
            xs = case.inputs(group, size)
            for rank, theirs in enumerate(plain(case, xs)):
                y, left = found[group * size + rank][name, number]
                same(y, theirs, (case, rank))
                if name != "start_all_reduce":
                    same(left, xs[rank], (case, rank, "left"))


@pytest.mark.parametrize("layout", ["3", "two groups of 2"])
def test_a_started_all_reduce_is_in_place(run, layout: str):
    size = LAYOUTS[layout][2]
    for is_same, x in run("in_place", layout):
        assert is_same
        same(x, sum(numbers(rank, 2, 5) for rank in range(size)), layout)


def test_calls_are_counted_in_the_groups_of_several(cluster):
    moved = cluster.run(2, "tests.dist.collective_jobs:counted_calls")
    assert moved == [{"default_pg": 0, "pair": 3}] * 2


@pytest.mark.parametrize("layout", ["2", "3"])
def test_collectives_under_way_together_do_not_mix(run, layout: str):
    size = LAYOUTS[layout][2]
    summed = sum(numbers(20 + rank, 2, 7) for rank in range(size))
    for rank, (part, total, whole) in enumerate(run("several_at_once", layout)):
        same(part, even_shards(summed, 1, size)[rank], "reduce-scatter")
        same(total, sum(numbers(10 + r, 4) for r in range(size)), "all-reduce")
        same(whole, torch.cat([numbers(r, 2, 3) for r in range(size)], 1), "gather")


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_sums_are_in_fp64_by_name_and_the_same_everywhere(cluster, processes: int):
    layout = {"replicate": processes}
    ranks = range(processes)
    for found in cluster.run(processes, "tests.dist.collective_jobs:sums", layout=layout):
        assert found["count"] == 2**53 + 2 * (processes - 1)  # fp64 has it, fp32 has not
        assert found["metrics"] == {
            "loss": sum(0.5 + rank for rank in ranks),
            "tokens": sum(10.0 * rank for rank in ranks),
            "reward": sum(-1.0 - rank for rank in ranks),
        }
        assert found["precise"] == {"loss": 2**24 + processes - 1}
        assert found["flags"] == [False, True, True, True, True]


@pytest.mark.parametrize(
    ("processes", "layout"), [(2, {"pp": 2}), (3, {"pp": 3}), (4, {"pp": 2, "tp": 2})]
)
def test_all_get_what_the_last_has(cluster, processes: int, layout: dict[str, int]):
    """Tensors and tuples with their dtypes; beside it another axis whose last has other ones."""
    job = "tests.dist.collective_jobs:shared"
    for rank, found in enumerate(cluster.run(processes, job, layout=layout, group=3)):
        group = 3 + rank % layout.get("tp", 1)
        for name, theirs in results(group).items():
            assert isinstance(found[name], tuple) == isinstance(theirs, tuple)
            torch.testing.assert_close(found[name], theirs, rtol=0, atol=0)
        same(found["ignored"], torch.ones(2), "others' tensors are not read")
        scalars = {"loss": torch.tensor(0.25 + group), "tokens": torch.tensor(3.0)}
        torch.testing.assert_close(found["scalars"], scalars, rtol=0, atol=0)
        assert list(found["scalars"]) == ["loss", "tokens"]
        same(found["fp64 scalars"]["loss"], torch.tensor(1.0 + group), "scalars are fp32")
