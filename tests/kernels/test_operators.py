"""Every registered operator as PyTorch's transformations, and capture in a CUDA graph, need it."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megalite.ops import AttentionOptions, norm, rope_tables
from megalite.ops import mask as masks
from megalite.ops.backends import kernels
from megalite.ops.paged_attention import Places, Pools, paged_attention
from megalite.ops.quantised import quantised
from tests.kernels.backends import backend, needs_cpu

B, S, N, G, H, D = 2, 9, 4, 2, 8, 8
CSRC = Path(__file__).parents[2] / "csrc"
WAITS = (  # for the device, or for a number of it
    r"\w+Synchronize\b",
    r"cudaMemcpy\w*",
    r"\.item(?:<\w+>)?\(\)",
    r"\.cpu\(\)",
    r"\.to\(at::kCPU",
    r"\b(?:_local_scalar_dense|is_nonzero|nonzero|masked_select|equal)\(",
)


def operators() -> dict[str, list[tuple]]:
    """Arguments of each operator, with and without what it may be called without."""
    torch.manual_seed(0)
    mask, ids = masks.causal(B, S), torch.arange(B)
    q, k = torch.randn(B, S, N, H), torch.randn(B, S, G, H)
    with backend("cpu"):
        assert kernels(q) is torch.ops.megalite  # loads them
        rows = (mask.start, mask.end, *mask.plan)
    bias, dropped = torch.randn(N, 2 * S - 1), (0.5, 0.1, 7, ids, 0)
    plain = (q, k, k, *rows, None, 0.5, 0.0, 0, None, 0)
    biased = (q, k, k, *rows, bias, *dropped)
    capped = (q, k, k, *rows, *dropped, 3.0)
    return {
        "mask_plan": [(mask.start, mask.end, S)],
        "attention": [plain, biased],
        "attention_backward": [
            (q, q, k, k, *torch.ops.megalite.attention(*call), *call[3:], needs)
            for call, needs in ((plain, False), (biased, False), (biased, True))
        ],
        "capped_attention": [capped],
        "capped_attention_backward": [
            (q, q, k, k, *torch.ops.megalite.capped_attention(*capped), *capped[3:])
        ],
        **of_logits(),
        **of_rows(q, ids),
        **of_generation(),
    }


def of_logits() -> dict[str, list[tuple]]:
    logits, labels = torch.randn(6, 11), torch.arange(6)
    gradient = (torch.empty(6, 11), logits, logits.logsumexp(-1), labels, torch.ones(6))
    return {
        "logit_statistics": [(logits, labels, 0)],
        "logit_gradient": [(*gradient, 0, 11, 0.1, 1e-3)],
    }


def of_rows(q: Tensor, ids: Tensor) -> dict[str, list[tuple]]:
    x, vector = torch.randn(B, S, D), torch.randn(D)
    turned = (q, *rope_tables(torch.arange(S).expand(B, S), H), False, False)
    tokens = torch.randint(0, 7, (B, S))
    with_all = (0.0, 1.5, 0.1, 7, ids, 0)
    alone = (0.0, 1.0, 0.0, 0, None, 0)
    norms = [
        (x, x, vector, vector, 1e-5, True, *with_all),
        (x, None, vector, None, 1e-5, False, *alone),
    ]
    gradients = []
    for x_, update, weight, bias, *rest in norms:
        _, _, mean, inverse = torch.ops.megalite.add_norm(x_, update, weight, bias, *rest)
        has = (update is not None, bias is not None)
        gradients.append((x, update, x, weight, mean, inverse, *rest[2:], *has))
    activations = [(x, x, vector, vector, "gelu"), (x, None, None, None, "relu")]
    return {
        "rope": [turned],
        "rope_": [turned],
        "dropout": [(x, 0.1, 5, ids, 0, 0)],
        "add_norm": norms,
        "add_norm_backward": gradients,
        "activation": activations,
        "activation_backward": [(x, *each) for each in activations],
        "embedding": [(torch.randn(5, D), tokens, 1, 7)],
        "embedding_backward": [(x, tokens, 1, 5)],
        "dequantised": [
            (*quantised(torch.randn(3, 70), form), torch.bfloat16) for form in ("nf4", "int8")
        ],
    }


def of_generation() -> dict[str, list[tuple]]:
    pool = torch.randn(3, G, 4, H)
    tables = torch.tensor([[0, 1], [2, 0]], dtype=torch.int32)
    start, end = (torch.tensor(each, dtype=torch.int32) for each in ([0, 1], [6, 3]))
    paged = (torch.randn(B, N, H), pool, pool, tables, start, end)
    x, weight = torch.randn(5, D), torch.randn(6, D)
    return {
        "paged_attention": [(*paged, torch.randn(N, 8), 8, 0.5, 0.0)],
        "row_products": [(x, weight, None), (x, weight, torch.randn(6))],
        "draw": [(torch.randn(B, 11), torch.rand(B, dtype=torch.float64), 1.0)],
    }


@needs_cpu
def test_every_operator_passes_opcheck():
    """Schema, shapes without data, no gradient of its own, and traced ahead of time."""
    calls = operators()
    schemas = "".join((CSRC / name).read_text() for name in ("schema.h", "schema.cpp"))
    assert set(calls) == set(re.findall(r'm\.def\(\s*"(\w+)\(', schemas))
    for name, each in calls.items():
        for arguments in each:
            torch.library.opcheck(getattr(torch.ops.megalite, name).default, arguments)


@needs_cpu
def test_an_unknown_activation_is_refused_by_the_operator_too():
    x = torch.ones(2, 3)
    with backend("cpu"), pytest.raises(RuntimeError, match="kind: must be relu, .*, came tanh"):
        kernels(x).activation(x, None, None, None, "tanh")


@needs_cpu
def test_statistics_of_narrow_logits_are_wide_without_data_too():
    with backend("cpu"):
        norm(torch.ones(1, 8), torch.ones(8))  # loads the operators
    narrow = torch.empty(6, 11, dtype=torch.bfloat16, device="meta")
    labels = torch.empty(6, dtype=torch.int64, device="meta")
    assert torch.ops.megalite.logit_statistics(narrow, labels, 0).dtype == torch.float32


def test_no_launch_waits_for_the_device():
    """By what its source calls."""
    found = [
        (path.name, call)
        for path in sorted((CSRC / "cuda").rglob("*.*"))
        for wait in WAITS
        for call in re.findall(wait, re.sub(r"//[^\n]*", "", path.read_text()))
    ]
    assert found == []


class Launches(TorchDispatchMode):
    """Notes the operators inside, and the shapes that they give."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        shapes = [x.shape for x in tree_leaves(out) if isinstance(x, Tensor)]
        self.noted.append((func._schema.name, shapes))
        return out


def test_attention_of_a_decoding_step_has_one_shape_for_128_keys_and_asks_for_no_number():
    """On meta, which has no numbers: a graph of it may be replayed until a sequence outgrows it."""

    def launches(most_keys: int) -> list[tuple]:
        ends = torch.empty(3, dtype=torch.int32)
        pools = Pools(*(torch.empty(40, G, 16, H, dtype=torch.bfloat16) for _ in range(2)))
        places = Places(torch.empty(3, 20, dtype=torch.int32), ends, ends, most_keys)
        q = torch.empty(3, N, H, dtype=torch.bfloat16)
        with Launches() as run:
            paged_attention(q, pools, places, None, AttentionOptions())
        return run.noted

    with torch.device("meta"):
        first, middle, last, beyond = (launches(keys) for keys in (129, 200, 256, 257))
    assert first == middle == last != beyond
    assert any(name == "megalite::attention" for name, _ in first)
