"""Functions that are called again without Python: what is repeated, and what must not be."""

import pytest
import torch

from megalite.ops.tape import Taped, Trust
from tests.graphs import CpuGraph, cpu_graphs
from tests.memory import most_bytes


class Counted:
    """A function that counts how often Python calls it."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *inputs):
        self.calls += 1
        return self.function(*inputs)


def calls_of(function, *rounds, trust=None):
    """Call a function with the inputs of each round; what it gave, and how often it was called."""
    counted, trust = Counted(function), trust or Trust()
    taped = Taped(counted, trust)
    with torch.inference_mode():
        given = [[x.clone() for x in taped(*inputs)] for inputs in rounds]
    return given, counted.calls, trust


def numbers(count=5):
    return [(torch.arange(3.0) + i,) for i in range(count)]


def test_the_third_call_runs_the_same_operators_on_other_inputs():
    weight, state = torch.randn(4, 3), torch.zeros(2, dtype=torch.int32)

    def function(x):
        state.add_(1)
        parts = torch.cat([x, x[:1] * 2, weight.t()[:, 0]]).split(3)
        y = torch.zeros(3).index_put_((torch.tensor([0, 2]),), parts[0][:2])
        return [y + weight[1] @ x, state.float()[None], x, weight]

    given, calls, trust = calls_of(function, *numbers())
    assert (calls, trust.why_not) == (2, "")
    state.zero_()
    for (x,), ours in zip(numbers(), given, strict=True):
        for got, wanted in zip(ours, function(x), strict=True):
            assert torch.equal(got, wanted)
    state.zero_()
    assert [int(ours[1][0, 0]) for ours in given] == [1, 2, 3, 4, 5]


def test_memory_that_it_knows_is_read_anew_also_through_views():
    pool = torch.zeros(2, 3)

    def function(x):
        pool.view(-1)[:3].copy_(x)
        return [pool[0] * 2, pool.view(3, 2).clone()]

    given, calls, _ = calls_of(function, *numbers())
    assert calls == 2
    for (x,), (double, whole) in zip(numbers(), given, strict=True):
        assert torch.equal(double, 2 * x)
        assert torch.equal(whole.flatten()[:3], x)


def _counting():
    count = 0

    def function(x):
        nonlocal count
        count += 1
        return [x + count]

    return function


def _host_made():
    count = 0

    def function(x):
        nonlocal count
        count += 1
        return [x + torch.tensor([1.0, 2.0, float(count)])]

    return function


def test_a_first_call_may_make_memory_that_the_others_use():
    pools = []

    def function(x):
        if not pools:
            pools.append(torch.zeros(3))
        return [pools[0].add_(x).clone()]

    given, calls, trust = calls_of(function, *numbers())
    assert (calls, trust.why_not) == (3, "")
    sums = torch.stack([x for (x,) in numbers()]).cumsum(0)
    assert all(torch.equal(got, wanted) for (got,), wanted in zip(given, sums, strict=True))


def _rebinding():
    state = torch.zeros(3)

    def function(x):
        nonlocal state
        state = state + x
        return [state * 1]

    return function


def _reading(x):
    return [x * 2 if x.sum() > 6 else x - 1]


def _autocast(x):
    with torch.autocast("cpu", torch.bfloat16):
        return [torch.ones(2, 3) @ x[:, None]]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_counting, "its calls differ"),
        (_host_made, "its calls differ"),
        (_rebinding, "its calls differ"),
        (lambda: _reading, "gives no tensor"),
        (lambda: _autocast, "in a mode of its own"),
    ],
)
def test_what_is_not_the_same_at_each_call_is_called_each_time(make, reason):
    given, calls, trust = calls_of(make(), *numbers())
    assert calls == 5
    assert reason in trust.why_not
    plain = make()
    for (x,), (got,) in zip(numbers(), given, strict=True):
        assert torch.equal(got, plain(x)[0])


def test_functions_of_one_kind_are_recorded_once_when_one_is_proven():
    def function(x):
        return [x * 2]

    _, calls, trust = calls_of(function, *numbers())
    assert calls == 2
    _, calls, _ = calls_of(function, *[(torch.ones(7),)] * 4, trust=trust)
    assert calls == 1


def test_what_the_function_lets_go_is_freed_while_it_is_recorded():
    def function(x):
        for _ in range(20):
            x = x + 1
        return [x]

    given, size = torch.zeros(100_000), 400_000
    with torch.inference_mode():
        taped = Taped(function, Trust())
        for _ in range(4):  # two are recorded, two run
            assert most_bytes(lambda: taped(given)) < 4 * size
        assert torch.equal(taped(given)[0], torch.full_like(given, 20))


def test_an_error_leaves_nothing_recording():
    def function(x):
        raise ValueError("no")

    with torch.inference_mode(), pytest.raises(ValueError, match="no"):
        Taped(function, Trust())(torch.ones(3))
    assert calls_of(lambda x: [x + 1], *numbers())[1] == 2


def test_a_tape_is_run_in_the_modes_that_it_was_recorded_in():
    taped = Taped(lambda x: [torch.ones(2, 3) @ x[:, None]], Trust())
    with torch.inference_mode():
        taped(torch.ones(3)), taped(torch.ones(3))
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="modes"):
            taped(torch.ones(3))


def _sum_so_far():
    """A function whose calls differ by what it keeps, and a tape of it."""
    state = torch.zeros(3)
    counted = Counted(lambda x: [state.add_(x) * 2])
    return Taped(counted, Trust(), [state]), counted, state


def _sums(taped, count=6):
    with torch.inference_mode():
        return [taped(*inputs)[0].clone() for inputs in numbers(count)]


def test_a_tape_becomes_one_launch_that_goes_on_from_the_same_state(monkeypatch):
    made, (taped, counted, state) = cpu_graphs(monkeypatch), _sum_so_far()
    sums = torch.stack([x for (x,) in numbers(6)]).cumsum(0)
    assert torch.equal(torch.stack(_sums(taped)), 2 * sums)
    assert torch.equal(state, sums[-1])
    assert (counted.calls, [graph.launches for graph in made]) == (2, [4])


class _OtherBits(CpuGraph):
    def run(self, inputs):
        return [x.nextafter(x + 1) for x in super().run(inputs)]


class _OtherState(CpuGraph):
    def run(self, inputs):
        super().run(inputs)
        return super().run(inputs)


class _Uncaptured(CpuGraph):
    def __init__(self, run, inputs):
        super().__init__(run, inputs)
        raise RuntimeError("operation not permitted when stream is capturing\nmore of it")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (_OtherBits, "it gives other bits"),
        (_OtherState, "it gives other bits"),
        (_Uncaptured, "operation not permitted when stream is capturing$"),
    ],
)
def test_a_graph_that_fails_or_differs_is_told_once_and_the_tape_runs_on(monkeypatch, kind, reason):
    made, (taped, counted, state) = cpu_graphs(monkeypatch, kind), _sum_so_far()
    with pytest.warns(UserWarning, match=f"no CUDA graph for decoding: {reason}") as told:
        given = _sums(taped)
    sums = torch.stack([x for (x,) in numbers(6)]).cumsum(0)
    assert torch.equal(torch.stack(given), 2 * sums)
    assert torch.equal(state, sums[-1])
    assert (counted.calls, len(made), len(told)) == (2, 1, 1)
