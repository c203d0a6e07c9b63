"""Each sharded layer alone against its whole matrix in plain PyTorch, on whole numbers: exactly."""

from functools import cache

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from megalite.distributed.launch import Launch
from megalite.distributed.mesh import Mesh
from megalite.layers.region import enter, leave, own_rows
from megalite.models.context import relative_bucket
from tests.dist import layer_jobs as jobs
from tests.dist.exact import even_shards, numbers, shards
from tests.dist.placing import double

LAYOUTS = {"alone": {}} | {
    f"tp{tp}{' sequence' * sequence}": {"tp": tp, "sequence_parallel": sequence}
    for tp in (2, 3, 4)
    for sequence in (False, True)
}
ROUNDING = {"rms_norm": 1e-13, "layer_norm": 1e-13}  # all else is exact


def column(p: dict[str, Tensor], x: Tensor, at: str = "") -> Tensor:
    weight = p[f"{at}weight"]
    y = torch.einsum("bsd,od->bso", x, weight.flatten(0, -2)).unflatten(-1, weight.shape[:-1])
    return y + p[f"{at}bias"] if f"{at}bias" in p else y


def row(p: dict[str, Tensor], x: Tensor) -> Tensor:
    y = torch.einsum("bsi,di->bsd", x.flatten(2), p["weight"].flatten(1))
    return y + p["bias"] if "bias" in p else y


def relative(both_ways: bool):
    def bias(p: dict[str, Tensor], distances: Tensor) -> Tensor:
        return p["weight"].float()[:, relative_bucket(distances, both_ways, 8, 6)]

    return bias


PLAIN = {
    "column": column,
    "selected": column,
    "projection": column,
    "row": row,
    "embedding": lambda p, tokens: p["weight"][tokens],
    "table": lambda p, positions: p["weight"][positions],
    "relative, both ways": relative(True),
    "relative, backwards": relative(False),
    "rms_norm": lambda p, x: functional.rms_norm(x, (jobs.WIDTH,), p["weight"], 1e-5),
    "layer_norm": lambda p, x: functional.layer_norm(x, (jobs.WIDTH,), *p.values(), 1e-5),
}


def plain(name: str, p: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """The layer's whole results."""
    if name.startswith("products"):
        return [column(p, x, f"{number}.") for number in range(3)]
    key = next(key for key in PLAIN if name.startswith(key))
    return [PLAIN[key](p, x)]


@cache
def whole(name: str, length: int, tp: int) -> tuple[list[Tensor], Tensor, dict[str, Tensor]]:
    """Results in one process, and gradients of the input and of the parameters."""
    case = jobs.CASES[name]
    with double():
        parameters = jobs.whole_parameters(case.build(Mesh.single()))
    for parameter in parameters.values():
        parameter.requires_grad_()
    x = jobs.whole_input(name, length)
    x.requires_grad_(x.is_floating_point())
    ys = plain(name, parameters, x)
    read, upstreams = ys, jobs.upstreams(name, length)
    if case.gives == "selected":
        read = [ys[0][:, :, first:last] for first, last in jobs.selections(tp)]
        upstreams = jobs.selected_upstreams(length, tp)
    sum((y * u).sum() for y, u in zip(read, upstreams, strict=True)).backward()
    gradients = {key: parameter.grad for key, parameter in parameters.items()}
    return [y.detach() for y in ys], x.grad, gradients


@pytest.fixture(scope="module")
def run(cluster):
    """What a job gives on each process of a layout; it runs once."""

    @cache
    def job(name: str, layout: str):
        sizes = LAYOUTS[layout]
        if not sizes:
            return [getattr(jobs, name)(Launch(), {})]
        return cluster.run(sizes["tp"], f"tests.dist.layer_jobs:{name}", layout=sizes)

    return job


def same(name: str, ours: Tensor, theirs: Tensor, where: object) -> None:
    tolerance = ROUNDING.get(name, 0.0)
    torch.testing.assert_close(
        ours, theirs, rtol=tolerance, atol=tolerance, msg=lambda text: f"{where}: {text}"
    )


def rows_here(x: Tensor, count: int, layout: str) -> list[Tensor]:
    """What each process has of a residual stream; rows past S are 0."""
    return even_shards(x, 1, count) if "sequence" in layout else [x] * count


def results_here(name: str, y: Tensor, count: int, layout: str) -> list[Tensor]:
    """What each process has of a whole result."""
    gives = jobs.CASES[name].gives
    if gives == "stream":
        return rows_here(y, count, layout)
    if gives == "selected":
        return [y[:, :, first:last] for first, last in jobs.selections(count)]
    return shards(y, 0 if gives == "bias" else 2, count)


def check_results(name: str, layout: str, found: list[dict], length: int) -> None:
    """Of a residual stream the rows that there are: a bias is added past S too."""
    count = len(found)
    for number, y in enumerate(whole(name, length, count)[0]):
        for rank, theirs in enumerate(results_here(name, y, count, layout)):
            ours = found[rank]["y"][number]
            if jobs.CASES[name].gives == "stream" and "sequence" in layout:
                assert ours.shape == theirs.shape
                rows = shards(y, 1, count)[rank].shape[1]
                ours, theirs = ours[:, :rows], theirs[:, :rows]
            same(name, ours, theirs, (layout, length, rank))


def check_gradients(name: str, layout: str, found: list[dict], length: int) -> None:
    """Of those parameters that have one, which are the same on all processes."""
    count = len(found)
    gradients = whole(name, length, count)[2]
    for rank, result in enumerate(found):
        assert result["gradients"].keys() == found[0]["gradients"].keys()
        for key, ours in result["gradients"].items():
            dim = result["dims"][key]
            theirs = gradients[key] if dim is None else shards(gradients[key], dim, count)[rank]
            same(name, ours, theirs, (layout, length, rank, key))


def check_input(name: str, layout: str, found: list[dict], length: int) -> None:
    """The gradient of the input, which nothing adds to past S."""
    count = len(found)
    theirs = whole(name, length, count)[1]
    if theirs is None:
        return
    is_stream = jobs.CASES[name].takes == "stream"
    parts = rows_here(theirs, count, layout) if is_stream else shards(theirs, 2, count)
    for rank, result in enumerate(found):
        same(name, result["x"], parts[rank], (layout, length, rank, "input"))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", jobs.CASES)
def test_values_and_gradients_are_those_of_the_whole_matrix(run, name: str, layout: str):
    for length in jobs.LENGTHS:
        found = [result[name, length, "trained"] for result in run("layers", layout)]
        check_results(name, layout, found, length)
        check_input(name, layout, found, length)
        check_gradients(name, layout, found, length)
        assert set(found[0]["gradients"]) == set(whole(name, length, len(found))[2])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", jobs.CASES)
def test_frozen_parameters_get_no_gradient_and_all_else_its_own(run, name: str, layout: str):
    for length in jobs.LENGTHS:
        found = [result[name, length, "frozen"] for result in run("layers", layout)]
        every = set(whole(name, length, len(found))[2])
        frozen = set(jobs.CASES[name].frozen) or every
        assert set(found[0]["gradients"]) == every - frozen
        check_results(name, layout, found, length)
        check_input(name, layout, found, length)
        check_gradients(name, layout, found, length)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", jobs.CASES)
def test_an_input_without_gradient_leaves_parameters_theirs(run, name: str, layout: str):
    for length in jobs.LENGTHS:
        found = [result[name, length, "constant input"] for result in run("layers", layout)]
        assert all(result["x"] is None for result in found)
        assert set(found[0]["gradients"]) == set(whole(name, length, len(found))[2])
        check_gradients(name, layout, found, length)


@pytest.mark.parametrize("layout", ["tp2", "tp3", "tp4", "tp4 sequence"])
def test_initial_values_are_the_same_whole_tensors_in_each_layout(run, layout: str):
    (alone,) = run("initial", "alone")
    found = run("initial", layout)
    for name, (theirs, _, _) in alone.items():
        for rank, result in enumerate(found):
            ours, here, dim = result[name]
            same("", ours, theirs, (name, rank))
            part = theirs if dim is None else shards(theirs, dim, len(found))[rank]
            same("", here, part, (name, rank, "here"))
    assert {dim for _, _, dim in found[0].values()} == {None, 0, 1}
    drawn = [whole.flatten()[0].item() for whole, _, _ in alone.values() if whole.std() > 0]
    assert len(set(drawn)) == len(drawn) > 15  # by name, not by shape


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "alone"])
def test_a_region_is_entered_whole_and_left_summed(run, layout: str):
    found = run("regions", layout)
    count = len(found)
    for length in jobs.LENGTHS:
        x = numbers(1, jobs.BATCH, length, jobs.WIDTH)
        entered = sum(numbers(50 + rank, *x.shape) for rank in range(count))
        summed = sum(numbers(20 + rank, *x.shape) for rank in range(count))
        for rank, results in enumerate(found):
            theirs = {
                "inside": x,
                "x": rows_here(entered, count, layout)[rank],
                "outside": rows_here(summed, count, layout)[rank],
                "partial": numbers(60, *x.shape),
                "rows": rows_here(x, count, layout)[rank],
                "positions": rows_here(x[:, :, 0].int(), count, layout)[rank],
            }
            for name, part in theirs.items():
                same("", results[length][name], part, (name, length, rank))


def test_a_process_alone_enters_and_leaves_with_its_argument_itself():
    mesh, x = Mesh.single(), torch.randn(2, 5, 3)
    assert enter(x, mesh, 5) is x
    assert leave(x, mesh) is x
    assert own_rows(x, mesh) is x
