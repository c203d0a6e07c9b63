"""Masked attention on every backend against fp64, by the ratio of PyTorch's own error."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megalite.errors import KernelUnavailable, ShapeError
from megalite.ops import AttentionOptions, RowIntervals, attention
from megalite.ops import mask as masks
from tests.kernels.backends import (
    NAMES,
    SIMT_NAMES,
    assert_as_good,
    attention_types,
    backend,
    device_of,
    needs_cpu,
    on_every_backend,
    set_schedule,
)
from tests.kernels.plain import plain_attention


@dataclass(frozen=True)
class Case:
    queries: int
    keys: int
    heads: int = 2
    groups: int = 2
    head_dim: int = 16
    has_bias: bool = False
    dropout_p: float = 0.0
    scale_up: float = 1.0
    dtype: torch.dtype = torch.float32
    learns_bias: bool = True
    score_cap: float = 0.0


def fitted(name: str, case: Case) -> Case:
    """The case as a backend takes it: 16-bit kernels have head dimensions in steps of 8."""
    types = attention_types(name)
    if torch.float32 in types:
        return case
    dtype = case.dtype if case.dtype in types else types[0]
    return replace(case, head_dim=-(-case.head_dim // 8) * 8, dtype=dtype)


def inputs_of(case: Case, batch: int) -> tuple:
    """q, k, v, the upstream gradient and the bias, None without one."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    q = normal(batch, case.queries, case.heads, case.head_dim) * case.scale_up
    k = normal(batch, case.keys, case.groups, case.head_dim) * case.scale_up
    v = normal(batch, case.keys, case.groups, case.head_dim)
    upstream = normal(*q.shape)
    bias = normal(case.heads, case.queries + case.keys - 1) if case.has_bias else None
    return q, k, v, upstream, bias


def size_of_terms(case: Case, mask: RowIntervals) -> float:
    """The largest of the terms whose differences the gradients by q and k are: dO V^T times K."""
    q, k, v, upstream, _ = inputs_of(case, mask.start.shape[0])
    repeated = v.repeat_interleave(case.heads // case.groups, 2)
    products = torch.einsum("bqnh,bknh->bnqk", upstream, repeated).abs()
    largest = (products * mask.materialize()[:, None]).max()
    return float(largest * torch.maximum(q.abs().max(), k.abs().max()) * case.head_dim**-0.5)


def run(name: str, case: Case, mask: RowIntervals, dtype: torch.dtype | None = None, fill=None):
    """Forward and gradients on one backend, or of ``plain``: [out, dq, dk, dv(, dbias)]."""
    dtype = dtype or case.dtype
    batch = mask.start.shape[0]
    q, k, v, upstream, bias = inputs_of(case, batch)
    if fill:
        fill(q, k, v, upstream)
    device = device_of(name)
    given = [q, k, v] if bias is None else [q, k, v, bias]
    leaves = [
        x.to(case.dtype if i < 3 else torch.float32)
        .to(dtype if i < 3 or dtype.itemsize > 2 else torch.float32)
        .to(device)
        .clone()
        .requires_grad_(i < 3 or case.learns_bias)
        for i, x in enumerate(given)
    ]
    options = AttentionOptions(
        dropout_p=case.dropout_p,
        dropout_seed=11,
        sample_ids=(torch.arange(batch) + 5).to(device),
        score_cap=case.score_cap,
    )
    attend, name = (plain_attention, "reference") if name == "plain" else (attention, name)
    with backend(name):
        fresh = RowIntervals(mask.start, mask.end, mask.num_keys).to(device)
        out = attend(*leaves[:3], fresh, leaves[3] if case.has_bias else None, options)
        out.backward(upstream.to(case.dtype).to(dtype).to(device))
    return [x.detach().cpu() for x in (out, *(x.grad for x in leaves if x.requires_grad))]


def check(name: str, case: Case, mask: RowIntervals, size: float = 1.0) -> None:
    case = fitted(name, case)
    exact = run("reference", case, mask, torch.float64)
    plain = run("reference" if name == "cpu" else "plain", case, mask)
    ours = run(name, case, mask)
    for i, (mine, theirs, truth) in enumerate(zip(ours, plain, exact, strict=True)):
        assert_as_good(mine, theirs, truth, 2.0 if i == 0 else 3.0, size)


def of_structures() -> dict[str, tuple[Case, RowIntervals]]:
    causal_documents = masks.packed([[50, 61, 20], [131]], 131)
    return {
        "full": (Case(70, 133, 4, 2, 20), masks.full(2, 70, 133)),
        "causal": (Case(131, 131, 4, 4, 32), masks.causal(2, 131)),
        "causal behind a cache": (Case(5, 77, 4, 1, 16), masks.causal(2, 5, 77)),
        "one query": (Case(1, 77, 4, 4, 64), masks.full(3, 1, 77)),
        "prefix": (Case(133, 133, 6, 3, 33), masks.prefix(torch.tensor([57, 0]), 133)),
        "window": (Case(200, 200, 2, 2, 16), masks.window(2, 200, 37)),
        "window in documents": (Case(131, 131, 4, 2, 16), causal_documents.narrowed(29)),
        "window behind a prefix": (
            Case(133, 133, 2, 1, 8),
            masks.prefix(torch.tensor([57, 0]), 133).narrowed(40),
        ),
        "window behind a cache": (Case(5, 77, 4, 1, 16), masks.causal(2, 5, 77).narrowed(33)),
        "packed causal": (Case(131, 131, 4, 1, 24), causal_documents),
        "packed full": (Case(131, 131), masks.packed([[64, 64], [1, 2, 3]], 131, is_causal=False)),
        "padding": (Case(66, 66), masks.padding(torch.tensor([66, 3, 0]), 66)),
        "cross": (Case(9, 100, 4, 2, 80), masks.cross(torch.tensor([11, 0]), 9, 100)),
        "wide head": (Case(40, 40, 1, 1, 256), masks.causal(1, 40)),
        "long": (Case(300, 300, 1, 1, 16), masks.causal(1, 300)),
    }


STRUCTURES = of_structures()


@on_every_backend
@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_structure_is_as_exact_as_pytorch(name: str, structure: str):
    case, mask = STRUCTURES[structure]
    check(name, case, mask)


@on_every_backend
@pytest.mark.parametrize("structure", ["full", "prefix", "packed causal", "one query"])
@pytest.mark.parametrize(
    "more", [{"has_bias": True}, {"dropout_p": 0.3}, {"has_bias": True, "dropout_p": 0.1}]
)
def test_bias_and_dropout_are_as_exact_as_pytorch(name: str, structure: str, more: dict):
    case, mask = STRUCTURES[structure]
    check(name, Case(**(case.__dict__ | more)), mask)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, dtype) for name in NAMES for dtype in attention_types(name) if dtype.itemsize == 2],
)
def test_narrow_types_are_as_exact_as_pytorch(name: str, dtype: torch.dtype):
    case, mask = STRUCTURES["packed causal"]
    check(name, Case(**(case.__dict__ | {"dtype": dtype})), mask)


CAPPED = [
    {"score_cap": 1.5},
    {"score_cap": 50.0, "scale_up": 4.0},
    {"score_cap": 3.0, "dropout_p": 0.3},
    {"score_cap": 3.0, "dtype": torch.bfloat16},
]


@needs_cpu
@pytest.mark.parametrize("structure", ["full", "window in documents", "padding", "one query"])
@pytest.mark.parametrize("more", CAPPED)
def test_capped_scores_are_as_exact_as_pytorch(structure: str, more: dict):
    case, mask = STRUCTURES[structure]
    check("cpu", Case(**(case.__dict__ | more)), mask)


def test_capped_scores_are_those_of_their_definition():
    """Also far from 0, where a cap is flat, and with every gradient."""
    q, k, v = (torch.randn(2, 9, 2, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    mask, upstream = masks.packed([[4, 5], [7]], 9), torch.randn(2, 9, 2, 8, dtype=torch.float64)
    options = AttentionOptions(scale=3.0, score_cap=1.5)
    scores = 1.5 * torch.tanh(3.0 * torch.einsum("bqnh,bknh->bnqk", q, k) / 1.5)
    allowed = mask.materialize()[:, None]
    weights = scores.masked_fill(~allowed, -1e30).softmax(-1) * allowed
    expected = torch.einsum("bnqk,bknh->bqnh", weights, v)
    ours = attention(q, k, v, mask, None, options)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    pairs = (torch.autograd.grad(x, (q, k, v), upstream) for x in (ours, expected))
    for mine, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "cpu"])
def test_a_gpu_kernel_refuses_capped_scores(name: str):
    q = torch.zeros(1, 8, 2, 8, dtype=attention_types(name)[0], device=device_of(name))
    mask = masks.causal(1, 8).to(device_of(name))
    with backend(name), pytest.raises(KernelUnavailable, match="score_cap: must be 0 on backend"):
        attention(q, q, q, mask, None, AttentionOptions(score_cap=50.0))


def test_a_cap_and_a_bias_are_refused():
    q, bias = torch.zeros(1, 8, 2, 8), torch.zeros(2, 15)
    with pytest.raises(ShapeError, match="bias: must be None where score_cap is not 0"):
        attention(q, q, q, masks.causal(1, 8), bias, AttentionOptions(score_cap=50.0))


@st.composite
def intervals(draw, longest: int = 140) -> RowIntervals:
    batch, queries, keys = draw(
        st.tuples(st.integers(1, 2), st.integers(1, longest), st.integers(1, longest))
    )
    pairs = draw(
        st.lists(
            st.tuples(st.integers(0, keys), st.integers(0, keys)),
            min_size=batch * queries,
            max_size=batch * queries,
        )
    )
    bounds = torch.tensor(pairs, dtype=torch.int32).sort(-1).values.view(batch, queries, 2)
    return RowIntervals(bounds[..., 0].contiguous(), bounds[..., 1].contiguous(), keys)


@needs_cpu
@settings(max_examples=25, deadline=None)
@given(mask=intervals(), ratio=st.sampled_from([(1, 1), (4, 2), (3, 1)]), has_bias=st.booleans())
def test_random_intervals_are_as_exact_as_pytorch(mask, ratio, has_bias):
    case = Case(mask.start.shape[1], mask.num_keys, *ratio, 8, has_bias)
    check("cpu", case, mask, size_of_terms(case, mask))


@needs_cpu
def test_a_row_of_one_key_has_no_gradient_but_that_of_roundings():
    """PyTorch's products happen to agree to the last bit here."""
    start = torch.zeros(1, 66, dtype=torch.int32)
    end = start.clone()
    start[0, 54], end[0, 54] = 38, 39
    case, mask = Case(66, 94, 4, 2, 8), RowIntervals(start, end, 94)
    check("cpu", case, mask, size_of_terms(case, mask))


@pytest.mark.parametrize("name", SIMT_NAMES)
@settings(max_examples=8, deadline=None)
@given(mask=intervals(longest=80), ratio=st.sampled_from([(1, 1), (2, 1)]), has_bias=st.booleans())
def test_random_intervals_are_as_exact_as_pytorch_lane_by_lane(name, mask, ratio, has_bias):
    case = Case(mask.start.shape[1], mask.num_keys, *ratio, 8, has_bias)
    check(name, case, mask, size_of_terms(case, mask))


@settings(max_examples=50, deadline=None)
@given(mask=intervals())
def test_every_plan_is_the_reference_plan(mask):
    expected = masks.plan_reference(mask.start, mask.end, mask.num_keys)
    for name in NAMES:
        with backend(name):
            fresh = RowIntervals(mask.start, mask.end, mask.num_keys).to(device_of(name))
            for ours, reference in zip(fresh.plan, expected, strict=True):
                assert torch.equal(ours.cpu(), reference)


@on_every_backend
@pytest.mark.parametrize("structure", ["window", "window in documents", "padding", "cross"])
def test_skipping_tiles_changes_no_bit(name: str, structure: str, monkeypatch):
    case, mask = STRUCTURES[structure]
    case = fitted(name, case)
    skipping = run(name, case, mask)
    monkeypatch.setattr(RowIntervals, "plan", property(plan_that_skips_nothing))
    for ours, all_tiles in zip(skipping, run(name, case, mask), strict=True):
        assert torch.equal(ours, all_tiles)


def plan_that_skips_nothing(mask: RowIntervals):
    rows, keys = masks.plan_reference(mask.start.cpu(), mask.end.cpu(), mask.num_keys)
    rows[..., 0], rows[..., 1], rows[..., 2], rows[..., 3] = 0, mask.num_keys, mask.num_keys, 0
    keys[..., 0], keys[..., 1] = 0, mask.start.shape[1]
    return rows.to(mask.start.device), keys.to(mask.start.device)


@on_every_backend
def test_repeats_give_equal_bits(name: str):
    case, mask = STRUCTURES["prefix"]
    case = fitted(name, Case(**(case.__dict__ | {"has_bias": True, "dropout_p": 0.2})))
    first = run(name, case, mask)
    for i in range(2 if name in SIMT_NAMES else 50):
        set_schedule(name, i + 1)
        for a, b in zip(first, run(name, case, mask), strict=True):
            assert torch.equal(a, b)
    set_schedule(name, 0)


@on_every_backend
def test_a_bias_that_does_not_learn_changes_no_bit_of_the_other_gradients(name: str):
    case, mask = STRUCTURES["prefix"]
    case = fitted(name, replace(case, has_bias=True))
    learned = run(name, case, mask)
    given = run(name, replace(case, learns_bias=False), mask)
    for a, b in zip(learned[:4], given, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", [name for name in NAMES if name == "cpu"])
def test_the_number_of_threads_changes_no_bit(name: str):
    case, mask = Case(200, 200, 2, 1, 16, has_bias=True), masks.causal(1, 200)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run(name, case, mask, torch.float32))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@on_every_backend
def test_nothing_of_padding_leaks(name: str):
    case, mask = STRUCTURES["padding"]

    def poison(q, k, v, upstream):
        for x in (q, k, v, upstream):
            x[1, 3:], x[2] = math.nan, math.nan

    case = fitted(name, case)
    clean = run(name, case, mask)
    for ours, poisoned in zip(clean, run(name, case, mask, None, poison), strict=True):
        assert torch.isfinite(poisoned).all()
        assert torch.equal(ours, poisoned)


@on_every_backend
@pytest.mark.parametrize("of", ["k", "v"])
def test_no_row_that_attends_to_nan_has_a_gradient_that_is_a_number(name: str, of: str):
    """The head's other rows may have; other heads and sequences are as they were."""
    case, mask, key = fitted(name, Case(131, 131)), masks.causal(2, 131), 70

    def poison(q, k, v, upstream):
        {"k": k, "v": v}[of][0, key, 0] = math.nan

    for clean, found in zip(
        run(name, case, mask), run(name, case, mask, None, poison), strict=True
    ):
        assert torch.equal(found[1], clean[1])
        assert torch.equal(found[0, :, 1], clean[0, :, 1])
    assert run(name, case, mask, None, poison)[1][0, key:, 0].isnan().all()


@on_every_backend
def test_rows_without_keys_give_zero(name: str):
    case, mask = STRUCTURES["cross"]
    out, dq, dk, _ = run(name, fitted(name, case), mask)
    assert torch.equal(out[1], torch.zeros_like(out[1]))
    assert torch.equal(dq[1], torch.zeros_like(dq[1]))
    assert torch.equal(dk[1], torch.zeros_like(dk[1]))


@on_every_backend
def test_very_large_logits_stay_finite(name: str):
    """A gradient that is 0 in the limit comes as a rounding of its terms, as in PyTorch's own."""
    case, mask = fitted(name, Case(70, 70, scale_up=100.0)), masks.causal(1, 70)
    exact, ours = run("reference", case, mask, torch.float64), run(name, case, mask)
    coarser = torch.finfo(case.dtype).eps / torch.finfo(torch.float32).eps
    for mine, truth in zip(ours, exact, strict=True):
        torch.testing.assert_close(
            mine.double(), truth, rtol=min(1e-4 * coarser, 0.02), atol=1e-6 * 100 * 70 * coarser
        )


@on_every_backend
def test_dropout_keeps_exactly_the_reference_mask(name: str):
    """With values one-hot by key, the output's zeros are the dropped keys."""
    keys, batch = 48, 2
    q = k = torch.zeros(batch, keys, 2, keys)
    v = torch.eye(keys).expand(batch, 2, keys, keys).transpose(1, 2).contiguous()
    kept = {}
    for each in ("reference", name):
        device = device_of(each)
        options = AttentionOptions(
            dropout_p=0.4,
            dropout_seed=3,
            sample_ids=torch.tensor([7, 2**31]).to(device),
            head_offset=9,
        )
        dtype = torch.float32 if each == "reference" else attention_types(each)[0]
        with backend(each):
            mask = masks.full(batch, keys, keys).to(device)
            moved = (x.to(device, dtype) for x in (q, k, v))
            kept[each] = attention(*moved, mask, None, options).cpu() != 0
    assert torch.equal(kept["reference"], kept[name])
    assert 0.55 < float(kept[name].float().mean()) < 0.65


def test_reference_passes_gradcheck():
    mask = masks.packed([[3, 2]], 6)
    q, k, v = (torch.randn(1, 6, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    bias = torch.randn(2, 11, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *x: attention(*x[:3], mask, x[3]), (q, k, v, bias))


@on_every_backend
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"k": (2, 8, 3, 4)}, "with G dividing 2|twice"),
        ({"v": (2, 8, 2, 5)}, "q, k, v"),
        ({"q": (2, 8, 4)}, "q, k, v"),
        ({"k": (2, 7, 2, 4), "v": (2, 7, 2, 4)}, "over 7 keys"),
    ],
)
def test_wrong_shapes_are_named(name: str, change: dict, says: str):
    shapes = {"q": (2, 8, 2, 4), "k": (2, 8, 2, 4), "v": (2, 8, 2, 4)} | change
    with backend(name), pytest.raises(ShapeError, match=says):
        attention(*(torch.zeros(shapes[x]) for x in "qkv"), masks.causal(2, 8))


@on_every_backend
@pytest.mark.parametrize(("start", "end"), [(5, 4), (0, 9), (-1, 3)])
def test_wrong_intervals_are_named(name: str, start: int, end: int):
    bounds = [torch.zeros(1, 8, dtype=torch.int32) for _ in range(2)]
    bounds[0][0, 2], bounds[1][0, 2] = start, end
    q = torch.zeros(1, 8, 2, 8, dtype=attention_types(name)[0])
    came = rf"0 <= start <= end <= 8 keys must hold, came \[{start}, {end}\) in row 2 of sequence 0"
    with backend(name), pytest.raises((ShapeError, RuntimeError), match=came):
        attention(q, q, q, RowIntervals(*bounds, 8))


@on_every_backend
@pytest.mark.parametrize(
    ("argument", "value", "says"),
    [
        (1, torch.zeros(2, 8, 3, 8), r"attention k: must be \[2, Sk, G, 8\] with G dividing 2"),
        (0, torch.zeros(2, 8, 2, 8, dtype=torch.float64), "attention q: must be float32"),
        (0, torch.zeros(2, 8, 8), "attention q: must be"),
        (3, torch.zeros(2, 9, dtype=torch.int32), "attention start: must be int32"),
        (5, torch.zeros(2, 2, 4, dtype=torch.int32), r"attention rows: must be int32 \[2, 1, 4\]"),
        (7, torch.zeros(2, 3), r"attention bias: must be \[2, 15\], came \[2, 3\]"),
        (9, 1.5, "attention dropout_p: must be in"),
        (9, 0.5, "attention sample_ids: int64"),
    ],
)
def test_the_kernel_itself_refuses(name: str, argument: int, value, says: str):
    mask = masks.causal(2, 8)
    x = torch.zeros(2, 8, 2, 8, dtype=attention_types(name)[0])
    with backend(name):
        arguments = [x, x, x, mask.start, mask.end, *mask.plan, None, 0.5, 0.0, 0, None, 0]
    arguments[argument] = value if argument > 2 or value.dtype.itemsize > 4 else value.to(x.dtype)
    with pytest.raises(RuntimeError, match=says):
        operators(name).attention(*arguments)


def operators(name: str):
    return torch.ops.megalite_simt if name in SIMT_NAMES else torch.ops.megalite


@pytest.mark.parametrize("name", SIMT_NAMES)
@pytest.mark.parametrize(
    ("head_dim", "dtype", "says"),
    [
        (20, torch.float16, "the head dimension must be 8 to 256 in steps of 8, came 20"),
        (264, torch.float16, "the head dimension must be 8 to 256 in steps of 8, came 264"),
        (16, torch.float32, r"must be float16 (or bfloat16 )?on a GPU of compute capability \d.0"),
    ],
)
def test_heads_that_no_gpu_kernel_takes_are_refused(name, head_dim, dtype, says):
    x = torch.zeros(1, 8, 2, head_dim, dtype=dtype)
    with backend(name), pytest.raises(RuntimeError, match=f"attention q: {says}"):
        attention(x, x, x, masks.causal(1, 8))
