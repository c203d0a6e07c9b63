"""What one more token takes: attention over blocks, and on a CPU products by rows and draws."""

import pytest
import torch

from megalite.ops import AttentionOptions
from megalite.ops.draw import draw_tokens
from megalite.ops.linear import linear, products_by_rows
from megalite.ops.paged_attention import Places, Pools, paged_attention
from tests.kernels.backends import (
    assert_as_good,
    backend,
    device_of,
    needs_emulator,
    on_every_row_backend,
)

ROWS = 16  # of a block


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def paged_case(heads: int, groups: int, width: int, most: int):
    """Sequences of several lengths, one of them without keys, whose blocks are mixed up."""
    end = torch.tensor([most, 1, 17, 33, 5], dtype=torch.int32)
    start = torch.tensor([0, 0, 16, 32, 5], dtype=torch.int32)
    table = -(-most // ROWS)
    blocks = torch.randperm(5 * table, generator=torch.Generator().manual_seed(1)).int()
    pools = Pools(*(random(5 * table, groups, ROWS, width, seed=s) for s in (2, 3)))
    bias = random(heads, most, seed=4)
    return (
        random(5, heads, width, seed=5),
        pools,
        Places(blocks.view(5, table), start, end, most),
        bias,
    )


def on_device(name: str, q: torch.Tensor, pools: Pools, places: Places, bias=None):
    device = device_of(name)
    pools = Pools(*(pool.to(device) for pool in pools))
    places = Places(*(x.to(device) for x in places[:3]), places.most_keys)
    return q.to(device), pools, places, None if bias is None else bias.to(device)


def attended(name: str, case: tuple, options: AttentionOptions) -> torch.Tensor:
    with backend(name):
        return paged_attention(*on_device(name, *case), options).cpu()


@pytest.mark.parametrize("shape", [(4, 2, 24, 47), (3, 3, 7, 64), (8, 1, 64, 130), (2, 1, 150, 40)])
@pytest.mark.parametrize("kind", ["plain", "bias", "cap"])
def test_paged_attention_is_as_good_as_attention_over_copies(shape, kind):
    check_paged("cpu", paged_case(*shape), kind)


GPU_SHAPES = [(4, 2, 24, 47), (3, 3, 8, 40), (6, 1, 64, 300), (6, 2, 128, 130), (1, 1, 256, 33)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", GPU_SHAPES)
@on_every_row_backend
def test_splits_of_keys_are_as_good(name, shape, dtype):
    q, pools, places, bias = paged_case(*shape)
    pools = Pools(*(pool.to(torch.float32 if name == "cpu" else dtype) for pool in pools))
    kind = "bias" if shape[0] == 6 else "plain"
    check_paged(name, (q.to(dtype), pools, places, bias), kind)


def check_paged(name: str, case: tuple, kind: str) -> None:
    q, pools, places, bias = case
    bias = bias if kind == "bias" else None
    options = AttentionOptions(score_cap=1.5 if kind == "cap" else 0.0)
    ours = attended(name, (q, pools, places, bias), options)
    with backend("reference"):
        plain = paged_attention(q, pools, places, bias, options)
        wide = Pools(*(pool.double() for pool in pools))
        exact = paged_attention(
            q.double(), wide, places, None if bias is None else bias.double(), options
        )
    assert_as_good(ours, plain, exact, 2.0)
    assert not ours[4].any()  # it has no keys


@on_every_row_backend
def test_no_bit_of_paged_attention_depends_on_other_sequences_or_on_its_blocks(name):
    q, pools, places, bias = paged_case(4, 2, 24, 47)
    options = AttentionOptions()
    whole = attended(name, (q, pools, places, bias), options)
    order = torch.tensor([3, 0])
    moved = torch.randperm(15, generator=torch.Generator().manual_seed(8))
    pools = Pools(*(pool[moved] for pool in pools))
    found = moved.argsort()[places.tables.long()].int()
    chosen = Places(found[order].contiguous(), places.start[order], places.end[order], 47)
    assert torch.equal(attended(name, (q[order], pools, chosen, bias), options), whole[order])
    longer = Places(torch.cat([found] * 4, 1), places.start, places.end, 190)  # and more splits
    bias = torch.cat((random(4, 143, seed=9), bias), 1)
    assert torch.equal(attended(name, (q, pools, longer, bias), options), whole)


@pytest.mark.parametrize("of", ["tables", "end"])
@pytest.mark.parametrize("name", ["cpu", pytest.param("simt_sm80", marks=needs_emulator)])
def test_keys_that_no_block_has_are_refused(name, of):
    q, pools, places, _ = paged_case(4, 2, 24, 47)
    wrong = places.tables + 15 if of == "tables" else places.end + 48
    case = q, pools, places._replace(**{of: wrong}), None
    with pytest.raises(RuntimeError, match=f"paged_attention (start, )?{of}: .* came .*sequence"):
        attended(name, case, AttentionOptions())


@pytest.mark.parametrize("sizes", [(1, 1), (7, 3), (64, 61), (513, 130), (11003, 5)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_products_by_rows_are_as_good_and_each_is_its_rows_own(sizes, has_bias):
    depth, width = sizes
    x, weight = random(13, depth, dtype=torch.float64), random(width, depth, seed=1).double()
    bias = random(width, seed=2).double() if has_bias else None
    exact = linear(x, weight, bias)
    inputs = [None if part is None else part.float() for part in (x, weight, bias)]
    plain = linear(*inputs)
    with products_by_rows():
        ours = linear(*inputs)
        for rows in ([0], [12], [5, 1, 9], [3, 3, 8, 2, 7, 11, 0]):
            assert torch.equal(linear(inputs[0][rows], *inputs[1:]), ours[rows])
    assert_as_good(ours, plain, exact, 2.0)


@pytest.mark.parametrize("width", [1, 5, 256, 257, 1000])
def test_draws_are_those_of_the_definition(width):
    logits = 4 * random(300, width)
    logits[:, ::3] = -torch.inf
    logits[:, -1] = 0.5
    uniform = torch.rand(300, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    uniform[0], uniform[1] = 2.0**-53, 1 - 2.0**-53
    tokens, log_probs = draw_tokens(logits, uniform, 0.8)
    with backend("reference"):
        expected, theirs = draw_tokens(logits, uniform, 0.8)
    ends = torch.softmax(logits.double() / 0.8, -1).cumsum(-1)
    border = (ends.gather(1, torch.minimum(tokens, expected)[:, None])[:, 0] - uniform).abs()
    assert ((tokens == expected) | (border < 1e-7)).all()
    log_probs, theirs = log_probs[tokens == expected], theirs[tokens == expected]
    assert len(theirs) >= 295
    assert torch.isfinite(log_probs).all()
    assert torch.allclose(log_probs, theirs, atol=1e-5)
